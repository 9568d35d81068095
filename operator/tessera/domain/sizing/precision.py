"""Support of precisions by hardware and by the model's files."""

from dataclasses import dataclass

from tessera.api.model_files import ModelShape
from tessera.domain.hardware.device import Hardware
from tessera.domain.hardware.gpu_catalog import Product
from tessera.domain.model.quantization import PRECISION_FORMATS, UNSUPPORTED_METHODS

# Precisions of a 16-bit model: fp8 by online quantization, the others by quantized files.
ALTERNATIVES = ("fp8", "int8", "awq-int4", "gptq-int4", "nvfp4")
# The engine quantizes 16-bit files to this precision while loading them.
ONLINE_QUANTIZED = "fp8"
# The engine's images need at least this compute capability: CUDA 13 dropped older ones.
_MIN_CAPABILITY = (7, 5)
_BF16_CAPABILITY = (8, 0)
_INT8_REMOVED_IN = (10, 0)
# Compute capability from which kernels exist; those below the native one widen the weights.
_FORMAT_CAPABILITY = {"fp8": (8, 0), "mxfp4": (8, 0), "nvfp4": (8, 0)}
_NATIVE_FP8_CAPABILITY = (8, 9)
_NATIVE_NVFP4_CAPABILITY = (10, 0)


@dataclass(frozen=True, slots=True)
class UnsupportedPrecision:
    """A precision that hardware does not run."""

    hardware: Hardware
    precision: str
    message: str
    """Why, and what to use instead."""


def label(shape: ModelShape, precision: str | None) -> str:
    """Return the name of a precision; that of unquantized files is bf16."""
    return precision or shape.quantization or "bf16"


def mismatch_reason(
    shape: ModelShape, precision: str | None, *, own_files: bool = False
) -> str | None:
    """Return why the model's files do not allow a precision; None when they do.

    One with files of its own is allowed unless the model's are in the same.
    """
    if precision in UNSUPPORTED_METHODS:
        return f"{precision} is not served: {UNSUPPORTED_METHODS[precision]}"
    if precision is None or shape.quantization is None:
        return None
    if own_files and shape.quantization not in PRECISION_FORMATS.get(precision, ()):
        return None
    return (
        f"the files are quantized to {shape.quantization} already; remove {precision}, or use the "
        "model's 16-bit files"
    )


def unsupported_reason(shape: ModelShape, precision: str | None, product: Product) -> str | None:
    """Return why the product cannot run a precision and what to use instead; None if it can."""
    actual = compute_capability(product)
    format_name = label(shape, precision)
    capability = product.capability
    if actual < _MIN_CAPABILITY:
        return (
            f"the engine's images need compute capability 7.5, the GPU has {capability}; "
            "use a newer GPU"
        )
    if format_name == "bf16" and actual < _BF16_CAPABILITY:
        return (
            f"bfloat16 needs compute capability 8.0, the GPU has {capability}; use AWQ or "
            "GPTQ files, or a newer GPU"
        )
    if format_name == "int8" and actual >= _INT8_REMOVED_IN:
        return f"int8 kernels end before compute capability 10.0, the GPU has {capability}; use fp8"
    required = _FORMAT_CAPABILITY.get(format_name, _MIN_CAPABILITY)
    if actual < required:
        return (
            f"{format_name} needs compute capability {required[0]}.{required[1]}, the GPU has "
            f"{capability}; use AWQ or GPTQ files, or a newer GPU"
        )
    return None


def caveat(shape: ModelShape, precision: str | None, product: Product) -> str | None:
    """Return a limitation of a supported precision on the product; None without one."""
    format_name, actual = label(shape, precision), compute_capability(product)
    if format_name == "fp8" and actual < _NATIVE_FP8_CAPABILITY:
        return "fp8 weights only, computed in 16 bits"
    if format_name == "nvfp4":
        native = actual >= _NATIVE_NVFP4_CAPABILITY
        return (
            "predicted as if computed in 16 bits"
            if native
            else "nvfp4 weights only, computed in 16 bits"
        )
    return None


def compute_capability(product: Product) -> tuple[int, int]:
    """Return the compute capability as a comparable pair of major and minor."""
    major, minor = product.capability.split(".")
    return int(major), int(minor)
