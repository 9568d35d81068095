"""What services wish of the GPUs that may be cut for them, as a question to the planner."""

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from sys import intern
from typing import NamedTuple

from tessera.domain import money
from tessera.domain.checks import shape_of
from tessera.domain.draft import Proposal, min_replicas_of
from tessera.domain.kept import KeyedCache, LastCallCache, StableTupleCache
from tessera.domain.load import usable_readings
from tessera.domain.mig.boards import WHOLE_GPU, GpuModel
from tessera.domain.mig.demand import GpuOffer, InstanceType, ServiceDemand
from tessera.domain.mig.fleet import FleetGpu
from tessera.domain.mig.fleet import FleetSlice as Seat
from tessera.domain.mig.layouts import WHOLE_GPU_LAYOUT, Layout
from tessera.domain.placement import (
    ALL_TIERS,
    NON_SPOT_TIERS,
    HardwareChoice,
    hardware_candidates,
    slice_assignment,
)
from tessera.domain.pools import GPU, PoolView, plans_layouts
from tessera.domain.ref import Ref
from tessera.domain.repartition.backend import Capabilities
from tessera.domain.repartition.devices import profile_of
from tessera.domain.repartition.facts import Card, Ground
from tessera.domain.repartition.question import Option, Question, Terms, Wish
from tessera.domain.sizing import ReplicaFit
from tessera.domain.snapshot import Pod, PodReading, Snapshot

_FULL = 0.6
"""Share of its requests that an engine should hold on the average, so that peaks find room."""
_UNREAD: Mapping[Ref, PodReading] = {}


def uncut(pool: str) -> str:
    """Name of the board that GPUs of the pool are which are not in MIG mode."""
    return f"{pool}/{WHOLE_GPU}"


class _Seen(NamedTuple):
    """One node, as a question tells of it."""

    gpus: tuple[FleetGpu, ...]
    layouts: tuple[tuple[str, Layout], ...]
    """By the names of GPUs in MIG mode."""


class KeptQuestion:
    """The parts of the last question, and what they were made of."""

    def __init__(self) -> None:
        self.planned = StableTupleCache[PoolView]()
        self.drafts = StableTupleCache[Proposal]()
        self.wishes = LastCallCache(self._wishes)
        self.node: KeyedCache[tuple[str, str], [str, Ground, bool, _Sitting], _Seen] = KeyedCache(
            _node
        )
        self.nodes = StableTupleCache[_Seen]()
        self.asked = LastCallCache(_asked)
        self._options: KeyedCache[Ref, [Proposal, Sequence[PoolView]], tuple[Option, ...]] = (
            KeyedCache(_options)
        )
        self._wished: dict[Ref, Wish] = {}
        self._names: frozenset[str] = frozenset()
        self._sitting = LastCallCache(_Sitting)

    def seated(self, pods: Sequence[Pod], wishes: Sequence[Wish]) -> "_Sitting":
        """Of all pods, for services with these wishes."""
        names = frozenset(wish.service.name for wish in wishes)
        if names != self._names:
            self._names = names
        return self._sitting(pods, self._names)

    def _wishes(
        self,
        drafts: Sequence[Proposal],
        views: Sequence[PoolView],
        readings: Mapping[Ref, PodReading],
    ) -> tuple[Wish, ...]:
        """By name; one that is equal to the last is the same object."""
        old, self._wished = self._wished, {}
        for draft in sorted(drafts, key=lambda one: one.service.ref):
            ref = draft.service.ref
            wish = _wish(draft, views, readings, partial(self._options, ref))
            if wish is not None:
                self._wished[ref] = old[ref] if old.get(ref) == wish else wish
        self._options.retain({draft.service.ref for draft in drafts})
        return tuple(self._wished.values())


