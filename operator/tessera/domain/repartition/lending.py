"""Where everybody waits for somebody else's slice, GPUs are cut otherwise than planned for a while.

That takes nobody's slice: only GPUs that nobody uses, or the room beside the slices in use where
the backend leaves neighbours alone.
"""

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache

from tessera.api.mig import GpuTarget
from tessera.domain.mig.deal import place_geometry
from tessera.domain.mig.layouts import Layout
from tessera.domain.repartition.backend import Capabilities
from tessera.domain.repartition.facts import Card, Ground
from tessera.domain.repartition.goals import Goal, known
from tessera.domain.repartition.room import Room, Shortage, successor
from tessera.domain.repartition.units import Work

_COMPARED = 32
"""So many of the units that wait are compared, those with the fewest pods."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Waiting:
    """A unit that could begin if there were room."""

    work: Work
    shortages: Sequence[Shortage]


@dataclass(frozen=True, slots=True, kw_only=True)
class Loan:
    """GPUs of one node as they could be for a while."""

    goal: Goal
    gpus: tuple[int, ...]
    """Those that are cut anew; all of the node where no agent tells them apart."""
    instead: tuple[GpuTarget, ...]


def loan(
    waiting: Sequence[Waiting],
    there: Sequence[Goal],
    room: Room,
    can: Capabilities,
) -> Loan | None:
    """The first that lets one of the waiting units begin while nothing is in work."""
    lenders = [(goal, tuple(_spare(goal, room, can))) for goal in there]
    made = cache(lambda at, needs: _made(*lenders[at], dict(needs)))
    first = sorted(waiting, key=lambda one: (len(one.work.pods), one.work.ground.name))
    for one in first[:_COMPARED]:
        needs = Counter[str]()
        for shortage in one.shortages:
            needs[shortage.profile] = max(needs[shortage.profile], shortage.missing)
        without = {one.work.ground.name}
        for at, (goal, _) in enumerate(lenders):
            if goal.ground.name in without:
                continue
            offer = made(at, tuple(sorted(needs.items())))
            if offer is None or not (_unplanned(goal, offer) or _returns(one.work, room, can)):
                continue
            supply = room.supply(without)
            for card in goal.ground.cards:
                if card.index in offer:
                    supply.subtract(spot.profile for spot in card.layout)
                    supply.update(spot.profile for spot in offer[card.index])
            if not room.shortages(one.work.pods, supply):
                gpus = sorted(offer) if goal.ground.tells_pods else sorted(goal.wanted)
                instead = tuple(_target(gpu, offer[gpu]) for gpu in sorted(offer))
                return Loan(goal=goal, gpus=tuple(gpus), instead=instead)
    return None


def _unplanned(goal: Goal, made: Collection[int]) -> bool:
    """Nothing that is as planned would be undone."""
    return all(gpu in goal.differing for gpu in made)


def _returns(found: Work, room: Room, can: Capabilities) -> bool:
    """Whether all that leave have slices when the unit is cut, and the loan is over.

    Otherwise GPUs could lend to each other for ever.
    """
    after = room.supply(())
    for card in found.ground.cards:
        if card.index in found.wanted:
            after.subtract(tile.spot.profile for tile in card.tiles if not tile.holders)
            stay = {tile.spot for tile in card.tiles if tile.holders and can.sibling_safe}
            after.update(spot.profile for spot in found.wanted[card.index] if spot not in stay)
    for tenant in room.concerned(found.pods):
        gone = [one for one in tenant.replicas if one.pod in found.pods]
        after[successor(tenant, gone)] -= len(gone)
    return all(count >= 0 for count in after.values())


def _target(gpu: int, layout: Layout) -> GpuTarget:
    return GpuTarget(gpu=gpu, slices=tuple(f"{spot.profile}@{spot.start}" for spot in layout))


def _made(
    goal: Goal, spare: Sequence[tuple[Card, Layout]], needs: Mapping[str, int]
) -> dict[int, Layout] | None:
    """GPUs of the node that offer all that is needed besides what is used on them."""
    left, made = Counter(needs), dict[int, Layout]()
    for card, kept in spare:
        if card.index in made:
            continue
        layout = kept
        for profile in sorted(left.elements(), key=lambda one: _size(goal.ground, one)):
            grown = place_geometry(goal.ground.board, ((profile, 1),), layout)
            if grown is not None:
                layout = grown
                left[profile] -= 1
        if layout != kept:
            made[card.index] = layout
        if not +left:
            return made
    return None


def _spare(goal: Goal, room: Room, can: Capabilities) -> Iterator[tuple[Card, Layout]]:
    """GPUs with the slices that have to stay; first as they are, then without the unused ones."""
    ground = goal.ground
    pods = room.on_nodes.get(ground.name, ())
    told = {pod for card in ground.cards for tile in card.tiles for pod in tile.holders}
    knows = can.knows_pods and ground.tells_pods
    if any(one.pod not in told for one in pods):
        return
    free: list[tuple[Card, Layout]] = []
    for card in ground.cards:
        if card.fault is not None or card.index not in goal.wanted:
            continue
        used = known(
            ground.board,
            tuple(tile.spot for tile in card.tiles if tile.holders or tile.processes),
        )
        if knows and can.sibling_safe:
            yield card, known(ground.board, card.layout)
        if not used or (knows and can.sibling_safe):
            free.append((card, used))
    yield from free


def _size(ground: Ground, profile: str) -> tuple[int, str]:
    cut = ground.board.find_profile(profile)
    return -(cut.memory_slices if cut else 0), profile
