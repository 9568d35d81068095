"""`quantization_config` -> how the weights lie in memory."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from tessera.domain.model.keys import PuzzleError, part

Format = Literal["fp8", "int8", "int4", "awq", "gptq", "mxfp4", "nvfp4"]
_MXFP4_GROUP = 32
_NVFP4_GROUP = 16
_GROUP = 128
"""Where AWQ's configuration does not say it."""
REFUSED = {
    "bitsandbytes": "its kernels are slow and no longer served; take an FP8 or AWQ checkpoint, or "
    "the 16-bit files with fp8 in spec.precision.variants",
    "gguf": "it is made for other engines; take the safetensors files, for 4 bits an AWQ or GPTQ "
    "checkpoint",
}
"""Methods that engines here do not serve, and what to take instead."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Quantized:
    """What the files hold instead of 16-bit weights."""

    format: Format
    bits: Literal[4, 8]
    group_size: int | None = None


def quantized(config: Mapping[str, Any]) -> Quantized | None:
    """None for plain weights; PuzzleError for formats that no engine here serves."""
    found = part(config, "quantization_config") or part(config, "compression_config")
    if not found:
        return None
    method = str(found.get("quant_method", "")).lower()
    if method in REFUSED:
        raise PuzzleError(f"quantization_config.quant_method {method}: {REFUSED[method]}")
    reader = _READERS.get(method)
    if reader is None:
        raise PuzzleError(
            f"quantization_config.quant_method {method or 'is missing and'} is not foreseen; known "
            f"are {', '.join(_READERS)}: take a checkpoint in one of these"
        )
    return reader(found)


def _fp8(_: Mapping[str, Any]) -> Quantized:
    return Quantized(format="fp8", bits=8)


def _mxfp4(_: Mapping[str, Any]) -> Quantized:
    return Quantized(format="mxfp4", bits=4, group_size=_MXFP4_GROUP)


def _awq(found: Mapping[str, Any]) -> Quantized:
    _bits(found.get("bits", found.get("w_bit")), "awq", (4,))
    return Quantized(format="awq", bits=4, group_size=_group(found) or _GROUP)


def _gptq(found: Mapping[str, Any]) -> Quantized:
    bits = _bits(found.get("bits"), "gptq", (4, 8))
    return Quantized(format="gptq", bits=bits, group_size=_group(found))


def _modelopt(found: Mapping[str, Any]) -> Quantized:
    algorithm = str(found.get("quant_algo", "")).lower()
    if "fp4" in algorithm:
        return Quantized(format="nvfp4", bits=4, group_size=_NVFP4_GROUP)
    if "fp8" in algorithm:
        return Quantized(format="fp8", bits=8)
    raise PuzzleError(
        f"quantization_config.quant_algo {algorithm or 'is missing and'} is not foreseen; known "
        "are FP8 and NVFP4"
    )


def _compressed(found: Mapping[str, Any]) -> Quantized:
    groups = part(found, "config_groups")
    weights = next((part(part(groups, name), "weights") for name in sorted(groups)), {})
    bits = _bits(weights.get("num_bits"), "compressed-tensors", (4, 8))
    size = _group(weights)
    if weights.get("type") == "float":
        if bits == 4:
            return Quantized(format="nvfp4", bits=4, group_size=size or _NVFP4_GROUP)
        return Quantized(format="fp8", bits=8)
    return Quantized(format="int4" if bits == 4 else "int8", bits=bits, group_size=size)


def _bits(told: object, method: str, served: tuple[Literal[4, 8], ...]) -> Literal[4, 8]:
    for bits in served:
        if told == bits:
            return bits
    told = "none" if told is None else told
    raise PuzzleError(
        f"quantization_config of {method} has {told} bits; engines serve "
        f"{' and '.join(map(str, served))}: take a checkpoint with these"
    )


def _group(found: Mapping[str, Any]) -> int | None:
    """Weights that share a scale; -1 means a whole row."""
    told = found.get("group_size", found.get("q_group_size"))
    return told if isinstance(told, int) and told > 0 else None


_READERS: Mapping[str, Callable[[Mapping[str, Any]], Quantized]] = {
    "fp8": _fp8,
    "fbgemm_fp8": _fp8,
    "awq": _awq,
    "gptq": _gptq,
    "mxfp4": _mxfp4,
    "modelopt": _modelopt,
    "compressed-tensors": _compressed,
}
"""By `quant_method`."""
