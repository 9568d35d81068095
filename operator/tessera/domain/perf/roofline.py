"""The roofline: a device's peaks, and the shares of them that engines reach, give a step's time."""

from dataclasses import dataclass
from typing import Literal

from tessera.api.model_files import ModelShape
from tessera.api.variant_status import SpeedSource
from tessera.domain.hardware.device import Hardware
from tessera.domain.perf import footprint
from tessera.domain.perf.experts import ExpertsTime
from tessera.domain.perf.step import PredictionError, StepTime

Arithmetic = Literal["bf16", "fp8"]
# What computes experts in vLLM 0.30 to 0.33. `Fp8` is for weights that are loaded from 16-bit files
# with a scale for each expert: Triton on every GPU, since what is faster or slower elsewhere wants
# blocks or activations of a fixed scale. `Fp8Blocks` is for files with scales for blocks.
ExpertKernel = Literal["Bf16", "Fp8", "Fp8Blocks", "Int4", "Mxfp4"]

# vLLM 0.30 to 0.33 multiply dense weights of these by Machete on compute capability 9.0
# (`MacheteLinearKernel.can_implement`), all others by kernels that were not measured.
_MACHETE_FORMATS, _MACHETE_GROUPS = ("int4", "awq", "gptq"), (None, 64, 128)
_MACHETE_PRECISIONS = ("awq-int4", "gptq-int4")
_ACTIVATION_BYTES = 2
# All-reduces of one layer: after attention and after the feed-forward part.
_REDUCTIONS = 2
# A mixture whose tokens use nearly all experts is as good as dense.
_MAX_USED_SHARE = 0.999


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpertPeakShares:
    """Shares of its peaks that a GPU family reaches with one kernel of experts."""

    weights: float
    """Share of the bandwidth while experts are read."""
    compute: float
    """Share of the peak operations."""
    unoverlapped: float
    """Share of the shorter of reading and computing that the longer does not hide."""
    layer_seconds: float
    """Time to sort the tokens of one layer by expert and to launch the kernels."""
    prompt_row_seconds: float
    """Least time of a prompt's token in one expert of one layer."""
    prompt_tokens: float
    """Tokens of an expert up to which that applies."""
    prompt_experts: int
    """Experts of a layer up to which that applies."""


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
    experts: ExpertPeakShares | None = None
    """Of mixtures alone."""


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
    if not footprint.is_stored_in(shape, precision):
        # The usual files of a listed precision have groups of 128.
        return precision in _MACHETE_PRECISIONS
    return shape.quantization in _MACHETE_FORMATS and shape.group_size in _MACHETE_GROUPS


def expert_kernel(shape: ModelShape, precision: str | None, *, fp8: bool) -> ExpertKernel:
    """Return what computes the experts; `fp8` says whether the layers compute in 8 bits."""
    if fp8:
        return "Fp8" if precision == "fp8" and shape.quantization is None else "Fp8Blocks"
    if footprint.weight_bits(shape, precision) > 4:
        return "Bf16"
    return "Mxfp4" if (precision or shape.quantization) == "mxfp4" else "Int4"


