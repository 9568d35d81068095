"""The decision for the whole fleet: one snapshot in, one plan out."""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from tessera.api.inference_service import InferenceServiceSpec, InferenceServiceStatus
from tessera.api.inference_service import Scaling as ScalingSpec
from tessera.domain import autoscale
from tessera.domain.autoscale import Count, Memory, Scale
from tessera.domain.checks import check, flags_unchecked
from tessera.domain.drain import Drain, drain
from tessera.domain.load import load_of
from tessera.domain.placement import Choice, Placement, place, room
from tessera.domain.pools import PoolView, discover
from tessera.domain.readiness import must_ask
from tessera.domain.reasons import Accepted, Placed, Scaling, Verdict
from tessera.domain.snapshot import Pod, Ref, Service, Snapshot, Workload

Taken = Counter[tuple[str, str]]
"""Devices that services hold, by pool and resource."""


_DEFAULT_SCALING = ScalingSpec()


@dataclass(frozen=True, slots=True, kw_only=True)
class Allotment:
    """What one service gets, and why."""

    service: Service
    accepted: Verdict[Accepted]
    placement: Placement
    scale: Scale
    drain: Drain
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
    allotments: Mapping[Ref, Allotment] = field(default_factory=dict)

    @property
    def memory(self) -> Mapping[Ref, Memory]:
        """What the next snapshot has to carry."""
        return {ref: allotment.scale.memory for ref, allotment in self.allotments.items()}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Holding:
    """What a service has now."""

    pods: tuple[Pod, ...] = ()
    workloads: tuple[Workload, ...] = ()


def plan(snapshot: Snapshot) -> Plan:
    """Decide for every service; the order of the input does not matter.

    Services that run keep their hardware before new ones choose; beyond that names decide. A
    service whose planning raises is set aside, and the rest is planned.
    """
    views = discover(snapshot.pools, snapshot.nodes, snapshot.at.date())
    holdings = _holdings(snapshot)
    taken: Taken = Counter()
    allotments: dict[Ref, Allotment] = {}
    for service in sorted(
        snapshot.services, key=lambda one: (not holdings[one.ref].workloads, one.ref)
    ):
        holding = holdings[service.ref]
        try:
            allotment = _allot(snapshot, service, holding, views, taken)
        except Exception as error:  # noqa: BLE001 - one bad service must not stop the fleet
            allotment = _held(snapshot, service, holding, _blame(error))
        allotments[service.ref] = allotment
        _take(taken, allotment)
    return Plan(
        pools=views,
        allotments={ref: _with_surge(allotments[ref], taken) for ref in sorted(allotments)},
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


def _allot(
    snapshot: Snapshot,
    service: Service,
    holding: _Holding,
    views: Sequence[PoolView],
    taken: Taken,
) -> Allotment:
    spec = service.spec
    if spec is None:
        told = service.problem or "spec: unreadable"
        return _held(snapshot, service, holding, Verdict(Accepted.SPEC_UNREADABLE, told))
    denials = check(spec, {view.pool.name for view in views})
    if denials:
        told = "; ".join(denial.sentence for denial in denials)
        return _held(snapshot, service, holding, Verdict(denials[0].reason, told))
    placement = place(
        spec,
        views,
        current=holding.workloads[0].variant if holding.workloads else None,
        floor=_floor(spec),
        taken=taken,
    )
    warning = flags_unchecked(spec)
    accepted = (
        Verdict(Accepted.VALID, "the spec can be carried out")
        if warning is None
        else Verdict(Accepted.FLAGS_UNCHECKED, warning)
    )
    if placement.choice is None:
        return replace(_held(snapshot, service, holding, accepted), placement=placement)
    variant = placement.choice.variant
    workload = next((one for one in holding.workloads if one.variant == variant), None)
    pods = tuple(pod for pod in holding.pods if pod.variant == variant)
    scale = _scale(snapshot, service, spec, pods, workload)
    return Allotment(
        service=service,
        accepted=accepted,
        placement=placement,
        scale=scale,
        drain=drain(snapshot, workload, scale.replicas, pods, spec.drain.timeout),
        pods=holding.pods,
        workload=workload,
        retired=_retired(holding, pods, variant, scale.replicas),
        ask=must_ask(snapshot, service, holding.pods),
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
) -> Allotment:
    """Nothing is decided, so whatever runs goes on as it is."""
    workload = holding.workloads[0] if holding.workloads else None
    running = workload.replicas if workload else 0
    memory = snapshot.memory.get(service.ref) or remembered(service.status)
    return Allotment(
        service=service,
        accepted=accepted,
        placement=Placement(
            verdict=Verdict(Placed.NOT_ACCEPTED, "nothing is placed while Accepted is False")
        ),
        scale=Scale(
            replicas=running,
            reason=Scaling.NOT_PLACED,
            message="what runs is left as it is",
            memory=memory,
        ),
        drain=Drain(keep=running),
        pods=holding.pods,
        workload=workload,
    )


def _blame(error: Exception) -> Verdict[Accepted]:
    return Verdict(
        Accepted.PLANNER_ERROR,
        f"spec: planning raised {type(error).__name__} ({error}); please report it with the output "
        "of kubectl get inferenceservice -o yaml",
    )


def _floor(spec: InferenceServiceSpec) -> int:
    return scaling_of(spec).min_replicas if spec.replicas is None else max(1, spec.replicas)


def _take(taken: Taken, allotment: Allotment) -> None:
    if allotment.choice is not None:
        offer = allotment.choice.offer
        replicas = max(allotment.scale.replicas, len(allotment.pods))
        taken[offer.pool, offer.hardware.resource] += replicas * offer.hardware.devices


def _with_surge(allotment: Allotment, taken: Taken) -> Allotment:
    if allotment.choice is None:
        return allotment
    return replace(allotment, surge=room(allotment.choice.offer, taken) > 0)
