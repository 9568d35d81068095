"""The GPUs of this node through NVML: what is cut, who computes on it, and the cutting itself."""

import asyncio
import contextlib
import threading
from collections.abc import Callable, Iterator
from ctypes import byref, c_uint
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import pynvml

from tessera.adapters.nvml_profiles import Kind, board, kinds, word
from tessera.api.node_layout import GpuFault, MigMode
from tessera.domain.cutting import Gpu, Instance, Readout, tile
from tessera.domain.mig.boards import Board
from tessera.domain.mig.layouts import Spot
from tessera.ports import GpuError

_MIB = 1 << 20
_FAULTS: dict[str, GpuFault] = {
    "IN_USE": "InUse",
    "RESET_REQUIRED": "NeedsReset",
    "GPU_IS_LOST": "NeedsReset",
    "NOT_SUPPORTED": "CannotCut",
    "INSUFFICIENT_RESOURCES": "CannotCut",
    "INVALID_ARGUMENT": "CannotCut",
    "NO_PERMISSION": "CannotCut",
}
_ADVICE = {
    "IN_USE": "no process shows, so a monitor may hold it: restart DCGM and its exporter",
    "RESET_REQUIRED": "empty the GPU and reset it, or restart the node",
    "GPU_IS_LOST": "reset the GPU, or restart the node",
    "NO_PERMISSION": "the agent has to run as root, and privileged in order to cut",
    "LIBRARY_NOT_FOUND": "the driver is not in this container: see node.runtimeClassName of the "
    "chart",
    "DRIVER_NOT_LOADED": "the driver is not loaded on this node",
}
T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Card:
    """What does not change about a GPU while the library is loaded."""

    product: str
    memory_mib: int
    kinds: tuple[Kind, ...] = ()
    board: Board | None = None

    def kind(self, spot: Spot) -> Kind:
        cut = self.board.cut(spot.profile) if self.board else None
        found = (kind for kind in self.kinds if cut and kind.constant == cut.constant)
        if kind := next(found, None):
            return kind
        known = ", ".join(kind.name for kind in self.kinds)
        raise GpuError("ProfileUnknown", f"{self.product} has no {spot.profile}, but {known}")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Place:
    """Where an instance stands, or would."""

    handle: Any
    card: _Card
    kind: Kind
    instance: Any | None = None

    def fills(self, slices: int) -> bool:
        return slices == self.kind.slices


