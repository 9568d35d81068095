"""The decision for the whole fleet: one snapshot in, one plan out."""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import timedelta

from tessera.api.inference_service import InferenceServiceSpec, InferenceServiceStatus
from tessera.api.inference_service import Scaling as ScalingSpec
from tessera.api.recipe import Platform
from tessera.domain import autoscale
from tessera.domain.autoscale import Count, Memory, Scale
from tessera.domain.batch import batches
from tessera.domain.batch.allotment import BatchAllotment
from tessera.domain.batch.names import payer
from tessera.domain.budget.budgets import BudgetView, by_namespace, open_budgets
from tessera.domain.budget.meter import Meter
from tessera.domain.budget.purse import HOLD, Claim, Funding, Purse, fund
from tessera.domain.checks import check, flags_unchecked
from tessera.domain.drain import Drain, drain
from tessera.domain.load import load_of
from tessera.domain.model.prepare import Preparation, prepare, recalled
from tessera.domain.placement import ANY, STEADY, Choice, Placement, place, room
from tessera.domain.pools import PoolView, discover, tiers
from tessera.domain.readiness import must_ask
from tessera.domain.reasons import Accepted, Placed, Scaling, Verdict
from tessera.domain.snapshot import Pod, Ref, Service, Snapshot, Workload

Taken = Counter[tuple[str, str]]
"""Devices that services hold, by pool and resource."""


_DEFAULT_SCALING = ScalingSpec()
LEAVING = timedelta(seconds=60)
"""A replica that is let go costs so long beyond its drain, until its engine has exited."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Allotment:
    """What one service gets, and why."""

    service: Service
    accepted: Verdict[Accepted]
    placement: Placement
    scale: Scale
    drain: Drain
    platform: Platform = field(default_factory=Platform)
    """The surroundings of its engines."""
    preparation: Preparation | None = None
    """How far its model is; None for a spec that was not accepted for another reason."""
    surge: bool = False
    """There is room for one more replica: a rollout starts the new before it stops the old."""
    pods: tuple[Pod, ...] = ()
    """The replicas that exist."""
    workload: Workload | None = None
    """The Deployment of the chosen variant, if it exists."""
    retired: tuple[Ref, ...] = ()
    """Deployments of former variants that may go now."""
    ask: bool = False
    """The service is to be asked for a token."""

    @property
    def choice(self) -> Choice | None:
        return self.placement.choice


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What the fleet should be."""

    pools: tuple[PoolView, ...] = ()
    budgets: tuple[BudgetView, ...] = ()
    allotments: Mapping[Ref, Allotment] = field(default_factory=dict)
    batches: Mapping[Ref, BatchAllotment] = field(default_factory=dict)

    @property
    def memory(self) -> Mapping[Ref, Memory]:
        """What the next snapshot has to carry."""
        return {ref: allotment.scale.memory for ref, allotment in self.allotments.items()}

    @property
    def living(self) -> Mapping[Ref, BatchAllotment]:
        """The batches that still need anything: those that are not over, and last pods."""
        return {ref: one for ref, one in self.batches.items() if one.living}

    @property
    def meters(self) -> Mapping[str, Meter]:
        """What was spent, likewise."""
        return {view.budget.name: view.meter for view in self.budgets}

    @property
    def tenants(self) -> Mapping[str, BudgetView]:
        """The budget that holds in each namespace."""
        return by_namespace(self.budgets)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Holding:
    """What a service has now."""

    pods: tuple[Pod, ...] = ()
    workloads: tuple[Workload, ...] = ()

    def of(self, variant: str) -> Workload | None:
        return next((one for one in self.workloads if one.variant == variant), None)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Draft:
    """What a service would get if money were no object."""

    service: Service
    holding: _Holding
    accepted: Verdict[Accepted]
    placement: Placement
    scale: Scale
    preparation: Preparation | None = None


def plan(snapshot: Snapshot) -> Plan:
    """Decide for every service; the order of the input does not matter.

    Services that run keep their hardware before new ones choose; beyond that names decide. A
    service whose planning raises is set aside, and the rest is planned.
    """
    snapshot = replace(snapshot, services=tuple(map(recalled, snapshot.services)))
    views = discover(snapshot.pools, snapshot.nodes, snapshot.at.date())
    budgets = open_budgets(snapshot, views)
    taken: Taken = Counter()
    drafts = _drafts(snapshot, views, taken)
    runs = batches.drafted(snapshot, views, taken)
    granted = _granted(snapshot, drafts, runs, budgets)
    return Plan(
        pools=views,
        budgets=budgets,
        allotments={
            ref: _finished(snapshot, drafts[ref], granted.get(ref), taken) for ref in sorted(drafts)
        },
        batches={ref: batches.finished(runs[ref], granted.get(payer(ref))) for ref in sorted(runs)},
    )


