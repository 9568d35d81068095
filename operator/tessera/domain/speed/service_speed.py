"""The speed of a service: measured by Prometheus, and predicted for the same load.

A prediction for full replicas says nothing about half empty ones. So the step is predicted with
the load of the last five minutes: running requests, tokens in the cache, and prompts.
"""

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass

from tessera.api.inference_service import InferenceServiceSpec
from tessera.domain.money import Money, per_million_tokens
from tessera.domain.observed.snapshot import Pod, SpeedReading, reading_of
from tessera.domain.perf.roofline import arithmetic
from tessera.domain.perf.utilization import HardwarePeaks, hardware_peaks, mfu
from tessera.domain.placement.candidates import HardwareChoice
from tessera.domain.placement.checks import pooling_task, shape_of
from tessera.domain.sizing.predicted_steps import predicted_steps
from tessera.domain.sizing.sizing import ReplicaFit
from tessera.domain.slo.measurement import Objective, engine_edges

# At a lower rate the price of a token is not meaningful.
_MIN_TOKENS_PER_SECOND = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class InterTokenLatency:
    """Time between two tokens of an answer, in seconds."""

    mean: float
    median: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceSpeed:
    """The speed of one service, predicted and measured; None means "not known"."""

    model: str
    variant: str
    peaks: HardwarePeaks
    """Peaks of one device of a replica."""
    is_pooling: bool = False
    """Input tokens count, since its engines generate none."""
    requests: float = 0.0
    """Requests that finished within five minutes."""
    replica_capacity: float
    """Output tokens per second of one full replica; of a pooling model input tokens."""
    tokens_per_second: float | None = None
    """The same measured, of all replicas."""
    hourly: Money
    """Price of one replica for an hour."""
    replicas: int
    """Replicas that take requests."""
    sequences: float | None = None
    """Mean number of sequences in a step."""
    predicted: InterTokenLatency | None = None
    """ITL predicted for the observed load."""
    measured_mean: float | None = None
    """Measured mean ITL in seconds."""
    measured_median: float | None = None
    """Measured median ITL in seconds, interpolated within its bucket."""
    median_bucket: tuple[float, float] | None = None
    """Bounds of the histogram bucket in which the measured median is, in seconds."""
    kv_planned: int
    """Planned tokens in the KV cache of one replica."""
    kv_reported: int | None = None
    """Tokens in the KV cache of one replica as the engine reports."""
    kv_usage: float | None = None
    """Share of the KV cache in use."""
    mfu: float | None = None
    """Share of the peak operations (model FLOPs utilization)."""
    mbu: float | None = None
    """Share of the peak memory bandwidth (model bandwidth utilization)."""

    @property
    def capacity(self) -> float:
        """Return the tokens per second of all replicas that take requests, when full."""
        return self.replica_capacity * self.replicas

    @property
    def capacity_price(self) -> Money:
        """Return the price of a million of these tokens when full."""
        return per_million_tokens(self.hourly, self.replica_capacity)

    @property
    def price(self) -> Money | None:
        """Return the price of a million of these tokens now; None below 1 token per second."""
        rate = self.tokens_per_second
        if rate is None or rate < _MIN_TOKENS_PER_SECOND:
            return None
        return per_million_tokens(self.hourly.times(self.replicas), rate)

    @property
    def ratio(self) -> float | None:
        """Return the measured mean ITL divided by the predicted one."""
        if self.predicted is None or self.measured_mean is None:
            return None
        return self.measured_mean / self.predicted.mean

    @property
    def kv_error(self) -> float | None:
        """Return how much larger the engine's KV cache is than planned, as a share of the plan."""
        if self.kv_reported is None or not self.kv_planned:
            return None
        return self.kv_reported / self.kv_planned - 1


def service_speed(
    spec: InferenceServiceSpec,
    choice: HardwareChoice,
    pods: Sequence[Pod],
    readings: Sequence[SpeedReading],
) -> ServiceSpeed:
    """Return the speed of the chosen variant of a service."""
    fit = choice.fit
    serving = sum(pod.takes_requests and pod.variant == choice.variant for pod in pods)
    reading = reading_of(choice.variant, readings)
    peak, median = peaks_of(spec, fit), reading.median_itl_seconds
    flops, bytes_read = reading.flops_per_second, reading.bytes_per_second
    # An engine without --enable-mfu-metrics exposes the counters too, and they stay at zero.
    is_pooling = pooling_task(spec) is not None
    rate = reading.input_tokens_per_second if is_pooling else reading.tokens_per_second
    estimated = bool(flops) or not rate
    return ServiceSpeed(
        model=spec.model.uri,
        variant=choice.variant,
        peaks=peak,
        is_pooling=is_pooling,
        requests=reading.requests or 0.0,
        replica_capacity=fit.limits.tokens_per_second,
        hourly=choice.hourly,
        replicas=serving,
        tokens_per_second=rate,
        sequences=reading.sequences,
        predicted=predicted_itl(fit, reading),
        measured_mean=reading.itl_seconds,
        measured_median=median,
        median_bucket=None
        if median is None
        else bucket_of(median, engine_edges(Objective.ITL.engine_metric, spec.engine.version)),
        kv_planned=fit.memory.kv_tokens,
        # Of an encoder an engine reports its only block, which holds nothing.
        kv_reported=reading.kv_tokens if fit.memory.kv_tokens else None,
        kv_usage=reading.kv_usage,
        mfu=mfu(flops, peak.flops) if flops is not None and estimated else None,
        mbu=bytes_read / peak.bandwidth if bytes_read is not None and estimated else None,
    )


def peaks_of(spec: InferenceServiceSpec, fit: ReplicaFit) -> HardwarePeaks:
    """Return the peaks of one device of a replica, at the width in which it computes this model."""
    shape = shape_of(spec)
    narrow = shape is not None and arithmetic(shape, fit.precision, fit.hardware) == "fp8"
    device_peaks = hardware_peaks(fit.hardware, fp8=narrow)
    assert device_peaks is not None  # noqa: S101 - it computes at 8 bits only where it has that peak
    return device_peaks


def predicted_itl(fit: ReplicaFit, reading: SpeedReading) -> InterTokenLatency | None:
    """Return the predicted ITL at the load of a reading; None when the reading has no load.

    A step with a chunk of a prompt takes far longer than one without. So the mean weights both
    kinds of steps by their shares of the gaps, and the median is that of the more frequent kind.
    """
    steps = predicted_steps(fit, reading, reading.sequences, reading.prefill_tokens)
    if steps is None:
        return None
    decode, mixed, mixed_share, _ = steps
    if not mixed_share:
        return InterTokenLatency(mean=decode, median=decode)
    # While a request decodes, prompts of others come as often as at any time, with idle ones.
    weight = steps.busy_share * mixed_share / steps.mean
    mean = decode / (1 - weight * (mixed - decode))
    share = weight * mean
    return InterTokenLatency(mean=mean, median=mixed if share > 0.5 else decode)


def bucket_of(value: float, upper_bounds: Sequence[float]) -> tuple[float, float] | None:
    """Return the bucket in which a quantile was interpolated; None beyond the last bound."""
    index = bisect_left(upper_bounds, value)
    if index >= len(upper_bounds):
        return None
    return (upper_bounds[index - 1] if index else 0.0), upper_bounds[index]
