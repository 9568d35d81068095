"""What an agent does next to a GPU so that it becomes as the operator wants it; pure.

Only what is idle goes, what is wanted and there already stays untouched, and asking again after
half of it was done leads to the rest.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias

from tessera.api.node_layout import DesiredGpu, GpuFault, MigMode, ObservedGpu, ObservedSlice
from tessera.domain.mig.boards import Board
from tessera.domain.mig.layouts import Spot, fault

Holders: TypeAlias = Mapping[str, tuple[str, ...]]
"""namespace/name of the pods that hold a device, by the device's UUID."""

_SHOWN = 8
"""Pods of one device that are told of."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Instance:
    """A GPU instance."""

    spot: Spot
    uuid: str = ""
    """Of the MIG device that fills it; empty while it is half made."""
    others: tuple[str, ...] = ()
    """MIG devices that fill only a part of it; Tessera makes none."""
    memory_mib: int = 0
    processes: int = 0

    @property
    def devices(self) -> tuple[str, ...]:
        return (self.uuid, *self.others) if self.uuid else self.others


@dataclass(frozen=True, slots=True, kw_only=True)
class Gpu:
    """One GPU as its driver tells."""

    index: int
    uuid: str
    product: str
    """Blanks as dashes."""
    memory_mib: int
    mode: MigMode
    board: Board | None = None
    """What may be cut; only asked for in MIG mode."""
    instances: tuple[Instance, ...] = ()
    """By start."""
    unreadable: str | None = None
    """Why its instances are not known."""


@dataclass(frozen=True, slots=True)
class Readout:
    """All that the driver of a node tells."""

    driver: str
    gpus: tuple[Gpu, ...] = ()


@dataclass(frozen=True, slots=True)
class Deed:
    """One step: an instance that goes, or one that is made or finished."""

    verb: Literal["create", "destroy"]
    spot: Spot

    def told(self) -> str:
        return f"{self.verb} {tile(self.spot)}"


@dataclass(frozen=True, slots=True)
class Trouble:
    """Why a GPU is not as it should be, and what to do."""

    fault: GpuFault
    message: str


@dataclass(frozen=True, slots=True)
class Cutting:
    """What is to be done now, in this order, and what cannot be."""

    deeds: tuple[Deed, ...] = ()
    trouble: Trouble | None = None


def cutting(gpu: Gpu, wanted: DesiredGpu, holders: Holders) -> Cutting:
    """The way from what is seen to what is wanted, as far as nobody is in it."""
    if trouble := obstacle(gpu, wanted):
        return Cutting(trouble=trouble)
    board = gpu.board
    if board is None:
        return Cutting()
    target = {_known(board, Spot(one.start, one.profile)) for one in wanted.slices}
    there = {_known(board, one.spot): one for one in gpu.instances}
    gone = [one for spot, one in there.items() if spot not in target or _foreign(one)]
    held = [one for one in gone if _holders(gpu, one, holders) or one.processes]
    deeds = [Deed("destroy", one.spot) for one in gone if one not in held]
    missing = sorted(spot for spot in target if spot not in there or not there[spot].uuid)
    blockers = tuple(one.spot for one in held)
    deeds += [
        Deed("create", spot)
        for spot in missing
        if spot not in blockers and fault(board, (*blockers, spot)) is None
    ]
    return Cutting(tuple(deeds), _in_use(gpu, held, holders))


def obstacle(gpu: Gpu, wanted: DesiredGpu) -> Trouble | None:
    """Why nothing at all can be done on the GPU."""
    if gpu.mode in ("enabling", "disabling"):
        return Trouble(
            "NeedsReset",
            f"MIG mode is {gpu.mode} and waits for a reset: empty the GPU, then run nvidia-smi "
            f"--gpu-reset -i {gpu.index} on the node, or restart the node",
        )
    if gpu.unreadable is not None:
        return Trouble("Unreadable", gpu.unreadable)
    if gpu.mode != "enabled" or gpu.board is None:
        if not wanted.slices:
            return None
        return Trouble(
            "CannotCut",
            f"MIG mode is {gpu.mode}, and Tessera never changes it: run nvidia-smi -i {gpu.index} "
            "-mig 1 on the node",
        )
    unknown = [one.profile for one in wanted.slices if gpu.board.cut(one.profile) is None]
    if unknown:
        known = ", ".join(cut.profile for cut in gpu.board.cuts)
        return Trouble("ProfileUnknown", f"{gpu.product} has no {unknown[0]}, but {known}")
    told = fault(gpu.board, [Spot(one.start, one.profile) for one in wanted.slices])
    return None if told is None else Trouble("CannotCut", f"no GPU can be cut so: {told}")


def seen(gpu: Gpu, holders: Holders, trouble: Trouble | None = None) -> ObservedGpu:
    """As the status tells it."""
    if trouble is None:
        trouble = obstacle(gpu, DesiredGpu(uuid=gpu.uuid))
    return ObservedGpu(
        index=gpu.index,
        uuid=gpu.uuid,
        product=gpu.product,
        memory_mib=gpu.memory_mib,
        mode=gpu.mode,
        slices=tuple(
            ObservedSlice(
                profile=one.spot.profile,
                start=one.spot.start,
                uuid=one.uuid,
                memory_mib=one.memory_mib,
                pods=tuple(sorted(set(_on(one, holders))))[:_SHOWN],
                processes=one.processes,
            )
            for one in gpu.instances
        ),
        pods=holders.get(gpu.uuid, ())[:_SHOWN],
        fault=trouble.fault if trouble else None,
        message=trouble.message[:500] if trouble else "",
    )


def tile(spot: Spot) -> str:
    """As plans spell it."""
    return f"{spot.profile}@{spot.start}"


def _known(board: Board, spot: Spot) -> Spot:
    """Under the board's own name of the profile."""
    cut = board.cut(spot.profile)
    return spot if cut is None else Spot(spot.start, cut.profile)


def _foreign(instance: Instance) -> bool:
    """Somebody filled it with smaller devices."""
    return bool(instance.others)


def _on(instance: Instance, holders: Holders) -> Iterator[str]:
    for device in instance.devices:
        yield from holders.get(device, ())


def _holders(gpu: Gpu, instance: Instance, holders: Holders) -> list[str]:
    return sorted({*_on(instance, holders), *holders.get(gpu.uuid, ())})


def _in_use(gpu: Gpu, held: list[Instance], holders: Holders) -> Trouble | None:
    if not held:
        return None
    told = []
    for one in held:
        pods = _holders(gpu, one, holders)
        whom = ", ".join(pods[:_SHOWN]) if pods else f"{one.processes} processes outside of pods"
        told.append(f"{tile(one.spot)} is held by {whom}")
    return Trouble("InUse", f"{'; '.join(told)}: it goes once they have ended")