def _drafts(snapshot: Snapshot, views: Sequence[PoolView], taken: Taken) -> Mapping[Ref, _Draft]:
    holdings = _holdings(snapshot)
    drafts = {}
    for service in sorted(
        snapshot.services, key=lambda one: (not holdings[one.ref].workloads, one.ref)
    ):
        holding = holdings[service.ref]
        try:
            draft = _draft(snapshot, service, holding, views, taken)
        except Exception as error:  # noqa: BLE001 - one bad service must not stop the fleet
            draft = _held(snapshot, service, holding, _blame(error))
        drafts[service.ref] = draft
        _take(taken, draft)
    return drafts


def _granted(
    snapshot: Snapshot,
    drafts: Mapping[Ref, _Draft],
    runs: Mapping[Ref, batches.Drafted],
    budgets: Sequence[BudgetView],
) -> Mapping[Ref, Funding]:
    """What the tenants can pay, for the services and batches of those that have a budget."""
    granted: dict[Ref, Funding] = {}
    for view in budgets:
        if view.purse is None or view.budget.spec is None:
            continue
        names = view.budget.spec.tenant.namespaces
        claims: list[Claim] = []
        for ref in sorted(ref for ref in drafts if ref.namespace in names):
            _go_on(drafts[ref], view.meter, view.purse)
            claims += _claims(snapshot, drafts[ref])
        for ref in sorted(ref for ref in runs if ref.namespace in names):
            runs[ref].go_on(view.meter, view.purse)
            claims += runs[ref].claims
        granted |= fund(view.purse, claims, view.budget.spec.currency)
    return granted


def _go_on(draft: _Draft, meter: Meter, purse: Purse) -> None:
    """What has to be paid besides the claim: pods of a service that cannot be placed are left as
    they are, and those of a former variant go on until the new one is up."""
    choice = draft.placement.choice
    for pod in draft.holding.pods:
        running = meter.running.get(pod.uid)
        if running is not None and choice is None:
            purse.floor(running.tariff, 1)
        elif running is not None and choice is not None and pod.variant != choice.variant:
            purse.leave(running.tariff, HOLD, 1)


def _claims(snapshot: Snapshot, draft: _Draft) -> tuple[Claim, ...]:
    """A fixed number has a floor of 1: what the user set beyond it is granted or not."""
    choice, spec = draft.placement.choice, draft.service.spec
    if choice is None or spec is None:
        return ()
    holding, wanted, ref = draft.holding, draft.scale.replicas, draft.service.ref
    least = 1 if spec.replicas is not None else scaling_of(spec).min_replicas
    memory = snapshot.memory.get(ref) or remembered(draft.service.status)
    counts = [count.replicas for count in memory.counts[-1:]]
    mine = [pod for pod in holding.pods if pod.variant == choice.variant and pod.ended is None]
    claim = Claim(
        ref=ref,
        tariff=choice.offer.tariff,
        floor=min(least, wanted),
        wanted=wanted,
        running=max([*counts, *(one.replicas for one in holding.workloads)], default=0),
        alive=len(mine),
        leaving=spec.drain.timeout + LEAVING,
    )
    return (claim,)


def _finished(
    snapshot: Snapshot, draft: _Draft, funding: Funding | None, taken: Mapping[tuple[str, str], int]
) -> Allotment:
    """The allotment for what was granted."""
    choice, holding, service = draft.placement.choice, draft.holding, draft.service
    scale = draft.scale
    if funding is not None and funding.shortage is not None:
        scale = autoscale.cap(scale, funding.replicas, funding.shortage.message, snapshot.at)
    told = Allotment(
        service=service,
        accepted=draft.accepted,
        placement=draft.placement,
        scale=scale,
        drain=Drain(keep=scale.replicas),
        platform=snapshot.platform,
        preparation=draft.preparation,
        pods=holding.pods,
        workload=holding.workloads[0] if holding.workloads else None,
    )
    if choice is None or service.spec is None:
        return told
    workload = holding.of(choice.variant)
    pods = tuple(pod for pod in holding.pods if pod.variant == choice.variant)
    return replace(
        told,
        drain=drain(snapshot, workload, scale.replicas, pods, service.spec.drain.timeout),
        workload=workload,
        retired=_retired(holding, pods, choice.variant, scale.replicas),
        ask=must_ask(snapshot, service, holding.pods),
        surge=room(choice.offer, taken) > 0,
    )


def scaling_of(spec: InferenceServiceSpec) -> ScalingSpec:
    """The autoscaler's bounds and goals; without any in the spec the defaults."""
    return spec.scaling or _DEFAULT_SCALING


def _holdings(snapshot: Snapshot) -> Mapping[Ref, _Holding]:
    pods: dict[Ref, list[Pod]] = defaultdict(list)
    for pod in snapshot.pods:
        pods[pod.service].append(pod)
    workloads: dict[Ref, list[Workload]] = defaultdict(list)
    for workload in snapshot.workloads:
        workloads[workload.service].append(workload)
    return {
        service.ref: _Holding(
            pods=tuple(sorted(pods[service.ref], key=lambda pod: pod.ref)),
            workloads=tuple(sorted(workloads[service.ref], key=lambda one: one.ref)),
        )
        for service in snapshot.services
    }


