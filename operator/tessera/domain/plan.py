"""The decision for the whole fleet: one snapshot in, one plan out."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import date, datetime, timedelta
from typing import NamedTuple

from tessera.api.inference_service import InferenceServiceSpec, SpeedStatus
from tessera.api.recipe import Recipe
from tessera.domain import autoscale
from tessera.domain.autoscale import Memory, Scale
from tessera.domain.batch import batches
from tessera.domain.batch.allotment import BatchAllotment
from tessera.domain.batch.facts import VolumeClaim
from tessera.domain.batch.names import payer
from tessera.domain.budget.budgets import BudgetView, by_namespace, open_budgets
from tessera.domain.budget.meter import Meter
from tessera.domain.budget.purse import HOLD, Claim, Funding, Purse, fund
from tessera.domain.draft import (
    Draft,
    Held,
    Holding,
    Taken,
    drafted,
    floor_of,
    held_by,
    held_replicas,
    of_variant,
    remembered,
    scaling_of,
    take,
)
from tessera.domain.drain import NOBODY, Displaced, Drain, drain
from tessera.domain.kept import Last
from tessera.domain.load import grown_up, read
from tessera.domain.model.facts import ErrandJob
from tessera.domain.model.prepare import Preparation, claim_of, fetched, recalled
from tessera.domain.perf import Measured
from tessera.domain.placement import Choice, Placement, room
from tessera.domain.pools import PoolView, discover
from tessera.domain.readiness import asked_again, must_ask
from tessera.domain.reasons import Accepted, Verdict
from tessera.domain.recipe import Making, filled_spec, making
from tessera.domain.repartition.displaced import displaced, formers
from tessera.domain.repartition.turn import KeptLayouts, Repartitions, repartition
from tessera.domain.revision import Pin, pin, pinned_spec
from tessera.domain.rollout import surges
from tessera.domain.snapshot import (
    Answer,
    Node,
    Pod,
    PodReading,
    Readings,
    Ref,
    Service,
    Snapshot,
    SpeedReading,
    Watch,
    Workload,
)
from tessera.domain.speed.measured import own_of
from tessera.domain.speed.seen import Speed, seen
from tessera.domain.speed.verdict import judged
from tessera.domain.stall import Inspection, Stall, Suspect, inspect

_UNSEEN = Inspection()


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
    formers: Mapping[Ref, int] = field(default_factory=dict)
    """Deployments of former variants that should have another number of replicas for a while."""
    stall: Stall = field(default_factory=Stall)
    """An engine that stands still, and what is done about it."""
    pin: Pin = field(default_factory=Pin)
    """Which weights are loaded, and what to ask a hub before anything is made."""
    making: Making | None = None
    """By what the replicas are made; None while there is no choice."""
    speed: SpeedStatus | None = None
    """What is to be said of its speed; it changes seldom."""

    @property
    def recipe(self) -> Recipe:
        return self.making.recipe if self.making else Recipe()

    @property
    def built(self) -> InferenceServiceSpec | None:
        """The spec as the replicas are made from it: defaults and revision as they were kept."""
        spec = self.service.spec
        if spec is None or self.making is None:
            return spec
        return pinned_spec(filled_spec(spec, self.making.kept.filled), self.pin)

    @property
    def choice(self) -> Choice | None:
        return self.placement.choice

    @property
    def measured(self) -> Measured | None:
        """What it told of its own speed; predictions that are told of it are corrected by that."""
        return own_of(self.service, self.speed)

    def seen(self, readings: Readings | None) -> Speed | None:
        """Its speed by the readings; None while nothing is placed."""
        spec = self.service.spec
        if self.choice is None or spec is None:
            return None
        found = readings.speeds.get(self.service.ref, ()) if readings is not None else ()
        return seen(spec, self.choice, self.pods, found)


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What the fleet should be."""

    pools: tuple[PoolView, ...] = ()
    budgets: tuple[BudgetView, ...] = ()
    allotments: Mapping[Ref, Allotment] = field(default_factory=dict)
    batches: Mapping[Ref, BatchAllotment] = field(default_factory=dict)
    repartitions: Repartitions = field(default_factory=Repartitions)
    """What is done about layouts."""
    watches: Mapping[Ref, Watch] = field(default_factory=dict)
    """What is known of the engines, for the next snapshot."""
    asks: frozenset[Ref] = frozenset()
    """Services to be asked for a token."""
    suspects: tuple[Suspect, ...] = ()
    """Replicas to be asked how many requests they hold."""

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