def question(
    views: Sequence[PoolView],
    grounds: Mapping[str, Sequence[Ground]],
    capabilities: Mapping[str, Capabilities],
    drafts: Mapping[Ref, Proposal],
    snapshot: Snapshot,
    kept: KeptQuestion | None = None,
) -> Question:
    """For all pools that plan layouts and have GPUs; by pool, `grounds` and what their backends
    can.

    Slices that others hold than services that are planned for stay as they are.
    """
    kept = kept or KeptQuestion()
    planned = kept.planned(
        tuple(
            view
            for view in sorted(views, key=lambda view: view.pool.name)
            if view.price is not None
            and plans_layouts(view.pool.spec)
            and view.pool.name in capabilities
            and any(ground.cards or ground.uncut for ground in grounds.get(view.pool.name, ()))
        )
    )
    readings = usable_readings(snapshot.readings, snapshot.at) or _UNREAD
    wishes = kept.wishes(kept.drafts(tuple(drafts.values())), planned, readings)
    sitting = kept.seated(snapshot.pods, wishes)
    nodes = {
        (pool, ground.name): ground
        for view in planned
        for pool in (intern(view.pool.name),)
        for ground in sorted(grounds[pool], key=lambda ground: ground.name)
    }
    found = tuple(
        kept.node(key, key[0], ground, capabilities[key[0]].knows_pods, sitting)
        for key, ground in nodes.items()
    )
    kept.node.retain(nodes.keys())
    return kept.asked(planned, grounds, capabilities, wishes, kept.nodes(found))


def _asked(
    planned: Sequence[PoolView],
    grounds: Mapping[str, Sequence[Ground]],
    capabilities: Mapping[str, Capabilities],
    wishes: tuple[Wish, ...],
    nodes: Sequence[_Seen],
) -> Question:
    gpus = tuple(gpu for node in nodes for gpu in node.gpus)
    return Question(
        terms=tuple(_terms(view, capabilities[view.pool.name]) for view in planned),
        wishes=wishes,
        offers=tuple(
            offer
            for view in planned
            for offer in _offers(view, grounds[view.pool.name], capabilities[view.pool.name], gpus)
        ),
        gpus=gpus,
        layouts={name: layout for node in nodes for name, layout in node.layouts},
    )


def _terms(view: PoolView, can: Capabilities) -> Terms:
    return Terms(
        pool=view.pool.name,
        currency=view.price.currency if view.price else "",
        per_gpu_hour=_per_gpu_hour(view),
        pinned_starts=can.pinned_starts,
        sibling_safe=can.sibling_safe,
    )


def _per_gpu_hour(view: PoolView) -> int:
    """At least one nano-unit: a GPU that costs nothing would be wasted without a thought."""
    return max(1, money.nanos(view.price.per_gpu_hour)) if view.price else 1


def _wish(
    draft: Proposal,
    views: Sequence[PoolView],
    readings: Mapping[Ref, PodReading],
    judged: Callable[[Proposal, Sequence[PoolView]], tuple[Option, ...]],
) -> Wish | None:
    """None for a service that is not planned for, or that fits on none of these GPUs."""
    spec = draft.service.spec
    if spec is None or spec.placement.mig != "auto" or not draft.accepted.reason.is_true:
        return None
    options = judged(draft, views)
    speeds = {
        one.kind: one.tokens_per_second
        for one in options
        if one.alone or spec.placement.isolation == "slice"
    }
    if not speeds:
        return None
    return Wish(
        service=ServiceDemand(
            name=str(draft.service.ref),
            demand=_demand(draft, views, options[0], readings),
            min_replicas=max(1, min_replicas_of(spec)),
            throughput=speeds,
            single_type=True,
        ),
        options=options,
        was=_runs_on(draft),
    )


