"""The roofline: a device's peaks, and the shares of them that engines reach, give a step's time."""

from dataclasses import dataclass
from typing import Literal

from tessera.api.model_files import ModelShape
from tessera.api.variant_status import SpeedSource
from tessera.domain.hardware.device import Hardware
from tessera.domain.perf import footprint
from tessera.domain.perf.step import StepTime

Arithmetic = Literal["bf16", "fp8"]

# vLLM 0.30 to 0.33 multiply dense weights of these by Machete on compute capability 9.0
# (`MacheteLinearKernel.can_implement`), all others by kernels that were not measured.
_MACHETE_FORMATS, _MACHETE_GROUPS = ("int4", "awq", "gptq"), (None, 64, 128)
_ACTIVATION_BYTES = 2
# All-reduces of one layer: after attention and after the feed-forward part.
_REDUCTIONS = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class PeakShares:
    """Shares of its peaks, below 1, that a GPU family reaches with one kind of arithmetic."""

    weights: float
    """Share of the bandwidth while weights are read."""
    cache: float
    """Share of the bandwidth while the KV cache is read."""
    compute: float
    """Share of the peak operations in the layers."""
    attention: float
    """Share of the 16-bit peak operations in a prompt's attention."""
    unoverlapped: float
    """Share of the shorter of reading and computing that the longer does not hide."""
    link: float
    """Bytes per second between tensor-parallel devices."""
    layer_seconds: float
    """Time to launch one layer."""
    reduction_seconds: float
    """Latency of one all-reduce without payload."""
    sequence_seconds: float
    """Host time per sequence of a step."""
    step_seconds: float
    """Host time per step."""


def min_read_seconds(weight_bytes: float, bandwidth: float) -> float:
    """Return the least time of a decode step, in which every weight is read once."""
    return weight_bytes / bandwidth


def arithmetic(shape: ModelShape, precision: str | None, hardware: Hardware) -> Arithmetic:
    """Return the width in which the layers compute: 8 bits for fp8 weights on a device with fp8."""
    # All other narrow weights (fp8 on Ampere, 4 bits anywhere) are widened to 16 bits first.
    narrow = footprint.computes_in_fp8(shape, precision) and hardware.fp8_flops is not None
    return "fp8" if narrow else "bf16"


def takes_machete(shape: ModelShape, precision: str | None) -> bool:
    """Return whether weights of 4 bits lie as Machete takes them, in a model without experts."""
    if shape.active_parameters is not None or footprint.weight_bits(shape, precision) != 4:
        return False
    files = footprint.files_shape(shape, precision)
    return files.quantization in _MACHETE_FORMATS and files.group_size in _MACHETE_GROUPS


def roofline(
    shape: ModelShape,
    precision: str | None,
    hardware: Hardware,
    shares: PeakShares,
    source: SpeedSource = "Roofline",
) -> StepTime:
    """Return the step time of a model on one replica, tensor parallel over its devices."""
    size = hardware.devices
    width = shape.attention_heads * shape.head_dim
    bandwidth = hardware.bandwidth * size
    single_token_bytes = footprint.single_token_read_bytes(shape, precision)
    batch_bytes = footprint.batch_read_bytes(shape, precision)
    flops = peak_flops(shape, precision, hardware) * size * shares.compute
    reductions = _REDUCTIONS * shape.layers if size > 1 else 0
    # A ring all-reduce sends every value twice, less the device's own part.
    sent_bytes = 2 * (size - 1) / size * footprint.hidden_size(shape) * _ACTIVATION_BYTES
    weights = shares.weights
    # Without a causal mask every token attends to all others, not to half of them.
    pair_flops = (4 if shape.encoder_only else 2) * footprint.attention_layers(shape) * width
    pair = pair_flops / (hardware.bf16_flops * size * shares.attention)
    windowed_share = footprint.windowed_share(shape)
    token_bytes = footprint.cache_bytes_per_token(shape, size)
    windowed_bytes = footprint.windowed_bytes_per_token(shape, size)
    cache_bandwidth = bandwidth * shares.cache / size
    return StepTime(
        weights=min_read_seconds(single_token_bytes, bandwidth * weights),
        other_experts=min_read_seconds(batch_bytes - single_token_bytes, bandwidth * weights),
        unread_share=_unread_share(shape, single_token_bytes / batch_bytes),
        kv_token=(token_bytes - windowed_bytes) / cache_bandwidth,
        token=2 * footprint.active_parameters(shape) / flops,
        unoverlapped=shares.unoverlapped,
        pair=pair * (1 - windowed_share),
        window=shape.sliding_window or 0.0 if windowed_share else 0.0,
        windowed_token=windowed_bytes / cache_bandwidth,
        windowed_pair=pair * windowed_share,
        exchange=reductions * sent_bytes / shares.link,
        # A step reads and writes the whole state of each sequence.
        sequence=shares.sequence_seconds
        + 2 * footprint.state_bytes(shape, size) / (hardware.bandwidth * shares.cache),
        fixed=shares.step_seconds
        + shape.layers * shares.layer_seconds
        + reductions * shares.reduction_seconds,
        source=source,
    )


def _unread_share(shape: ModelShape, read_share: float) -> float:
    """Return the probability that one token leaves an expert out.

    A shape of unknown experts has that of its weights, which counts those of all tokens too.
    """
    if shape.experts is None or shape.experts_per_token is None:
        return 1 - read_share
    return max(0.0, 1 - shape.experts_per_token / shape.experts)


def peak_flops(shape: ModelShape, precision: str | None, hardware: Hardware) -> float:
    """Return the peak operations per second of one device in the width that the layers compute."""
    if arithmetic(shape, precision, hardware) == "fp8":
        return hardware.fp8_flops or hardware.bf16_flops
    return hardware.bf16_flops
