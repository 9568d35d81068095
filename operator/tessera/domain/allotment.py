"""What one service gets, and why; and how that comes out of its draft."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from tessera.api.inference_service import InferenceServiceSpec, SpeedStatus
from tessera.api.recipe import Recipe
from tessera.domain import autoscale
from tessera.domain.autoscale import Scale
from tessera.domain.batch.facts import VolumeClaim
from tessera.domain.budget.purse import Funding
from tessera.domain.draft import Draft, Holding, held_replicas, of_variant
from tessera.domain.drain import Displaced, Drain, drain
from tessera.domain.model.prepare import Preparation, fetched
from tessera.domain.perf import Measured
from tessera.domain.placement import Choice, Placement, room
from tessera.domain.reasons import Accepted, Verdict
from tessera.domain.recipe import Making, filled_spec, making
from tessera.domain.repartition.displaced import formers
from tessera.domain.revision import Pin, pin, pinned_spec
from tessera.domain.rollout import surges
from tessera.domain.snapshot import Pod, Readings, Ref, Service, Snapshot, Workload
from tessera.domain.speed.measured import own_of
from tessera.domain.speed.seen import Speed, seen
from tessera.domain.speed.verdict import judged
from tessera.domain.stall import Stall


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


class MadeOf(NamedTuple):
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


def finished(snapshot: Snapshot, made_of: MadeOf) -> Allotment:
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


def timely(
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


def with_speed(readings: Readings | None, one: Allotment) -> Allotment:
    """With what its status should say of its speed; without a reading, what it says."""
    speed = one.service.status.speed
    if readings is not None and readings.speeds_at is not None:
        found = one.seen(readings)
        if found is not None:
            speed = judged(found, speed, readings.speeds_at)
    same = speed is one.speed or speed == one.speed
    return one if same else replace(one, speed=speed)


def still_made_of(old: Allotment, made_of: MadeOf, before: MadeOf) -> bool:
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


def is_timeless(one: Allotment, stall: Stall) -> bool:
    """The moment changes nothing in it."""
    return (one.workload is None or one.workload.settled) and stall == one.stall


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