class _MadeOf(NamedTuple):
    """All that an allotment follows from but the moment."""

    draft: Draft
    funding: Funding | None
    claim: VolumeClaim | None
    """That of its model's files, if it has one."""
    displaced: Displaced
    """Replicas that have to leave their slices."""
    tenant: bool
    """It has slices, or a plan of slices, in the pool where it is placed."""
    surge: int
    """Replicas that it needs besides on its former variants."""


@dataclass(frozen=True, slots=True)
class _Quiet:
    """A service that need not be asked for a token, what that follows from, and until when."""

    service: Service
    pods: tuple[Pod, ...]
    answer: Answer | None
    until: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class _KeptDraft:
    """A draft, and all that it was made of."""

    service: Service
    draft: Draft
    views: Sequence[PoolView]
    readings: tuple[PodReading | None, ...]
    until: datetime | None
    """From then on time alone may change it."""


class Kept:
    """What earlier plans found, kept by the identity of what it was made of.

    With it a turn costs what changed and not what there is. A plan comes out the same without it,
    but for moments in the autoscaler's memory, which are brought up to date when they matter.
    """

    def __init__(self) -> None:
        self.at: datetime | None = None
        self.views = Last(discover)
        self.recalled = Last(self._recalled)
        self.holdings = Last(self._holdings)
        self.ranked = Last(_ranked)
        self.layouts = KeptLayouts()
        self.drafts: dict[Ref, _KeptDraft] = {}
        self.allotments: Mapping[Ref, Allotment] = {}
        self.made_of: dict[Ref, _MadeOf] = {}
        self.quiet: dict[Ref, _Quiet] = {}
        self.taken: Mapping[tuple[str, str], int] = {}
        self.speeds: Mapping[Ref, tuple[SpeedReading, ...]] | None = None
        self._held: Mapping[Ref, tuple[Held, Holding]] = {}
        self._known: Mapping[Ref, tuple[Service, Service]] = {}
        self._day = date.min

    def day(self, at: datetime) -> date:
        """The date of a moment, the same object for a whole day."""
        if at.date() != self._day:
            self._day = at.date()
        return self._day

    def _recalled(self, services: tuple[Service, ...]) -> tuple[Service, ...]:
        """With the shapes that were read; a service that did not change is the same object."""
        old = self._known
        self._known = {
            one.ref: old[one.ref]
            if one.ref in old and old[one.ref][0] is one
            else (one, recalled(one))
            for one in services
        }
        found = tuple([self._known[one.ref][1] for one in services])
        same = all(new is one for new, one in zip(found, services, strict=True))
        return services if same else found

    def _holdings(
        self,
        services: Sequence[Service],
        pods: Sequence[Pod],
        workloads: Sequence[Workload],
        nodes: Sequence[Node],
        errands: Sequence[ErrandJob],
    ) -> Mapping[Ref, Holding]:
        old = self._held
        self._held = {
            ref: (old[ref] if ref in old and old[ref][0] == held else (held, held.sorted))
            for ref, held in held_by(services, pods, workloads, nodes, errands).items()
        }
        return {ref: holding for ref, (_, holding) in self._held.items()}


def plan(snapshot: Snapshot, kept: Kept | None = None) -> Plan:
    """Decide for every service; the order of the input does not matter.

    Services that run keep their hardware before new ones choose; beyond that names decide. A
    service whose planning raises is set aside, and the rest is planned.
    """
    kept = kept or Kept()
    snapshot = replace(snapshot, services=kept.recalled(snapshot.services))
    views = kept.views(snapshot.pools, snapshot.nodes, kept.day(snapshot.at))
    budgets = open_budgets(snapshot, views)
    taken: Taken = Counter()
    drafts = _drafts(snapshot, views, taken, kept)
    runs = batches.drafted(snapshot, views, taken)
    granted = _granted(snapshot, drafts, runs, budgets)
    layouts = repartition(snapshot, views, drafts, kept.layouts)
    kept.allotments, inspections = _allotments(snapshot, drafts, granted, taken, layouts, kept)
    kept.at = snapshot.at
    asks = (ref for ref, one in kept.allotments.items() if _asks(snapshot, one, kept))
    return Plan(
        pools=views,
        budgets=budgets,
        allotments=kept.allotments,
        repartitions=layouts,
        asks=frozenset(asks),
        watches={pod: watch for one in inspections for pod, watch in one.watches.items()},
        suspects=tuple(suspect for one in inspections for suspect in one.suspects),
        batches={ref: batches.finished(runs[ref], granted.get(payer(ref))) for ref in sorted(runs)},
    )