def roofline(
    shape: ModelShape,
    precision: str | None,
    hardware: Hardware,
    shares: PeakShares,
    source: SpeedSource = "Roofline",
    error: PredictionError | None = None,
) -> StepTime:
    """Return the step time of a model on one replica, tensor parallel over its devices."""
    size = hardware.devices
    width = shape.attention_heads * shape.head_dim
    bandwidth = hardware.bandwidth * size
    reductions = _REDUCTIONS * shape.layers if size > 1 else 0
    # A ring all-reduce sends every value twice, less the device's own part.
    sent_bytes = 2 * (size - 1) / size * footprint.hidden_size(shape) * _ACTIVATION_BYTES
    # Without a causal mask every token attends to all others, not to half of them.
    pair_flops = (4 if shape.encoder_only else 2) * footprint.attention_layers(shape) * width
    pair = pair_flops / (hardware.bf16_flops * size * shares.attention)
    windowed_share = windowed_bytes = 0.0
    if shape.sliding_window is not None:
        windowed_share = footprint.windowed_share(shape)
        windowed_bytes = footprint.windowed_bytes_per_token(shape, size)
    token_bytes = footprint.cache_bytes_per_token(shape, size)
    cache_bandwidth = bandwidth * shares.cache / size
    read_bytes: float = footprint.batch_read_bytes(shape, precision)
    parameters: float = footprint.active_parameters(shape)
    peak = peak_flops(shape, precision, hardware) * size
    layer_seconds, experts = shares.layer_seconds, None
    if shares.experts is not None:
        weights = _expert_weights(shape, precision)
        read_bytes -= weights.read_bytes
        parameters -= weights.used_parameters
        layer_seconds += shares.experts.layer_seconds
        experts = _experts_time(shape, weights, shares.experts, bandwidth, peak)
    return StepTime(
        weights=min_read_seconds(read_bytes, bandwidth * shares.weights),
        kv_token=(token_bytes - windowed_bytes) / cache_bandwidth,
        token=2 * parameters / (peak * shares.compute),
        unoverlapped=shares.unoverlapped,
        experts=experts,
        pair=pair * (1 - windowed_share),
        window=shape.sliding_window or 0.0 if windowed_share else 0.0,
        windowed_token=windowed_bytes / cache_bandwidth,
        windowed_pair=pair * windowed_share,
        exchange=reductions * sent_bytes / shares.link,
        # A step reads and writes the whole state of each sequence.
        sequence=shares.sequence_seconds
        + 2 * footprint.state_bytes(shape, size) / (hardware.bandwidth * shares.cache),
        fixed=shares.step_seconds
        + shape.layers * layer_seconds
        + reductions * shares.reduction_seconds,
        source=source,
        error=error,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _ExpertWeights:
    """The weights of all experts of a mixture."""

    read_bytes: float
    used_share: float
    """Share of the experts that a single token uses."""
    used_parameters: float
    """Weights of experts that compute one token."""


def _expert_weights(shape: ModelShape, precision: str | None) -> _ExpertWeights:
    batch_bytes = footprint.batch_read_bytes(shape, precision)
    other_bytes = max(0, batch_bytes - footprint.single_token_read_bytes(shape, precision))
    share = _used_share(shape, 1 - other_bytes / batch_bytes)
    active = footprint.active_parameters(shape)
    others = max(0, shape.parameters - (shape.active_parameters or shape.parameters))
    return _ExpertWeights(
        # More than all weights only where the numbers of a shape contradict each other.
        read_bytes=min(batch_bytes, other_bytes / (1 - share)),
        used_share=share,
        used_parameters=min(active, others * share / (1 - share)),
    )


def _used_share(shape: ModelShape, read_share: float) -> float:
    """Return the share of the experts that a single token uses, below 1.

    That of a shape without a number of experts is the share of all weights that a token reads: each
    of them may be one of an expert.
    """
    experts, used = shape.experts or 0, shape.experts_per_token or 0
    share = used / experts if 0 < used < experts else read_share
    return min(share, _MAX_USED_SHARE)


def _experts_time(
    shape: ModelShape,
    weights: _ExpertWeights,
    shares: ExpertPeakShares,
    bandwidth: float,
    peak: float,
) -> ExpertsTime:
    rows = shape.layers * (shape.experts_per_token or 0)
    if (shape.experts or 0) > shares.prompt_experts:
        rows = 0
    return ExpertsTime(
        read=min_read_seconds(weights.read_bytes, bandwidth * shares.weights),
        unread_share=1 - weights.used_share,
        token=2 * weights.used_parameters / (peak * shares.compute),
        unoverlapped=shares.unoverlapped,
        # Devices share the width of each row, not the rows.
        prompt_token=rows * shares.prompt_row_seconds,
        prompt_tokens=shares.prompt_tokens / weights.used_share,
    )


def peak_flops(shape: ModelShape, precision: str | None, hardware: Hardware) -> float:
    """Return the peak operations per second of one device in the width that the layers compute."""
    if arithmetic(shape, precision, hardware) == "fp8":
        return hardware.fp8_flops or hardware.bf16_flops
    return hardware.bf16_flops