def _options(draft: Proposal, views: Sequence[PoolView]) -> tuple[Option, ...]:
    """The same way to judge hardware as that of placement; of several precisions the fastest."""
    spec = draft.service.spec
    shape = shape_of(spec) if spec else None
    if spec is None or shape is None:
        return ()
    tiers = ALL_TIERS if spec.service_class == "batch" else NON_SPOT_TIERS
    offers = [
        offer
        for view in views
        if not spec.placement.pools or view.pool.name in spec.placement.pools
        for offer in view.offers
        if offer.layout_profile and offer.tier in tiers
    ]
    found: dict[InstanceType, Option] = {}
    for one in hardware_candidates(spec, shape, offers):
        if not isinstance(one.fit, ReplicaFit) or not one.offer.layout_profile:
            continue
        hardware, pool = one.offer.hardware, one.offer.pool
        kind = InstanceType(pool if hardware.profile else uncut(pool), one.offer.layout_profile)
        speed = one.fit.limits.tokens_per_second
        if kind not in found or speed > found[kind].tokens_per_second:
            found[kind] = Option(
                kind=kind,
                tokens_per_second=speed,
                hourly=one.offer.hourly.nanos,
                alone=hardware.exclusive,
            )
    return tuple(sorted(found.values(), key=lambda one: (one.hourly, one.kind)))


def _demand(
    draft: Proposal,
    views: Sequence[PoolView],
    cheapest: Option,
    readings: Mapping[Ref, PodReading],
) -> float:
    """What it gives with the replicas that it should have now; of a new one with its least.

    While it changes its hardware, the replicas that were planned count if they are more: those
    that are up say little then. With no more replicas than its least, what it needs follows from
    the requests in its engines, in whole replicas of its cheapest kind.
    """
    choice = draft.placement.choice
    if choice is None:
        floor = min_replicas_of(draft.service.spec) if draft.service.spec else 1
        return max(1, floor) * cheapest.tokens_per_second
    replicas = draft.scale.replicas
    moving = any(
        pod.variant != choice.variant and not pod.terminating for pod in draft.objects.pods
    )
    if moving and (plan := slice_assignment(draft.service.ref, [view.pool for view in views])):
        replicas = max(replicas, plan.replicas)
    given = max(1, replicas) * choice.fit.limits.tokens_per_second
    spec = draft.service.spec
    busy = _in_flight(draft, choice, readings)
    if moving or spec is None or replicas > min_replicas_of(spec) or busy is None:
        return given
    limits = choice.fit.limits
    needed = busy / limits.max_num_seqs * limits.tokens_per_second / _FULL
    return min(given, math.ceil(needed / cheapest.tokens_per_second) * cheapest.tokens_per_second)


def _in_flight(
    draft: Proposal, choice: HardwareChoice, readings: Mapping[Ref, PodReading]
) -> float | None:
    """Requests in its engines; None where one that serves cannot be read, which is not zero."""
    total = 0.0
    for pod in draft.objects.pods:
        if pod.variant != choice.variant or not pod.takes_requests:
            continue
        found = readings.get(pod.ref)
        if found is None or found.running is None or found.waiting is None:
            return None
        total += found.running + found.waiting
    return total


def _runs_on(draft: Proposal) -> InstanceType | None:
    choice = draft.placement.choice
    if choice is None or not choice.offer.layout_profile:
        return None
    pool = choice.offer.pool
    return InstanceType(
        pool if choice.offer.hardware.profile else uncut(pool), choice.offer.layout_profile
    )


class _Sitting:
    """Which pods hold devices, for services that are planned for and for others."""

    def __init__(self, pods: Sequence[Pod], names: Collection[str]) -> None:
        self.of = {
            pod.ref: str(pod.service)
            if pod.batch_run is None and str(pod.service) in names
            else None
            for pod in pods
            if pod.model_job_run is None
        }
        self.leaving = {pod.ref for pod in pods if pod.terminating}
        self._on: dict[str, list[tuple[str, Ref]]] = defaultdict(list)
        for pod in sorted(pods, key=lambda pod: pod.ref):
            for resource, count in sorted(pod.devices.items()):
                if pod.node and pod.ended is None and not pod.terminating:
                    self._on[pod.node] += [(resource, pod.ref)] * count

    def whole(self, node: str) -> list[Ref]:
        """Pods that hold whole GPUs of a node, once for each."""
        return [ref for resource, ref in self._on.get(node, ()) if resource == GPU]

    def slices(self, node: str, board: GpuModel) -> Mapping[str, list[Ref]]:
        """Pods that hold slices of a node, once for each, by profile."""
        found: dict[str, list[Ref]] = defaultdict(list)
        for resource, ref in self._on.get(node, ()):
            if (profile := profile_of(board, resource)) is not None:
                found[profile].append(ref)
        return found