def _drafts(
    snapshot: Snapshot, views: Sequence[PoolView], taken: Taken, kept: Kept
) -> Mapping[Ref, Draft]:
    """In the order in which they choose."""
    holdings = kept.holdings(
        snapshot.services, snapshot.pods, snapshot.workloads, snapshot.nodes, snapshot.errands
    )
    believed = read(snapshot.readings, snapshot.at)
    drafts, known = {}, {}
    for service in kept.ranked(snapshot.services, holdings):
        ref, holding = service.ref, holdings[service.ref]
        readings = tuple([believed.get(pod.ref) for pod in holding.pods])
        old = kept.drafts.get(ref)
        if old is None or not _still_holds(old, snapshot, service, holding, views, readings):
            memory = _memory(snapshot, service, old, kept)
            draft = drafted(snapshot, service, holding, views, taken, memory)
            until = _until(snapshot, draft)
            old = _KeptDraft(
                service=service, draft=draft, views=views, readings=readings, until=until
            )
        known[ref] = old
        drafts[ref] = old.draft
        take(taken, old.draft)
    kept.drafts = known
    return drafts


def _still_holds(
    old: _KeptDraft,
    snapshot: Snapshot,
    service: Service,
    holding: Holding,
    views: Sequence[PoolView],
    readings: tuple[PodReading | None, ...],
) -> bool:
    draft = old.draft
    return (
        old.service is service
        and draft.holding is holding
        and old.views is views
        and snapshot.memory.get(service.ref) is draft.scale.memory
        and (old.until is None or snapshot.at < old.until)
        and old.readings == readings
    )


def _until(snapshot: Snapshot, draft: Draft) -> datetime | None:
    """How long equal input makes the same draft; no time where others' devices count too."""
    choice, workloads = draft.placement.choice, draft.holding.workloads
    if draft.accepted.reason is Accepted.PLANNER_ERROR:
        return snapshot.at
    if draft.preparation is not None and draft.preparation.pending:
        return snapshot.at
    if choice is None:
        return None
    moving = not workloads or workloads[0].variant != choice.variant
    if moving or not autoscale.is_steady(draft.scale, snapshot.at):
        return snapshot.at
    return grown_up(draft.holding.pods, snapshot.at)


def _memory(snapshot: Snapshot, service: Service, old: _KeptDraft | None, kept: Kept) -> Memory:
    """What is remembered; while a draft was kept, its last wish was repeated until now."""
    memory = snapshot.memory.get(service.ref) or remembered(service.status)
    if old is None or kept.at is None or memory is not old.draft.scale.memory:
        return memory
    return autoscale.held(memory, kept.at)


def _ranked(services: Sequence[Service], holdings: Mapping[Ref, Holding]) -> Sequence[Service]:
    """In the order in which they choose: those that run before new ones."""
    return sorted(
        services,
        key=lambda one: (not holdings[one.ref].workloads, one.ref),
    )


