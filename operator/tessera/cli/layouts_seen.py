"""How the GPUs of pools are cut, who sits there and what is planned, as commands show it."""

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import TypeAlias

from tessera.api.meta import Condition
from tessera.api.mig import Mig, MigPlan, MigStatus
from tessera.cli.errors import CommandError, DeniedError
from tessera.cli.fleet import Fleet
from tessera.domain.mig.fleet import Slice
from tessera.domain.mig.layouts import Layout, Spot, geometry
from tessera.domain.pools import PoolView, discover
from tessera.domain.ref import Ref
from tessera.domain.repartition.backend import Capabilities
from tessera.domain.repartition.backends import backend_of
from tessera.domain.repartition.drawing import layouts_of
from tessera.domain.repartition.facts import Card, Ground
from tessera.domain.repartition.grounds import grounds
from tessera.domain.repartition.target import STEADY
from tessera.domain.repartition.usage import Seat, Usage, seats, usage
from tessera.domain.snapshot import Pod, Snapshot

Slices: TypeAlias = Mapping[tuple[str, int], tuple[Slice, ...]]
"""By node and index of the GPU."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SeenPool:
    """One pool now."""

    view: PoolView
    grounds: tuple[Ground, ...] = ()
    seats: tuple[Seat, ...] = ()
    services: Mapping[Ref, str] = field(default_factory=dict)
    """Of pods of ours: whose they are."""
    loads: Mapping[Ref, float] = field(default_factory=dict)
    """Activity of pods, as far as it was read."""

    @property
    def name(self) -> str:
        return self.view.pool.name

    @property
    def mig(self) -> Mig | None:
        return self.view.pool.spec.mig if self.view.pool.spec is not None else None

    @property
    def status(self) -> MigStatus:
        return self.view.pool.status.mig or MigStatus()

    @property
    def laid_out(self) -> Condition | None:
        """The condition of this name."""
        conditions = self.view.pool.status.conditions
        return next((one for one in conditions if one.type == "LaidOut"), None)

    @property
    def coming(self) -> MigPlan | None:
        """The plan that makes a difference to what is there: a proposed one, else the target."""
        if self.status.proposed is not None:
            return self.status.proposed
        target = self.status.target
        return target if target is not None and changes(self, target) else None

    @property
    def begins(self) -> datetime | None:
        """When the proposed plan is taken by itself if it still is the answer; None if approval is
        needed."""
        proposed = self.status.proposed
        if proposed is None or self.mig is None or self.mig.mode == "propose":
            return None
        return proposed.at + STEADY

    @property
    def usage(self) -> Usage:
        return usage(self.grounds, self.seats)

    @property
    def places_known(self) -> bool:
        return all(ground.tells_pods for ground in self.grounds)

    def load(self, seat: Seat) -> float | None:
        """Of the first that holds it and is known: nobody shares a slice."""
        return next((self.loads[pod] for pod in seat.holders if pod in self.loads), None)

    def whose(self, pod: Ref) -> str:
        """The service or batch of a pod; a pod of nobody known by its own name."""
        return self.services.get(pod, f"pod {pod}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """One GPU that a plan cuts otherwise."""

    node: str
    gpu: int
    before: Layout
    after: Layout
    leaving: tuple[Ref, ...] = ()
    """Pods that have to leave their slice, as far as the present shows."""

    @property
    def told(self) -> tuple[str, str]:
        """Both layouts; with places only where the counts alone are the same."""
        places_tell = geometry(self.before) == geometry(self.after)
        return _told(self.before, places_tell), _told(self.after, places_tell)


def layouts_seen(fleet: Fleet, name: str | None) -> tuple[SeenPool, ...]:
    """All pools, or the one of this name."""
    snapshot = fleet.snapshot
    views = discover(snapshot.pools, snapshot.nodes, snapshot.at.date())
    if not views and fleet.unread:
        raise DeniedError("; ".join(fleet.unread))
    if name is not None and name not in {view.pool.name for view in views}:
        known = ", ".join(view.pool.name for view in views) or "none"
        raise CommandError(f"there is no AcceleratorPool {name}; there are: {known}")
    return tuple(_seen(view, snapshot) for view in views if name in (None, view.pool.name))


def _seen(view: PoolView, snapshot: Snapshot) -> SeenPool:
    found = grounds(view, snapshot.nodes, snapshot.layouts)
    read = snapshot.readings.pods if snapshot.readings is not None else {}
    return SeenPool(
        view=view,
        grounds=found,
        seats=seats(found, snapshot.pods),
        services={pod.ref: _owner(pod) for pod in snapshot.pods},
        loads={ref: one.activity for ref, one in read.items() if one.activity is not None},
    )


def _owner(pod: Pod) -> str:
    return str(pod.service) if pod.batch_run is None else f"batch {pod.batch_run.batch}"


def changes(pool: SeenPool, plan: MigPlan) -> tuple[Change, ...]:
    """What the plan changes of what there is, in the order of nodes and GPUs."""
    wanted = _wanted(pool, plan)
    here: dict[str, list[Seat]] = defaultdict(list)
    for seat in pool.seats:
        here[seat.node].append(seat)
    can = backend_of(pool.mig or Mig(), pool.grounds).capabilities
    return tuple(
        Change(
            node=ground.name,
            gpu=card.index,
            before=card.layout,
            after=wanted[ground.name, card.index],
            leaving=_leaving(can, here[ground.name], card, wanted[ground.name, card.index]),
        )
        for ground, card in _cards(pool)
        if wanted[ground.name, card.index] != card.layout
    )


def _wanted(pool: SeenPool, plan: MigPlan) -> Mapping[tuple[str, int], Layout]:
    """Every GPU as it should be; one that the plan does not name as it is.

    Where a plan has no places, slices that are right by number are in theirs.
    """
    planned = layouts_of(plan, {ground.name: ground.board for ground in pool.grounds})
    pinned = {
        (node.node, gpu.gpu)
        for node in plan.nodes
        for gpu in node.gpus
        if "@" in "".join(gpu.slices)
    }
    found = {}
    for ground, card in _cards(pool):
        place = ground.name, card.index
        layout = planned.get(ground.name, {}).get(card.index, card.layout)
        alike = place not in pinned and geometry(layout) == geometry(card.layout)
        found[place] = card.layout if alike else layout
    return found


def movers(pool: SeenPool, plan: MigPlan) -> frozenset[Ref]:
    """Pods whose slice goes, or whose service the plan gives other slices."""
    planned = {one.service: one.profile for one in plan.services}
    found = {pod for change in changes(pool, plan) for pod in change.leaving}
    for seat in pool.seats:
        found |= {
            pod
            for pod in seat.holders
            if planned.get(pool.whose(pod), seat.spot.profile) != seat.spot.profile
        }
    return frozenset(found)


def _cards(pool: SeenPool) -> Iterator[tuple[Ground, Card]]:
    for ground in pool.grounds:
        for card in ground.cards:
            yield ground, card


def _leaving(
    can: Capabilities, seats_of_node: Sequence[Seat], card: Card, wanted: Layout
) -> tuple[Ref, ...]:
    """As the backend can: who holds a slice that goes, or one of the GPU, or one of the node."""
    found = {
        holder
        for seat in seats_of_node
        if seat.gpu == card.index or not can.knows_pods
        for holder in seat.holders
        if not (can.sibling_safe and seat.spot in wanted)
    }
    return tuple(sorted(found))


def present(pool: SeenPool) -> Slices:
    """GPUs as they are."""
    found: dict[tuple[str, int], list[Slice]] = {
        (ground.name, card.index): [] for ground, card in _cards(pool)
    }
    for seat in pool.seats:
        whose = pool.whose(seat.holders[0]) if seat.holders else None
        found[seat.node, seat.gpu].append(Slice(seat.spot.start, seat.spot.profile, whose))
    return {place: tuple(slices) for place, slices in found.items()}


def after(pool: SeenPool, plan: MigPlan) -> Slices:
    """GPUs as they will be, with the services that the plan gives them.

    Who sits on a slice that stays keeps it as long as the plan gives it such a slice; the rest is
    dealt by name, since replicas choose among equal slices themselves.
    """
    due = Counter({(one.service, one.profile): one.replicas for one in plan.services})
    layouts = _wanted(pool, plan)
    held = _staying(pool, layouts, due)
    waiting: dict[str, list[str]] = defaultdict(list)
    for (service, profile), count in sorted(due.items(), reverse=True):
        waiting[profile] += [service] * count
    return {
        place: tuple(
            Slice(spot.start, spot.profile, held.get((*place, spot)) or _next(waiting, spot))
            for spot in layout
        )
        for place, layout in layouts.items()
    }


def _staying(
    pool: SeenPool,
    layouts: Mapping[tuple[str, int], Layout],
    due: Counter[tuple[str, str]],
) -> dict[tuple[str, int, Spot], str]:
    """Slices that stay with who holds them; what they take of the plan is taken off `due`."""
    planned = {service for service, _ in due}
    held = {}
    for seat in pool.seats:
        if not seat.holders or seat.spot not in layouts[seat.node, seat.gpu]:
            continue
        whose = pool.whose(seat.holders[0])
        key = whose, seat.spot.profile
        if due[key] > 0:
            due[key] -= 1
        elif whose in planned:
            continue
        held[seat.node, seat.gpu, seat.spot] = whose
    return held


def _next(waiting: Mapping[str, list[str]], spot: Spot) -> str | None:
    left = waiting.get(spot.profile)
    return left.pop() if left else None


def _told(layout: Sequence[Spot], with_places: bool) -> str:
    if not layout:
        return "not cut"
    if with_places:
        return ", ".join(f"{spot.profile}@{spot.start}" for spot in layout)
    return ", ".join(f"{count}x {profile}" for profile, count in geometry(layout))
