"""What Prometheus says of a service's engines, beside what the speed model says of the same load.

A prediction for full replicas says nothing of half empty ones. So the step is predicted with what
the steps of the last five minutes had in them: answers, tokens in the cache, and prompts.
"""

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

from tessera.api.inference_service import InferenceServiceSpec
from tessera.domain.money import Money, per_million_tokens
from tessera.domain.observed.snapshot import Pod, SpeedReading
from tessera.domain.perf.roofline import arithmetic
from tessera.domain.perf.utilization import HardwarePeaks, hardware_peaks, mfu
from tessera.domain.placement.checks import shape_of
from tessera.domain.placement.placement import HardwareChoice
from tessera.domain.sizing.sizing import ReplicaFit
from tessera.domain.vllm.facts import known_versions, version_facts

ITL_METRIC = "vllm:inter_token_latency_seconds"
# Tokens a second from which on a measured price of a token says something.
_MIN_TOKENS_PER_SECOND = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class InterTokenLatency:
    """Time between two tokens of an answer, in seconds."""

    mean: float
    median: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceSpeed:
    """One service, predicted and measured. None is "not known"."""

    model: str
    variant: str
    peaks: HardwarePeaks
    """Of one device of a replica."""
    requests: float = 0.0
    """Finished within five minutes."""
    replica_capacity: float
    """Output tokens a second of one replica that is full."""
    tokens_per_second: float | None = None
    """What they gave."""
    hourly: Money
    """Price of one replica."""
    replicas: int
    """Those that take requests."""
    sequences: float | None = None
    """Answers that a step worked on."""
    predicted: InterTokenLatency | None = None
    """For the load that was seen."""
    measured_mean: float | None = None
    measured_median: float | None = None
    median_bucket: tuple[float, float] | None = None
    """Between these bounds the measured median lies: more an engine's histogram does not tell."""
    kv_planned: int
    """Tokens of the cache of one replica."""
    kv_reported: int | None = None
    kv_usage: float | None = None
    """Share in use."""
    mfu: float | None = None
    """Share of the peak operations."""
    mbu: float | None = None
    """Share of the peak memory bandwidth."""

    @property
    def capacity(self) -> float:
        """Output tokens a second that the replicas which take requests give when full."""
        return self.replica_capacity * self.replicas

    @property
    def capacity_price(self) -> Money:
        """Of a million output tokens when full."""
        return per_million_tokens(self.hourly, self.replica_capacity)

    @property
    def price(self) -> Money | None:
        """Of a million of those that came; None while next to none come."""
        rate = self.tokens_per_second
        if rate is None or rate < _MIN_TOKENS_PER_SECOND:
            return None
        return per_million_tokens(self.hourly.times(self.replicas), rate)

    @property
    def ratio(self) -> float | None:
        """Measured by predicted time between tokens."""
        if self.predicted is None or self.measured_mean is None:
            return None
        return self.measured_mean / self.predicted.mean

    @property
    def kv_error(self) -> float | None:
        """By how much the engine has more than planned, as a share of the plan."""
        if self.kv_reported is None or not self.kv_planned:
            return None
        return self.kv_reported / self.kv_planned - 1


def service_speed(
    spec: InferenceServiceSpec,
    choice: HardwareChoice,
    pods: Sequence[Pod],
    readings: Sequence[SpeedReading],
) -> ServiceSpeed:
    """The speed of the chosen variant."""
    fit = choice.fit
    serving = sum(pod.takes_requests and pod.variant == choice.variant for pod in pods)
    reading = reading_of(choice.variant, readings)
    peak, median, estimated = (
        peaks_of(spec, fit),
        reading.median_itl_seconds,
        _has_estimates(reading),
    )
    flops, bytes_read = reading.flops_per_second, reading.bytes_per_second
    return ServiceSpeed(
        model=spec.model.uri,
        variant=choice.variant,
        peaks=peak,
        requests=reading.requests or 0.0,
        replica_capacity=fit.limits.tokens_per_second,
        hourly=choice.hourly,
        replicas=serving,
        tokens_per_second=reading.tokens_per_second,
        sequences=reading.sequences,
        predicted=predicted_itl(fit, reading),
        measured_mean=reading.itl_seconds,
        measured_median=median,
        median_bucket=None
        if median is None
        else bucket_of(median, itl_bucket_bounds(spec.engine.version)),
        kv_planned=fit.memory.kv_tokens,
        kv_reported=reading.kv_tokens,
        kv_usage=reading.kv_usage,
        mfu=mfu(flops, peak.flops) if flops is not None and estimated else None,
        mbu=bytes_read / peak.bandwidth if bytes_read is not None and estimated else None,
    )