def _granted(
    snapshot: Snapshot,
    drafts: Mapping[Ref, Draft],
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


def _go_on(draft: Draft, meter: Meter, purse: Purse) -> None:
    """What has to be paid besides the claim: pods of a service that cannot be placed are left as
    they are, and those of a former variant go on until the new one is up."""
    choice = draft.placement.choice
    for pod in draft.holding.pods:
        running = meter.running.get(pod.uid)
        if running is not None and choice is None:
            purse.floor(running.tariff, 1)
        elif running is not None and choice is not None and pod.variant != choice.variant:
            purse.leave(running.tariff, HOLD, 1)


def _claims(snapshot: Snapshot, draft: Draft) -> tuple[Claim, ...]:
    """A fixed number has a floor of 1: what the user set beyond it is granted or not."""
    choice, spec = draft.placement.choice, draft.service.spec
    if choice is None or spec is None:
        return ()
    holding, wanted, ref = draft.holding, draft.scale.replicas, draft.service.ref
    least = 1 if spec.replicas is not None else scaling_of(spec).min_replicas
    memory = snapshot.memory.get(ref) or remembered(draft.service.status)
    counts = [count.replicas for count in memory.counts[-1:]]
    mine = [pod for pod in of_variant(holding.pods, choice) if pod.ended is None]
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


def _allotments(
    snapshot: Snapshot,
    drafts: Mapping[Ref, Draft],
    granted: Mapping[Ref, Funding],
    taken: Mapping[tuple[str, str], int],
    layouts: Repartitions,
    kept: Kept,
) -> tuple[Mapping[Ref, Allotment], Sequence[Inspection]]:
    """The same mapping as before when nothing in it changed; and what was found of the engines."""
    found, made_of, inspections = {}, {}, []
    resolutions, watched = snapshot.resolutions or {}, _is_watched(snapshot)
    same_room, kept.taken = kept.taken == taken, dict(taken)
    readings = snapshot.readings
    speeds = readings.speeds if readings is not None and readings.speeds_at is not None else None
    same_speeds, kept.speeds = kept.speeds is speeds, speeds
    for ref, draft in drafts.items():
        claim = snapshot.claims.get(claim_of(ref)) if snapshot.claims else None
        mine = displaced(layouts.orders.values(), draft.holding.pods) if layouts.orders else NOBODY
        choice = draft.placement.choice
        tenant = choice is not None and ref in layouts.tenants.get(choice.offer.pool, ())
        surge = sum(one.surges.get(ref, 0) for one in layouts.orders.values())
        made = _MadeOf(draft, granted.get(ref), claim, mine, tenant, surge)
        old = kept.allotments.get(ref)
        still = old is not None and old.pin.question not in resolutions
        if old is None or not still or not _still_allotted(old, made, kept.made_of[ref]):
            old, still = _finished(snapshot, made), False
        inspection = _UNSEEN
        if watched:
            inspection = _inspected(snapshot, old)
            inspections.append(inspection)
        if not (still and same_room and _is_timeless(old, inspection.stall)):
            old = _timely(snapshot, old, draft, taken, inspection.stall)
        if not (still and same_speeds):
            old = _with_speed(readings, old)
        found[ref], made_of[ref] = old, made
    kept.made_of = made_of
    for ref in kept.quiet.keys() - drafts.keys():
        del kept.quiet[ref]
    old_ones = kept.allotments
    if len(found) == len(old_ones) and all(old_ones.get(ref) is one for ref, one in found.items()):
        return old_ones, inspections
    return found, inspections


def _still_allotted(old: Allotment, made_of: _MadeOf, before: _MadeOf) -> bool:
    """Who drains, who was refused something, and whose model is not ready, is looked at in every
    turn."""
    return (
        before.draft is made_of.draft
        and before.funding == made_of.funding
        and before.claim == made_of.claim
        and before.displaced == made_of.displaced
        and before.tenant == made_of.tenant
        and before.surge == made_of.surge
        and (made_of.funding is None or made_of.funding.shortage is None)
        and not old.drain.leaving
        and not (old.preparation is not None and old.preparation.pending)
    )


def _is_timeless(one: Allotment, stall: Stall) -> bool:
    """The moment changes nothing in it."""
    return (one.workload is None or one.workload.settled) and stall == one.stall


def _asks(snapshot: Snapshot, one: Allotment, kept: Kept) -> bool:
    """Is a service that is placed to be asked for a token?"""
    if one.choice is None:
        return False
    service, answer = one.service, snapshot.answers.get(one.service.ref)
    known = kept.quiet.get(service.ref)
    if (
        known is not None
        and known.service is service
        and known.pods is one.pods
        and known.answer is answer
        and snapshot.at < known.until
    ):
        return False
    if must_ask(snapshot, service, one.pods):
        kept.quiet.pop(service.ref, None)
        return True
    until = asked_again(snapshot, service)
    kept.quiet[service.ref] = _Quiet(service, one.pods, answer, until)
    return False


def _timely(
    snapshot: Snapshot,
    one: Allotment,
    draft: Draft,
    taken: Mapping[tuple[str, str], int],
    stall: Stall,
) -> Allotment:
    """With what depends on the moment and on everybody else."""
    choice = draft.placement.choice
    if choice is None:
        return one
    pods = of_variant(one.pods, choice)
    roomy = _roomy(draft, choice, one.scale, taken)
    surge = surges(one.workload, pods, snapshot.at, room=roomy)
    same = surge is one.surge and stall == one.stall
    return one if same else replace(one, surge=surge, stall=stall)


def _with_speed(readings: Readings | None, one: Allotment) -> Allotment:
    """With what its status should say of its speed; without a reading, what it says."""
    speed = one.service.status.speed
    if readings is not None and readings.speeds_at is not None:
        found = one.seen(readings)
        if found is not None:
            speed = judged(found, speed, readings.speeds_at)
    same = speed is one.speed or speed == one.speed
    return one if same else replace(one, speed=speed)


def _finished(snapshot: Snapshot, made_of: _MadeOf) -> Allotment:
    """The allotment for what was granted."""
    draft, funding, mine = made_of.draft, made_of.funding, made_of.displaced
    choice, holding, service = draft.placement.choice, draft.holding, draft.service
    scale = draft.scale
    if funding is not None and funding.shortage is not None:
        scale = autoscale.cap(scale, funding.replicas, funding.shortage.message, snapshot.at)
    told = Allotment(
        service=service,
        accepted=draft.accepted,
        placement=draft.placement,
        scale=scale,
        drain=Drain(keep=scale.replicas, leaving=tuple(sorted(mine.leaving))),
        preparation=draft.preparation,
        pods=holding.pods,
        workload=holding.workloads[0] if holding.workloads else None,
    )
    if choice is None or service.spec is None:
        return told
    workload = holding.of(choice.variant)
    pods = of_variant(holding.pods, choice)
    pinned = pin(service, service.spec, workload, snapshot.resolutions)
    made = making(snapshot, service, service.spec, choice, workload)
    preparation = draft.preparation
    patient = service.spec.placement.mig == "auto" and made_of.tenant
    retired = _retired(holding, pods, choice.variant, scale.replicas, patient=patient)
    former = [one for one in holding.workloads if one.variant != choice.variant]
    left = [one for one in former if one.ref not in retired] if patient else []
    return replace(
        told,
        placement=replace(draft.placement, choice=made.choice),
        pin=pinned,
        preparation=preparation and fetched(snapshot, service, preparation, pinned),
        making=made,
        drain=drain(
            snapshot, workload, scale.replicas, pods, service.spec.drain.timeout, displaced=mine
        ),
        workload=workload,
        retired=retired,
        formers=formers(left, holding.pods, mine.doomed, made_of.surge),
    )


def _is_watched(snapshot: Snapshot) -> bool:
    """Something was read of any engine, now or before."""
    return bool(snapshot.watches or (snapshot.readings and snapshot.readings.engines))


def _inspected(snapshot: Snapshot, one: Allotment) -> Inspection:
    """The engines of a service that is placed; elsewhere nothing is touched."""
    choice, spec = one.choice, one.service.spec
    if choice is None or spec is None:
        return _UNSEEN
    return inspect(
        snapshot,
        one.service,
        choice.fit,
        of_variant(one.pods, choice),
        leaving=one.drain.leaving,
        floor=min(floor_of(spec), one.scale.replicas),
    )


def _roomy(
    draft: Draft, choice: Choice, scale: Scale, taken: Mapping[tuple[str, str], int]
) -> bool:
    """Is there room beyond the wanted replicas? What comes and goes in a rollout does not count."""
    hardware = choice.offer.hardware
    key = choice.offer.pool, hardware.resource
    others = taken.get(key, 0) - held_replicas(draft) * hardware.devices
    return room(choice.offer, {key: others}) > scale.replicas


def _retired(
    holding: Holding, pods: Sequence[Pod], variant: str, wanted: int, *, patient: bool
) -> tuple[Ref, ...]:
    """Former variants stay until the new one is up, unless they sit on the hardware it needs.

    A patient service waits for slices that are still to be cut; its former replicas leave one by
    one.
    """
    up = sum(pod.takes_requests for pod in pods) >= wanted
    blocked = any(pod.unschedulable for pod in pods)
    left = len(holding.pods) > len(pods)
    if (patient and (left or not up)) or not (up or blocked):
        return ()
    return tuple(one.ref for one in holding.workloads if one.variant != variant)