def _node(pool: str, ground: Ground, knows_pods: bool, sitting: _Sitting) -> _Seen:
    return _Seen(
        tuple(_gpus(pool, ground, sitting, knows_pods=knows_pods)),
        tuple((_name(pool, ground, card), card.layout) for card in ground.cards),
    )


def _gpus(pool: str, ground: Ground, sitting: _Sitting, *, knows_pods: bool) -> Iterator[FleetGpu]:
    """On a node that is away nothing is planned, but whoever sits there counts. Where a node is
    emptied as a whole, whoever may not leave keeps all of it as it is."""
    found = list(_cut(pool, ground, sitting))
    if not knows_pods and any(gpu.foreign_slices for gpu in found):
        found = [replace(gpu, locked=True) for gpu in found]
    yield from (gpu if ground.ready else _away(gpu) for gpu in found)
    yield from _whole(pool, ground, sitting)


def _away(gpu: FleetGpu) -> FleetGpu:
    seats = tuple(one for one in gpu.slices if one.service or one.placement in gpu.foreign_slices)
    return replace(gpu, slices=seats, locked=True)


def _name(pool: str, ground: Ground, card: Card) -> str:
    return f"{pool}/{ground.name}/{card.index:02}"


def _cut(pool: str, ground: Ground, sitting: _Sitting) -> Iterator[FleetGpu]:
    """GPUs in MIG mode. Without an agent, pods are put on slices of theirs one after the other."""
    assumed = sitting.slices(ground.name, ground.board)
    for card in sorted(ground.cards, key=lambda card: card.index):
        seats, fixed = [], []
        for tile in sorted(card.tiles, key=lambda tile: tile.spot):
            if ground.tells_pods:
                holders = [ref for ref in tile.holders if ref not in sitting.leaving]
            else:
                waiting = assumed.get(tile.spot.profile)
                holders = [waiting.pop(0)] if waiting else []
            services = [sitting.of.get(ref) for ref in holders]
            seats.append(Seat(tile.spot.start, tile.spot.profile, next(iter(services), None)))
            if services and services[0] is None:
                fixed.append(tile.spot)
        yield FleetGpu(
            name=_name(pool, ground, card),
            gpu_model=pool,
            node=ground.name,
            slices=tuple(seats),
            foreign_slices=tuple(fixed),
            locked=card.fault is not None,
        )


def _whole(pool: str, ground: Ground, sitting: _Sitting) -> Iterator[FleetGpu]:
    holders = sitting.whole(ground.name)
    for at in range(ground.uncut):
        service = sitting.of.get(holders[at]) if at < len(holders) else None
        held = at < len(holders)
        yield FleetGpu(
            name=f"{pool}/{ground.name}/{WHOLE_GPU}-{at:02}",
            gpu_model=uncut(pool),
            node=ground.name,
            slices=tuple(Seat(spot.start, spot.profile, service) for spot in WHOLE_GPU_LAYOUT)
            if held
            else (),
            foreign_slices=WHOLE_GPU_LAYOUT if held and service is None else (),
            locked=not ground.ready,
        )


def _offers(
    view: PoolView, grounds: Sequence[Ground], can: Capabilities, gpus: Sequence[FleetGpu]
) -> Iterator[GpuOffer]:
    """GPUs in MIG mode are cut, the others are only to be had whole."""
    pool = view.pool.name
    board = grounds[0].board
    counts = Counter(gpu.gpu_model for gpu in gpus if not gpu.sunk)
    for name, cuts in ((pool, board.profiles), (uncut(pool), ())):
        yield GpuOffer(
            gpu_model=replace(board, name=name, profiles=cuts),
            price=_per_gpu_hour(view),
            max_gpus=counts[name],
            sibling_safe=can.sibling_safe,
            drains_node=name == pool and not can.knows_pods,
        )
