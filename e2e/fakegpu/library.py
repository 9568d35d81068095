"""NVML's shared library as pynvml loads it: C functions over pointers, each one plain call.

pynvml itself stays as it is, with its signatures, structs and exceptions; only what it would load
with `dlopen` is this.
"""

import ctypes
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import pynvml

from fakegpu.gpu_driver import Code, RefusedError
from fakegpu.nvml_session import Plain

# `call(name, *plain arguments)`; RefusedError for an error code.
Call = Callable[..., Plain]
Function = Callable[..., int]

_POINTER = ctypes.sizeof(ctypes.c_void_p)
_HANDLE = ("device", "gpuInstance")


class Library:
    """Its attributes are the functions; one that is not here is missing in the library too."""

    def __init__(self, call: Call) -> None:
        for name, function in _functions().items():
            setattr(self, name, _guarded(function, call))

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(name)


def _guarded(function: Callable[..., None], call: Call) -> Function:
    def guarded(*arguments: Any) -> int:
        try:
            function(call, *arguments)
        except RefusedError as refused:
            return refused.code
        return 0

    return guarded


def _functions() -> Mapping[str, Callable[..., None]]:
    versioned: dict[str, Callable[..., None]] = {
        "nvmlDeviceGetCount_v2": _number("nvmlDeviceGetCount"),
        "nvmlDeviceGetHandleByIndex_v2": _handle("nvmlDeviceGetHandleByIndex"),
        "nvmlDeviceGetGpuInstancePossiblePlacements_v2": _placements,
        "nvmlDeviceGetGpuInstanceProfileInfo": _struct(
            "nvmlDeviceGetGpuInstanceProfileInfo", pynvml.c_nvmlGpuInstanceProfileInfo_t
        ),
        "nvmlDeviceGetGpuInstanceProfileInfoV": _struct(
            "nvmlDeviceGetGpuInstanceProfileInfo", pynvml.c_nvmlGpuInstanceProfileInfo_v2_t
        ),
        "nvmlGpuInstanceGetComputeInstanceProfileInfo": _struct(
            "nvmlGpuInstanceGetComputeInstanceProfileInfo",
            pynvml.c_nvmlComputeInstanceProfileInfo_t,
        ),
        "nvmlGpuInstanceGetComputeInstanceProfileInfoV": _struct(
            "nvmlGpuInstanceGetComputeInstanceProfileInfo",
            pynvml.c_nvmlComputeInstanceProfileInfo_v2_t,
        ),
        "nvmlComputeInstanceGetInfo_v2": _struct(
            "nvmlComputeInstanceGetInfo", pynvml.c_nvmlComputeInstanceInfo_t
        ),
        "nvmlDeviceGetComputeRunningProcesses_v3": _processes,
    }
    return versioned | {
        "nvmlInitWithFlags": _nothing("nvmlInitWithFlags"),
        "nvmlShutdown": _nothing("nvmlShutdown"),
        "nvmlSystemGetDriverVersion": _text("nvmlSystemGetDriverVersion"),
        "nvmlDeviceGetHandleByUUID": _handle("nvmlDeviceGetHandleByUUID"),
        "nvmlDeviceGetUUID": _text("nvmlDeviceGetUUID"),
        "nvmlDeviceGetName": _text("nvmlDeviceGetName"),
        "nvmlDeviceGetIndex": _number("nvmlDeviceGetIndex"),
        "nvmlDeviceGetMemoryInfo": _struct("nvmlDeviceGetMemoryInfo", pynvml.c_nvmlMemory_t),
        "nvmlDeviceGetMigMode": _mode,
        "nvmlDeviceSetMigMode": _number("nvmlDeviceSetMigMode"),
        "nvmlDeviceGetGpuInstanceRemainingCapacity": _number(
            "nvmlDeviceGetGpuInstanceRemainingCapacity"
        ),
        "nvmlDeviceCreateGpuInstance": _handle("nvmlDeviceCreateGpuInstance"),
        "nvmlDeviceCreateGpuInstanceWithPlacement": _create_with_placement,
        "nvmlGpuInstanceDestroy": _nothing("nvmlGpuInstanceDestroy"),
        "nvmlDeviceGetGpuInstances": _handles("nvmlDeviceGetGpuInstances"),
        "nvmlDeviceGetGpuInstanceById": _handle("nvmlDeviceGetGpuInstanceById"),
        "nvmlGpuInstanceGetInfo": _struct("nvmlGpuInstanceGetInfo", pynvml.c_nvmlGpuInstanceInfo_t),
        "nvmlGpuInstanceCreateComputeInstance": _handle("nvmlGpuInstanceCreateComputeInstance"),
        "nvmlComputeInstanceDestroy": _nothing("nvmlComputeInstanceDestroy"),
        "nvmlGpuInstanceGetComputeInstances": _handles("nvmlGpuInstanceGetComputeInstances"),
        "nvmlDeviceIsMigDeviceHandle": _number("nvmlDeviceIsMigDeviceHandle"),
        "nvmlDeviceGetGpuInstanceId": _number("nvmlDeviceGetGpuInstanceId"),
        "nvmlDeviceGetComputeInstanceId": _number("nvmlDeviceGetComputeInstanceId"),
        "nvmlDeviceGetMaxMigDeviceCount": _number("nvmlDeviceGetMaxMigDeviceCount"),
        "nvmlDeviceGetMigDeviceHandleByIndex": _handle("nvmlDeviceGetMigDeviceHandleByIndex"),
        "nvmlDeviceGetDeviceHandleFromMigDeviceHandle": _handle(
            "nvmlDeviceGetDeviceHandleFromMigDeviceHandle"
        ),
    }