class NvmlGpus:
    """`Gpus` over NVML, which is asked in threads, one call after the other.

    After any error the library is begun anew, since handles of a long session may go stale.
    """

    def __init__(self, nvml: Any = pynvml) -> None:
        self._nvml = nvml
        self._lock = threading.Lock()
        self._begun = False
        self._cards: dict[str, _Card] = {}
        self._parts: dict[tuple[str, str], tuple[Any, ...]] = {}
        """Profiles of compute instances by product and profile of what they stand in."""

    async def read(self, gpu: str | None = None) -> Readout:
        told = f"read {gpu or 'the GPUs'}"
        return await asyncio.to_thread(self._guarded, lambda: self._read(gpu), told, attempts=2)

    async def create(self, gpu: str, spot: Spot) -> None:
        told = f"create {tile(spot)}"
        await asyncio.to_thread(self._guarded, lambda: self._create(gpu, spot), told)

    async def destroy(self, gpu: str, spot: Spot) -> None:
        told = f"destroy {tile(spot)}"
        await asyncio.to_thread(self._guarded, lambda: self._destroy(gpu, spot), told)

    def _guarded(self, work: Callable[[], T], told: str, attempts: int = 1) -> T:
        with self._lock:
            for _ in range(attempts - 1):
                with contextlib.suppress(self._nvml.NVMLError):
                    return self._once(work)
            try:
                return self._once(work)
            except self._nvml.NVMLError as error:
                raise self._error(error, told) from error

    def _once(self, work: Callable[[], T]) -> T:
        try:
            if not self._begun:
                self._nvml.nvmlInit()
                self._begun = True
            return work()
        except self._nvml.NVMLError:
            self._end()
            raise

    def _end(self) -> None:
        self._cards.clear()
        self._parts.clear()
        if self._begun:
            self._begun = False
            with contextlib.suppress(self._nvml.NVMLError):
                self._nvml.nvmlShutdown()

    def _error(self, error: Exception, told: str) -> GpuError:
        found = word(self._nvml, error)
        advice = f"; {_ADVICE[found]}" if found in _ADVICE else ""
        fault = _FAULTS.get(found, "Unreadable")
        return GpuError(fault, f"{told}: the driver answers {found}{advice}")

    def _read(self, gpu: str | None) -> Readout:
        driver = self._nvml.nvmlSystemGetDriverVersion()
        if gpu is not None:
            handles = [self._nvml.nvmlDeviceGetHandleByUUID(gpu)]
        else:
            count = self._nvml.nvmlDeviceGetCount()
            handles = [self._nvml.nvmlDeviceGetHandleByIndex(index) for index in range(count)]
        found = tuple(self._gpu(handle) for handle in handles)
        if any(one.unreadable for one in found):
            self._end()
        return Readout(driver, found)

    def _gpu(self, handle: Any) -> Gpu:
        index = self._nvml.nvmlDeviceGetIndex(handle)
        mode = self._mode(handle)
        cut = mode in ("enabled", "disabling")
        uuid = self._nvml.nvmlDeviceGetUUID(handle)
        card = self._card(handle, uuid, cut=cut)
        gpu = Gpu(
            index=index,
            uuid=uuid,
            product=card.product,
            memory_mib=card.memory_mib,
            mode=mode,
            board=card.board,
        )
        if not cut:
            return gpu
        try:
            found = sorted(self._instances(handle, card), key=lambda one: one.spot)
        except self._nvml.NVMLError as error:
            told = self._error(error, f"read the slices of GPU {index}")
            return replace(gpu, unreadable=str(told))
        return replace(gpu, instances=tuple(found))

    def _mode(self, handle: Any) -> MigMode:
        try:
            current, pending = self._nvml.nvmlDeviceGetMigMode(handle)
        except self._nvml.NVMLError as error:
            if word(self._nvml, error) != "NOT_SUPPORTED":
                raise
            return "unsupported"
        if current != pending:
            return "enabling" if pending else "disabling"
        return "enabled" if current else "disabled"

    def _card(self, handle: Any, uuid: str, *, cut: bool) -> _Card:
        card = self._cards.get(uuid)
        if card is None:
            name = self._nvml.nvmlDeviceGetName(handle)
            memory = self._nvml.nvmlDeviceGetMemoryInfo(handle).total
            card = _Card(product=name.replace(" ", "-"), memory_mib=memory // _MIB)
        if cut and card.board is None:
            found = kinds(self._nvml, handle, card.product, card.memory_mib)
            card = replace(card, kinds=found, board=board(card.product, found))
        self._cards[uuid] = card
        return card

    def _instances(self, handle: Any, card: _Card) -> Iterator[Instance]:
        for kind in card.kinds:
            for instance in self._of_kind(handle, kind):
                start = self._nvml.nvmlGpuInstanceGetInfo(instance).placement.start
                yield self._instance(instance, card, kind, start)

    def _instance(self, instance: Any, card: _Card, kind: Kind, start: int) -> Instance:
        whole, parts, processes = "", [], 0
        for slices, compute in self._computes(instance, card, kind):
            device = self._nvml.nvmlComputeInstanceGetInfo(compute).device
            uuid = self._nvml.nvmlDeviceGetUUID(device)
            processes += len(self._nvml.nvmlDeviceGetComputeRunningProcesses(device))
            if slices == kind.slices:
                whole = uuid
            else:
                parts.append(uuid)
        return Instance(
            spot=Spot(start, kind.name),
            uuid=whole,
            others=tuple(sorted(parts)),
            memory_mib=kind.memory_mib,
            processes=processes,
        )

    def _of_kind(self, handle: Any, kind: Kind) -> list[Any]:
        found, count = (self._nvml.c_nvmlGpuInstance_t * kind.most)(), c_uint(0)
        self._nvml.nvmlDeviceGetGpuInstances(handle, kind.id, found, byref(count))
        return list(found[: count.value])

    def _computes(self, instance: Any, card: _Card, kind: Kind) -> Iterator[tuple[int, Any]]:
        """Compute instances in it, each with its slices."""
        for info in self._compute_kinds(instance, card, kind):
            found = (self._nvml.c_nvmlComputeInstance_t * info.instanceCount)()
            count = c_uint(0)
            self._nvml.nvmlGpuInstanceGetComputeInstances(instance, info.id, found, byref(count))
            for compute in found[: count.value]:
                yield info.sliceCount, compute

    def _compute_kinds(self, instance: Any, card: _Card, kind: Kind) -> tuple[Any, ...]:
        key = (card.product, kind.constant)
        if key not in self._parts:
            self._parts[key] = tuple(self._ask_compute_kinds(instance))
        return self._parts[key]

    def _ask_compute_kinds(self, instance: Any) -> Iterator[Any]:
        shared = self._nvml.NVML_COMPUTE_INSTANCE_ENGINE_PROFILE_SHARED
        for number in range(self._nvml.NVML_COMPUTE_INSTANCE_PROFILE_COUNT):
            try:
                yield self._nvml.nvmlGpuInstanceGetComputeInstanceProfileInfo(
                    instance, number, shared
                )
            except self._nvml.NVMLError as error:
                if word(self._nvml, error) not in ("NOT_SUPPORTED", "INVALID_ARGUMENT"):
                    raise

    def _found(self, gpu: str, spot: Spot) -> "_Place":
        handle = self._nvml.nvmlDeviceGetHandleByUUID(gpu)
        card = self._card(handle, gpu, cut=True)
        kind = card.kind(spot)
        for instance in self._of_kind(handle, kind):
            if self._nvml.nvmlGpuInstanceGetInfo(instance).placement.start == spot.start:
                return _Place(handle=handle, card=card, kind=kind, instance=instance)
        return _Place(handle=handle, card=card, kind=kind)

    def _create(self, gpu: str, spot: Spot) -> None:
        at = self._found(gpu, spot)
        instance = at.instance
        if instance is None:
            place = self._nvml.c_nvmlGpuInstancePlacement_t(start=spot.start, size=at.kind.size)
            instance = self._nvml.nvmlDeviceCreateGpuInstanceWithPlacement(
                at.handle, at.kind.id, byref(place)
            )
        elif any(at.fills(slices) for slices, _ in self._computes(instance, at.card, at.kind)):
            return
        try:
            infos = self._compute_kinds(instance, at.card, at.kind)
            whole = next((info.id for info in infos if at.fills(info.sliceCount)), None)
            if whole is None:
                raise GpuError("CannotCut", f"the driver has nothing that fills {tile(spot)}")
            self._nvml.nvmlGpuInstanceCreateComputeInstance(instance, whole)
        except self._nvml.NVMLError:
            with contextlib.suppress(self._nvml.NVMLError):
                self._nvml.nvmlGpuInstanceDestroy(instance)
            raise

    def _destroy(self, gpu: str, spot: Spot) -> None:
        at = self._found(gpu, spot)
        if at.instance is None:
            return
        computes = [compute for _, compute in self._computes(at.instance, at.card, at.kind)]
        for compute in computes:
            device = self._nvml.nvmlComputeInstanceGetInfo(compute).device
            if used := len(self._nvml.nvmlDeviceGetComputeRunningProcesses(device)):
                raise GpuError("InUse", f"{used} processes compute on {tile(spot)}")
        for compute in computes:
            self._nvml.nvmlComputeInstanceDestroy(compute)
        self._nvml.nvmlGpuInstanceDestroy(at.instance)
