"""What is cut anew at once: some GPUs of a node, who has to leave for that, what forbids it."""

from collections.abc import Collection, Iterator
from dataclasses import dataclass

from tessera.domain.mig.layouts import SlicePlacement
from tessera.domain.reasons import LayoutReady, StatusVerdict
from tessera.domain.ref import Ref
from tessera.domain.repartition.backend import Capabilities, Layouts
from tessera.domain.repartition.facts import Card, Ground, Tile
from tessera.domain.repartition.goals import Goal, known
from tessera.domain.repartition.room import Room

_FAULTS = {
    "NeedsReset": LayoutReady.GPU_RESET_REQUIRED,
    "Unreadable": LayoutReady.NODE_NOT_READY,
    "ProfileUnknown": LayoutReady.UNKNOWN_PROFILE,
}
"""Those of which cutting again does not help."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """Some GPUs of a node, with what holds their slices that go."""

    ground: Ground
    gpus: tuple[int, ...]
    wanted: Layouts
    """Of these GPUs."""
    pods: frozenset[Ref]
    """Replicas that have to leave."""
    unseen: tuple[Ref, ...] = ()
    """Replicas on the node that may sit on a slice that goes: no agent has told yet."""
    held: tuple[str, ...] = ()
    """What else is on slices that go, in words."""
    vacant: frozenset[str] = frozenset()
    """Profiles of slices that go and that nobody holds."""

    @property
    def free(self) -> bool:
        """Nobody is on the slices that go, by all that is known."""
        return not (self.pods or self.unseen or self.held)


def work(
    ground: Ground, wanted: Layouts, gpus: Collection[int], room: Room, can: Capabilities
) -> Work:
    """Who has to leave when these GPUs are cut as wanted."""
    mine = room.on_nodes.get(ground.name, ())
    chosen = {gpu: wanted[gpu] for gpu in sorted(gpus)}
    if not (can.knows_pods and ground.tells_pods):
        pods = frozenset(one.pod for one in mine if chosen)
        return Work(ground=ground, gpus=tuple(chosen), wanted=chosen, pods=pods)
    going = [
        (card, tile)
        for card in ground.cards
        if card.index in chosen
        for tile in doomed_tiles(ground, card, chosen, can)
    ]
    holders = {pod for _, tile in going for pod in tile.holders}
    told = {pod for card in ground.cards for tile in card.tiles for pod in tile.holders}
    empty = {tile.spot.profile for _, tile in going if not tile.holders}
    return Work(
        ground=ground,
        gpus=tuple(chosen),
        wanted=chosen,
        pods=frozenset(pod for pod in holders if pod in room.owner),
        unseen=tuple(
            sorted(one.pod for one in mine if one.pod not in told and one.profile in empty)
        ),
        vacant=frozenset(empty),
        held=tuple(
            _held(ground, card, tile, room)
            for card, tile in going
            if (not tile.holders and tile.processes)
            or any(pod not in room.owner for pod in tile.holders)
        ),
    )


def doomed_tiles(ground: Ground, card: Card, wanted: Layouts, can: Capabilities) -> Iterator[Tile]:
    """Slices that go: all of the GPU, unless its neighbours may stay."""
    stay = set(wanted[card.index]) if can.sibling_safe else set[SlicePlacement]()
    for tile in card.tiles:
        if known(ground.board, (tile.spot,))[0] not in stay:
            yield tile


def _held(ground: Ground, card: Card, tile: Tile, room: Room) -> str:
    place = f"{tile.spot.profile}@{tile.spot.start} of GPU {card.index} of {ground.name}"
    others = [str(pod) for pod in tile.holders if pod not in room.owner]
    if others:
        return f"{', '.join(others)} on {place}"
    return f"{tile.processes} processes on {place}"


def hindrance(
    goal: Goal, gpu: int, room: Room, can: Capabilities, own: Collection[Ref]
) -> StatusVerdict[LayoutReady] | None:
    """Why this GPU cannot be cut as wanted, however long it is waited for room."""
    ground = goal.ground
    card = next(one for one in ground.cards if one.index == gpu)
    place = f"GPU {gpu} of {ground.name}"
    if card.fault in _FAULTS:
        told = card.message or f"the agent says {card.fault}"
        return StatusVerdict(_FAULTS[card.fault], f"{place}: {told}{_MEND.get(card.fault, '')}")
    if not (can.knows_pods and ground.tells_pods):
        return None
    for tile in doomed_tiles(ground, card, goal.wanted, can):
        slice_ = f"{tile.spot.profile}@{tile.spot.start} of {place}"
        for pod in tile.holders:
            if pod not in own:
                return StatusVerdict(
                    LayoutReady.UNMANAGED_POD,
                    f"the pod {pod} is not Tessera's and holds {slice_}, which has to go; delete "
                    "it or move it to another node",
                )
            if pod not in room.owner:
                return StatusVerdict(
                    LayoutReady.REPARTITIONING,
                    f"waits for the pod {pod} on {slice_} to end by itself",
                )
        if tile.processes and not tile.holders:
            return StatusVerdict(
                LayoutReady.GPU_IN_USE,
                f"{tile.processes} processes of no pod compute on {slice_}, which has to go; end "
                "them on the node",
            )
    return None


_MEND = {"NeedsReset": "; drain the node and reset the GPU or restart the node"}


def unavailable(goal: Goal) -> StatusVerdict[LayoutReady] | None:
    """Why nothing of this node can be cut now."""
    ground = goal.ground
    if ground.disagrees:
        return StatusVerdict(
            LayoutReady.INCONSISTENT_LABELS,
            f"{ground.name} is left alone: {ground.disagrees}; correct its labels, or restart its "
            "device plugin and GPU feature discovery",
        )
    if not ground.ready:
        return StatusVerdict(
            LayoutReady.NODE_NOT_READY,
            f"the node {ground.name} is not ready or takes no pods, and {len(goal.differing)} of "
            "its GPUs have to be cut anew; repair or uncordon it",
        )
    return None


def incomplete(goal: Goal) -> StatusVerdict[LayoutReady] | None:
    """What of the plan no GPU of the node can become."""
    if goal.impossible:
        return StatusVerdict(LayoutReady.UNKNOWN_PROFILE, goal.impossible[0])
    if goal.absent and not goal.ground.disagrees:
        missing = ", ".join(map(str, goal.absent))
        return StatusVerdict(
            LayoutReady.NODE_NOT_READY,
            f"GPU {missing} of {goal.ground.name} is not there in MIG mode, but the plan cuts it; "
            "turn MIG mode on, which Tessera never does, or repair the GPU",
        )
    return None