def _nothing(name: str) -> Callable[..., None]:
    def function(call: Call, *arguments: Any) -> None:
        call(name, *_plain(arguments))

    return function


def _number(name: str) -> Callable[..., None]:
    def function(call: Call, *arguments: Any) -> None:
        *inputs, out = arguments
        _uint(out).value = cast(int, call(name, *_plain(inputs)))

    return function


def _handle(name: str) -> Callable[..., None]:
    def function(call: Call, *arguments: Any) -> None:
        *inputs, out = arguments
        _write_handle(_address(out), cast(int, call(name, *_plain(inputs))))

    return function


def _text(name: str) -> Callable[..., None]:
    def function(call: Call, *arguments: Any) -> None:
        *inputs, out, length = arguments
        text = cast(str, call(name, *_plain(inputs))).encode() + b"\0"
        if len(text) > length.value:
            raise RefusedError(Code.INSUFFICIENT_SIZE)
        ctypes.memmove(_address(out), text, len(text))

    return function


def _struct(name: str, kind: type[ctypes.Structure]) -> Callable[..., None]:
    def function(call: Call, *arguments: Any) -> None:
        *inputs, out = arguments
        structure = kind.from_address(_address(out))
        values = cast(dict[str, Any], call(name, *_plain(inputs)))
        for key, value in values.items():
            if key == "placement":
                structure.placement.start, structure.placement.size = value
            elif key in _HANDLE:
                _write_handle(ctypes.addressof(structure) + getattr(kind, key).offset, value)
            elif hasattr(kind, key):
                setattr(structure, key, value.encode() if isinstance(value, str) else value)

    return function


def _handles(name: str) -> Callable[..., None]:
    """The buffer holds as many as the profile may have; the C function trusts it as well."""

    def function(call: Call, *arguments: Any) -> None:
        *inputs, out, count = arguments
        handles = cast(list[int], call(name, *_plain(inputs)))
        _uint(count).value = len(handles)
        for number, handle in enumerate(handles):
            _write_handle(_address(out) + number * _POINTER, handle)

    return function


def _mode(call: Call, device: Any, current: Any, pending: Any) -> None:
    modes = cast(list[int], call("nvmlDeviceGetMigMode", *_plain([device])))
    _uint(current).value, _uint(pending).value = modes


def _create_with_placement(call: Call, device: Any, profile: Any, placement: Any, out: Any) -> None:
    place = pynvml.c_nvmlGpuInstancePlacement_t.from_address(_address(placement))
    inputs = [*_plain([device, profile]), place.start, place.size]
    name = "nvmlDeviceCreateGpuInstanceWithPlacement"
    _write_handle(_address(out), cast(int, call(name, *inputs)))


def _placements(call: Call, device: Any, profile: Any, out: Any, count: Any) -> None:
    name = "nvmlDeviceGetGpuInstancePossiblePlacements"
    placements = cast(list[list[int]], call(name, *_plain([device, profile])))
    if out is not None:
        kind = pynvml.c_nvmlGpuInstancePlacement_t
        if _uint(count).value < len(placements):
            raise RefusedError(Code.INSUFFICIENT_SIZE)
        for place, (start, size) in zip(
            _array(out, kind, len(placements)), placements, strict=True
        ):
            place.start, place.size = start, size
    _uint(count).value = len(placements)


def _processes(call: Call, device: Any, count: Any, out: Any) -> None:
    name = "nvmlDeviceGetComputeRunningProcesses"
    processes = cast(list[dict[str, int]], call(name, *_plain([device])))
    capacity = _uint(count).value
    _uint(count).value = len(processes)
    if capacity < len(processes):
        raise RefusedError(Code.INSUFFICIENT_SIZE)
    if out is not None:
        kind = pynvml.c_nvmlProcessInfo_v2_t
        for process, values in zip(_array(out, kind, len(processes)), processes, strict=True):
            for key, value in values.items():
                setattr(process, key, value)


def _plain(arguments: Sequence[Any]) -> list[int | str]:
    return [_value(argument) for argument in arguments]


def _value(argument: Any) -> int | str:
    if isinstance(argument, int):
        return argument
    if isinstance(argument, ctypes.c_uint):
        return argument.value
    if isinstance(argument, ctypes.c_char_p):
        return (argument.value or b"").decode()
    return ctypes.cast(argument, ctypes.c_void_p).value or 0


def _address(argument: Any) -> int:
    """Of what `byref` was given, of an array or of a structure."""
    return ctypes.addressof(getattr(argument, "_obj", argument))


def _uint(argument: Any) -> ctypes.c_uint:
    return ctypes.c_uint.from_address(_address(argument))


def _array(argument: Any, kind: type[ctypes.Structure], length: int) -> Any:
    return (kind * length).from_address(_address(argument))


def _write_handle(address: int, handle: int) -> None:
    ctypes.c_void_p.from_address(address).value = handle
