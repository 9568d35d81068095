"""Who sits on the slices of a pool, and which part of its GPUs is paid for nothing."""

from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from enum import StrEnum
from functools import cache

from tessera.domain.mig.boards import WHOLE_GPU, GpuModel
from tessera.domain.mig.layouts import SlicePlacement
from tessera.domain.money import slice_weight
from tessera.domain.ref import Ref
from tessera.domain.repartition.devices import profile_of
from tessera.domain.repartition.facts import Card, Ground, Tile
from tessera.domain.snapshot import Pod


class SliceState(StrEnum):
    """What is to be said of a slice."""

    USED = "used"
    IDLE = "idle"
    DOOMED = "doomed"
    """Who holds it has to leave it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Seat:
    """A slice that exists, with who holds it."""

    node: str
    gpu: int
    spot: SlicePlacement
    share: Decimal
    """Of the price of its GPU."""
    state: SliceState
    holders: tuple[Ref, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """Of the GPUs of a pool that are in MIG mode; shares are in prices of one GPU."""

    gpus: int = 0
    slices: Mapping[tuple[str, SliceState], int]
    idle: Decimal
    """Slices that nobody holds."""
    stranded: Decimal
    """What no slice covers."""


@cache
def share(board: GpuModel, profile: str) -> Decimal:
    """What a slice is billed, as a share of its GPU."""
    cut = board.find_profile(profile)
    if cut is None:
        return Decimal(profile == WHOLE_GPU)
    compute = cut.compute_slices, board.compute_slices
    return slice_weight(compute, (cut.memory_slices, board.memory_slices))


def seats(
    grounds: Sequence[Ground], pods: Sequence[Pod], doomed: Collection[Ref] = ()
) -> tuple[Seat, ...]:
    """All slices by node, GPU and start.

    Where no agent tells who holds which, the engines of a node are taken to hold the first slices
    of their profile, so that counts are right and places are not.
    """
    here: dict[str, list[Pod]] = defaultdict(list)
    for pod in pods:
        if pod.node is not None and pod.ended is None:
            here[pod.node].append(pod)
    return tuple(
        Seat(
            node=ground.name,
            gpu=card.index,
            spot=tile.spot,
            share=share(ground.board, tile.spot.profile),
            state=_state(tile, holders, doomed),
            holders=holders,
        )
        for ground in sorted(grounds, key=_name)
        for card, tile, holders in _held(ground, here.get(ground.name, ()))
    )


def usage(grounds: Sequence[Ground], found: Sequence[Seat]) -> Usage:
    """The sums over the seats of these grounds."""
    gpus = sum(len(ground.cards) for ground in grounds)
    return Usage(
        gpus=gpus,
        slices=Counter((one.spot.profile, one.state) for one in found),
        idle=sum((one.share for one in found if one.state is SliceState.IDLE), Decimal(0)),
        stranded=gpus - sum((one.share for one in found), Decimal(0)),
    )


def _name(ground: Ground) -> str:
    return ground.name


def _state(tile: Tile, holders: tuple[Ref, ...], doomed: Collection[Ref]) -> SliceState:
    if any(holder in doomed for holder in holders):
        return SliceState.DOOMED
    return SliceState.USED if holders or tile.processes else SliceState.IDLE


def _held(ground: Ground, pods: Sequence[Pod]) -> Iterator[tuple[Card, Tile, tuple[Ref, ...]]]:
    waiting: dict[str, list[Ref]] = defaultdict(list)
    for pod in sorted(pods, key=_ref, reverse=True):
        for resource, count in pod.devices.items():
            if (profile := profile_of(ground.board, resource)) is not None:
                waiting[profile] += [pod.ref] * count
    for card in ground.cards:
        for tile in card.tiles:
            if ground.tells_pods:
                yield card, tile, tile.holders
                continue
            left = waiting[tile.spot.profile]
            yield card, tile, (left.pop(),) if left else ()


def _ref(pod: Pod) -> Ref:
    return pod.ref
