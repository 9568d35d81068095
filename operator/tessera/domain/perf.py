"""How fast an engine steps: the only place that knows speed.

First form: a roofline. A step reads all weights and the resident KV cache once and computes every
token of the step; the slower of the two binds. The shares of the peak that engines reach, and the
fixed cost of a step, were set so that the published kernel measurements of vLLM (AIConfigurator's
operator tables, 8B to 70B models on A100 and H100) are met: most points within a fifth, the worst,
256 sequences over four A100, a third too fast. The tests hold those points. Nothing here was
measured in the user's cluster, and `SOURCE` says so.
"""

from dataclasses import dataclass

from tessera.api.inference_service import ModelShape
from tessera.domain import footprint
from tessera.domain.hardware import Hardware

SOURCE = "roofline"
LOAD_MIB_PER_SECOND = 100
"""Slowest loading of weights that still counts as starting."""

_BANDWIDTH_SHARE = 0.75
_COMPUTE_SHARE = 0.75
_FP8_COMPUTE_SHARE = 0.46
_STEP_SECONDS = 0.6e-3
_SEQUENCE_SECONDS = 4.4e-6
_ALL_REDUCE_SECONDS = 15e-6
"""One all-reduce over NVLink at the small sizes of decoding; two in every layer."""


def decode_floor_seconds(weight_bytes: float, bandwidth: float) -> float:
    """Least time of a decode step: every weight is read once (F07). Bytes, bytes/s -> seconds."""
    return weight_bytes / bandwidth


def ridge(peak_flops: float, bandwidth: float) -> float:
    """Arithmetic intensity at which compute starts to bind (F28). FLOP/s, bytes/s -> FLOP/byte."""
    return peak_flops / bandwidth


@dataclass(frozen=True, slots=True, kw_only=True)
class StepTime:
    """Seconds of one engine step as a function of what is in it."""

    weights: float
    """Reading all weights once."""
    kv_token: float
    """Reading the cache of one resident token."""
    token: float
    """Computing one token."""
    sequence: float = _SEQUENCE_SECONDS
    """Scheduling and sampling one sequence."""
    fixed: float = _STEP_SECONDS
    """What every step costs, all-reduces of tensor parallelism included."""

    def seconds(self, *, decoding: int, kv_tokens: int, prefill_tokens: int = 0) -> float:
        """Time of a step of `decoding` sequences with `kv_tokens` resident and a prefill chunk."""
        memory = self.weights + self.kv_token * kv_tokens
        compute = self.token * (decoding + prefill_tokens)
        return max(memory, compute) + self.fixed + self.sequence * decoding


def step_time(shape: ModelShape, precision: str | None, hardware: Hardware) -> StepTime:
    """The roofline of a model on one replica's hardware, tensor parallel over its devices."""
    size = hardware.devices
    bandwidth = hardware.bandwidth * _BANDWIDTH_SHARE * size
    if footprint.computes_in_fp8(shape, precision) and hardware.fp8_flops is not None:
        flops = hardware.fp8_flops * _FP8_COMPUTE_SHARE * size
    else:
        flops = hardware.bf16_flops * _COMPUTE_SHARE * size
    reductions = 2 * shape.layers if size > 1 else 0
    return StepTime(
        weights=decode_floor_seconds(footprint.read_bytes(shape, precision), bandwidth),
        kv_token=footprint.cache_bytes_per_token(shape, size) * size / bandwidth,
        token=2 * footprint.active_parameters(shape) / flops,
        fixed=_STEP_SECONDS + reductions * _ALL_REDUCE_SECONDS,
    )