def _draft(
    snapshot: Snapshot,
    service: Service,
    holding: _Holding,
    views: Sequence[PoolView],
    taken: Taken,
) -> _Draft:
    spec = service.spec
    if spec is None:
        told = service.problem or "spec: unreadable"
        return _held(snapshot, service, holding, Verdict(Accepted.SPEC_UNREADABLE, told))
    preparation = prepare(snapshot, service, spec)
    spec = preparation.spec
    service = replace(service, spec=spec)
    denials = check(spec, tiers(views))
    if denials:
        told = "; ".join(denial.sentence for denial in denials)
        return _held(snapshot, service, holding, Verdict(denials[0].reason, told))
    if preparation.unknown is not None:
        held = _held(snapshot, service, holding, preparation.unknown)
        return replace(held, preparation=preparation)
    placement = place(
        spec,
        views,
        current=holding.workloads[0].variant if holding.workloads else None,
        floor=_floor(spec),
        taken=taken,
        tiers=ANY if spec.service_class == "batch" else STEADY,
    )
    warning = flags_unchecked(spec)
    accepted = (
        Verdict(Accepted.VALID, "the spec can be carried out")
        if warning is None
        else Verdict(Accepted.FLAGS_UNCHECKED, warning)
    )
    if placement.choice is None:
        held = _held(snapshot, service, holding, accepted)
        return replace(held, placement=placement, preparation=preparation)
    variant = placement.choice.variant
    pods = tuple(pod for pod in holding.pods if pod.variant == variant)
    return _Draft(
        service=service,
        holding=holding,
        accepted=accepted,
        placement=placement,
        preparation=preparation,
        scale=_scale(snapshot, service, spec, pods, holding.of(variant)),
    )


def _scale(
    snapshot: Snapshot,
    service: Service,
    spec: InferenceServiceSpec,
    pods: Sequence[Pod],
    workload: Workload | None,
) -> Scale:
    if spec.replicas is not None:
        return Scale(
            replicas=spec.replicas,
            reason=Scaling.SET_BY_USER,
            message=f"spec.replicas is {spec.replicas}",
            memory=Memory(counts=(Count(snapshot.at, spec.replicas),)),
        )
    policy = scaling_of(spec)
    existing = workload.replicas if workload else policy.min_replicas
    memory = snapshot.memory.get(service.ref) or remembered(service.status)
    return autoscale.scale(policy, load_of(pods, snapshot.readings, existing, snapshot.at), memory)


def _retired(holding: _Holding, pods: Sequence[Pod], variant: str, wanted: int) -> tuple[Ref, ...]:
    """Former variants stay until the new one is up, unless they sit on the hardware it needs."""
    up = sum(pod.ready_since is not None for pod in pods) >= wanted
    blocked = any(pod.unschedulable for pod in pods)
    if not (up or blocked):
        return ()
    return tuple(one.ref for one in holding.workloads if one.variant != variant)


def remembered(status: InferenceServiceStatus) -> Memory:
    """What an earlier leader wrote down for its successor."""
    if status.scaling is None:
        return Memory()
    return Memory(counts=tuple(Count(one.at, one.replicas) for one in status.scaling.memory))


def _held(
    snapshot: Snapshot, service: Service, holding: _Holding, accepted: Verdict[Accepted]
) -> _Draft:
    """Nothing is decided, so whatever runs goes on as it is."""
    return _Draft(
        service=service,
        holding=holding,
        accepted=accepted,
        placement=Placement(
            verdict=Verdict(Placed.NOT_ACCEPTED, "nothing is placed while Accepted is False")
        ),
        scale=Scale(
            replicas=holding.workloads[0].replicas if holding.workloads else 0,
            reason=Scaling.NOT_PLACED,
            message="what runs is left as it is",
            memory=snapshot.memory.get(service.ref) or remembered(service.status),
        ),
    )


def _blame(error: Exception) -> Verdict[Accepted]:
    return Verdict(
        Accepted.PLANNER_ERROR,
        f"spec: planning raised {type(error).__name__} ({error}); please report it with the output "
        "of kubectl get inferenceservice -o yaml",
    )


def _floor(spec: InferenceServiceSpec) -> int:
    return scaling_of(spec).min_replicas if spec.replicas is None else max(1, spec.replicas)


def _take(taken: Taken, draft: _Draft) -> None:
    choice = draft.placement.choice
    if choice is not None:
        hardware = choice.offer.hardware
        replicas = max(draft.scale.replicas, len(draft.holding.pods))
        taken[choice.offer.pool, hardware.resource] += replicas * hardware.devices
