"""Which precision runs on which hardware, and which agrees with the model's files."""

from tessera.api.inference_service import ModelShape
from tessera.domain.hardware.gpu_catalog import Product
from tessera.domain.model.quantization import UNSUPPORTED_METHODS

# As the files are.
CHECKPOINT = "own"
# Precisions that a 16-bit model can have: fp8 by loading, the others by other files of it.
ALTERNATIVES = ("fp8", "int8", "awq-int4", "gptq-int4")
# The one that engines make themselves while loading 16-bit files.
ONLINE_QUANTIZED = "fp8"
# Compute capability below which the engine's images do not run: CUDA 13 left it.
_MIN_CAPABILITY = (7, 5)
_BF16_CAPABILITY = (8, 0)
_INT8_REMOVED_IN = (10, 0)
# Compute capability from which there are kernels; those below the native one widen the weights.
_FORMAT_CAPABILITY = {"fp8": (8, 0), "mxfp4": (8, 0), "nvfp4": (8, 0)}
_NATIVE_FP8_CAPABILITY = (8, 9)


def label(shape: ModelShape, precision: str | None) -> str:
    """What a precision is called; that of plain files is bf16."""
    return precision or shape.quantization or "bf16"


def mismatch_reason(shape: ModelShape, precision: str | None) -> str | None:
    """Why a precision cannot be had from the model's files."""
    if precision in UNSUPPORTED_METHODS:
        return f"{precision} is not served: {UNSUPPORTED_METHODS[precision]}"
    if precision is None or shape.quantization is None:
        return None
    return (
        f"the files are quantised to {shape.quantization} already and the engine takes them as "
        f"they are; leave {precision} out, or take the model's 16-bit files"
    )


def unsupported_reason(shape: ModelShape, precision: str | None, product: Product) -> str | None:
    """Why hardware has no kernels for a precision, and what to do."""
    actual = compute_capability(product)
    format_name = label(shape, precision)
    if actual < _MIN_CAPABILITY:
        return f"the engine's images need compute capability 7.5 and it has {product.capability}"
    if format_name == "bf16" and actual < _BF16_CAPABILITY:
        return (
            f"bfloat16 needs compute capability 8.0 and it has {product.capability}; take AWQ or "
            "GPTQ files, or a newer GPU"
        )
    if format_name == "int8" and actual >= _INT8_REMOVED_IN:
        return "there are no int8 kernels from compute capability 10.0 on; take fp8"
    required = _FORMAT_CAPABILITY.get(format_name, _MIN_CAPABILITY)
    if actual < required:
        return (
            f"{format_name} needs compute capability {required[0]}.{required[1]} and it has "
            f"{product.capability}; take AWQ or GPTQ files, or a newer GPU"
        )
    return None


def caveat(shape: ModelShape, precision: str | None, product: Product) -> str | None:
    """What to know of a precision that runs."""
    if label(shape, precision) == "fp8" and compute_capability(product) < _NATIVE_FP8_CAPABILITY:
        return "fp8 weights only: it computes in 16 bits"
    return None


def compute_capability(product: Product) -> tuple[int, int]:
    """Its compute capability, to be compared."""
    major, minor = product.capability.split(".")
    return int(major), int(minor)
