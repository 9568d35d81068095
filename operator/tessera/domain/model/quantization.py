"""`quantization_config` -> how the weights lie in memory."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from tessera.domain.model.config_keys import UnsupportedConfigError, part

Format = Literal["fp8", "int8", "int4", "awq", "gptq", "mxfp4", "nvfp4"]
# Weights that share a scale in the two formats of 4-bit floats.
MXFP4_GROUP = 32
NVFP4_GROUP = 16
# Where AWQ's configuration does not say it.
_DEFAULT_GROUP = 128
# Formats of the files of a listed precision; `int4` of compressed-tensors does not say how its
# numbers were found.
PRECISION_FORMATS: Mapping[str, tuple[Format, ...]] = {
    "awq-int4": ("awq", "int4"),
    "gptq-int4": ("gptq", "int4"),
    "int8": ("int8",),
    "fp8": ("fp8",),
    "nvfp4": ("nvfp4",),
    "mxfp4": ("mxfp4",),
}
# Methods that engines here do not serve, and what to take instead.
UNSUPPORTED_METHODS = {
    "bitsandbytes": "its kernels are slow and no longer served; take an FP8 or AWQ checkpoint, or "
    "the 16-bit files with fp8 in spec.precision.variants",
    "gguf": "it is made for other engines; take the safetensors files, for 4 bits an AWQ or GPTQ "
    "checkpoint",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Quantization:
    """What the files hold instead of 16-bit weights."""

    format: Format
    bits: Literal[4, 8]
    group_size: int | None = None


def read_quantization(config: Mapping[str, Any]) -> Quantization | None:
    """Read the format; None for plain weights, UnsupportedConfigError if no engine serves it."""
    section = part(config, "quantization_config") or part(config, "compression_config")
    if not section:
        return None
    method = str(section.get("quant_method", "")).lower()
    if method in UNSUPPORTED_METHODS:
        raise UnsupportedConfigError(
            f"quantization_config.quant_method {method}: {UNSUPPORTED_METHODS[method]}"
        )
    reader = _READERS.get(method)
    if reader is None:
        raise UnsupportedConfigError(
            f"quantization_config.quant_method {method or 'is missing and'} is not supported; "
            f"known are {', '.join(_READERS)}: take a checkpoint in one of these"
        )
    return reader(section)


def _read_fp8(_: Mapping[str, Any]) -> Quantization:
    return Quantization(format="fp8", bits=8)


def _read_awq(section: Mapping[str, Any]) -> Quantization:
    _read_bits(section.get("bits", section.get("w_bit")), "awq", (4,))
    return Quantization(
        format="awq", bits=4, group_size=_read_group_size(section) or _DEFAULT_GROUP
    )


def _read_gptq(section: Mapping[str, Any]) -> Quantization:
    bits = _read_bits(section.get("bits"), "gptq", (4, 8))
    return Quantization(format="gptq", bits=bits, group_size=_read_group_size(section))


def _read_modelopt(section: Mapping[str, Any]) -> Quantization:
    algorithm = str(section.get("quant_algo", "")).lower()
    if "fp4" in algorithm:
        return Quantization(format="nvfp4", bits=4, group_size=NVFP4_GROUP)
    if "fp8" in algorithm:
        return Quantization(format="fp8", bits=8)
    raise UnsupportedConfigError(
        f"quantization_config.quant_algo {algorithm or 'is missing and'} is not supported; known "
        "are FP8 and NVFP4"
    )


def _read_compressed(section: Mapping[str, Any]) -> Quantization:
    groups = part(section, "config_groups")
    weights = next((part(part(groups, name), "weights") for name in sorted(groups)), {})
    bits = _read_bits(weights.get("num_bits"), "compressed-tensors", (4, 8))
    group_size = _read_group_size(weights)
    if weights.get("type") == "float":
        if bits == 4:
            return Quantization(format="nvfp4", bits=4, group_size=group_size or NVFP4_GROUP)
        return Quantization(format="fp8", bits=8)
    return Quantization(format="int4" if bits == 4 else "int8", bits=bits, group_size=group_size)


def _read_bits(value: object, method: str, supported: tuple[Literal[4, 8], ...]) -> Literal[4, 8]:
    for bits in supported:
        if value == bits:
            return bits
    value = "none" if value is None else value
    raise UnsupportedConfigError(
        f"quantization_config of {method} has {value} bits; engines serve "
        f"{' and '.join(map(str, supported))}: take a checkpoint with these"
    )


def _read_group_size(section: Mapping[str, Any]) -> int | None:
    """Weights that share a scale; -1 means a whole row."""
    size = section.get("group_size", section.get("q_group_size"))
    return size if isinstance(size, int) and size > 0 else None


# By `quant_method`.
_READERS: Mapping[str, Callable[[Mapping[str, Any]], Quantization]] = {
    "fp8": _read_fp8,
    "fbgemm_fp8": _read_fp8,
    "awq": _read_awq,
    "gptq": _read_gptq,
    "mxfp4": lambda _: Quantization(format="mxfp4", bits=4, group_size=MXFP4_GROUP),
    "modelopt": _read_modelopt,
    "compressed-tensors": _read_compressed,
}