def reading_of(variant: str, readings: Sequence[SpeedReading]) -> SpeedReading:
    """That of a variant; one without a name counts where it is the only one."""
    for reading in readings:
        if reading.variant == variant:
            return reading
    unlabeled = len(readings) == 1 and readings[0].variant is None
    return readings[0] if unlabeled else SpeedReading()


def peaks_of(spec: InferenceServiceSpec, fit: ReplicaFit) -> HardwarePeaks:
    """Of one device, or slice, of a replica, in the width in which it computes this model."""
    shape = shape_of(spec)
    narrow = shape is not None and arithmetic(shape, fit.precision, fit.hardware) == "fp8"
    device_peaks = hardware_peaks(fit.hardware, fp8=narrow)
    assert device_peaks is not None  # noqa: S101 - it computes at 8 bits only where it has that peak
    return device_peaks


def predicted_itl(fit: ReplicaFit, reading: SpeedReading) -> InterTokenLatency | None:
    """The time between tokens at the load that a reading tells; None when it tells none.

    Prompts come in chunks, and a step with a chunk takes far longer than one without. So the mean
    is that of both kinds by their shares, and the median is that of the more frequent kind.
    """
    resident = _resident_tokens(fit, reading)
    if not reading.sequences or resident is None:
        return None
    sequences = max(1, round(reading.sequences))
    kv_tokens = round(sequences * resident)
    decode = fit.step.seconds(decoding=sequences, kv_tokens=kv_tokens)
    chunk = min(reading.prompt_tokens or 0.0, fit.limits.max_num_batched_tokens - sequences)
    if chunk < 1 or not reading.prefill_tokens:
        return InterTokenLatency(mean=decode, median=decode)
    share = min(1.0, reading.prefill_tokens / chunk)
    mixed = fit.step.seconds(
        decoding=sequences,
        kv_tokens=kv_tokens,
        prefill_tokens=round(chunk),
        prefill_pairs=round(chunk * (reading.prompt_tokens or 0.0)),
    )
    mean = share * mixed + (1 - share) * decode
    return InterTokenLatency(mean=mean, median=mixed if share > 0.5 else decode)


@cache
def itl_bucket_bounds(version: str) -> tuple[float, ...]:
    """Of the buckets that an engine counts gaps in; of an unknown version those of the newest."""
    facts = version_facts(version) or version_facts(known_versions()[-1])
    return facts.metrics[ITL_METRIC].buckets if facts and ITL_METRIC in facts.metrics else ()


def bucket_of(value: float, upper_bounds: Sequence[float]) -> tuple[float, float] | None:
    """The bucket that a quantile was interpolated in; none beyond the last bound."""
    index = bisect_left(upper_bounds, value)
    if index >= len(upper_bounds):
        return None
    return (upper_bounds[index - 1] if index else 0.0), upper_bounds[index]


def _resident_tokens(fit: ReplicaFit, reading: SpeedReading) -> float | None:
    """Tokens in the cache for each running request; of means over the same time, the quotient
    holds whatever part of it nothing ran."""
    if not reading.running or reading.kv_usage is None:
        return None
    return reading.kv_usage * (reading.kv_tokens or fit.memory.kv_tokens) / reading.running


def _has_estimates(reading: SpeedReading) -> bool:
    """An engine that was not told to estimate has the counters, and they stand still."""
    return bool(reading.flops_per_second) or not reading.tokens_per_second
