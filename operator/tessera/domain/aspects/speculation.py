"""Speculative decoding, whether and where it gains: Speculating, status.speculation."""

import math
from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta
from decimal import Decimal

from tessera.api.inference_service import InferenceServiceSpec
from tessera.api.reasons import Speculating, StatusVerdict
from tessera.api.service_status import SpeculationStatus
from tessera.api.text import counted
from tessera.domain.aspects.aspect import Aspect, Explanation, Measurements, PlacedService, Reported
from tessera.domain.incremental import Until
from tessera.domain.observed.drafts import HIGHEST_LOW_TEMPERATURE, DraftCounts, TemperatureClass
from tessera.domain.observed.snapshot import Readings, Snapshot, SpeedReading, reading_of
from tessera.domain.perf import footprint
from tessera.domain.perf.engine_terms import draft_shape, engine_terms
from tessera.domain.perf.speculation import acceptance_of
from tessera.domain.placement.checks import shape_of
from tessera.domain.reporting.series import Sample, Series
from tessera.domain.reporting.transitions import transitions
from tessera.domain.service.speculation import (
    LOSING_TIME,
    MIN_ACCEPTANCE,
    MIN_DRAFTED_TOKENS,
    OFF_TIME,
    break_even_sequences,
    next_speculation_status,
    speculation_verdict,
    typical_resident_tokens,
)
from tessera.domain.sizing.sizing import MIB, ReplicaFit

_MINUTES = counted(LOSING_TIME // timedelta(minutes=1), "minute")
_HOURS = counted(OFF_TIME // timedelta(hours=1), "hour")
_CHANGES = {
    Speculating.FASTER: f"an acceptance below {MIN_ACCEPTANCE}, or a median of running requests "
    f"from which it loses, for {_MINUTES}",
    Speculating.ACCEPTANCE_ASSUMED: f"{counted(MIN_DRAFTED_TOKENS, 'drafted token')} in five "
    "minutes",
    Speculating.LOSING: f"the same for {_MINUTES}",
    Speculating.LOW_ACCEPTANCE: "an edit of spec.engine.speculation",
    Speculating.HIGH_CONCURRENCY: f"far fewer running requests {_HOURS} later, or an edit of "
    "spec.engine.speculation",
}
_TEMPERATURES = {
    TemperatureClass.DEFAULT: "without a temperature",
    TemperatureClass.GREEDY: "at temperature 0",
    TemperatureClass.LOW: f"at temperatures up to {HIGHEST_LOW_TEMPERATURE}",
    TemperatureClass.HIGH: f"at temperatures above {HIGHEST_LOW_TEMPERATURE}",
}
# Only decoding becomes faster; where it takes less of the engines' time, that is little.
_MIN_DECODE_SHARE = 0.5


def _following(
    placed: PlacedService,
    measurements: Measurements,
    current: SpeculationStatus | None,
    at: datetime,
) -> Until[SpeculationStatus | None]:
    if placed.placement is None:
        return Until(current)
    spec, choice = placed.placement
    # Without any reading it is what is expected of the spec.
    reading = reading_of(choice.variant, measurements.readings.speeds)
    at = measurements.speeds_at or at
    return Until(next_speculation_status(spec, choice.fit, reading, current, at))


def _verdict(
    _placed: PlacedService, status: SpeculationStatus | None
) -> StatusVerdict[Speculating] | None:
    return None if status is None else speculation_verdict(status)


def _explain(placed: PlacedService, snapshot: Snapshot, reported: Reported) -> Explanation | None:
    status = reported.speculation
    if status is None or placed.placement is None:
        return None
    spec, choice = placed.placement
    readings, ref = snapshot.readings, placed.service.ref
    speeds = readings.speeds.get(ref, ()) if readings is not None else ()
    drafts = readings.drafts.get(ref, ()) if readings is not None else ()
    reading = reading_of(choice.variant, speeds)
    change, advice = _CHANGES[speculation_verdict(status).reason], _temperature_advice(drafts)
    return Explanation(
        (*_numbers(spec, choice.fit, reading), *_by_temperature(drafts)),
        (change, *_advice(spec, choice.fit, reading), advice),
    )


def _numbers(
    spec: InferenceServiceSpec, fit: ReplicaFit, reading: SpeedReading
) -> Iterator[tuple[str, str]]:
    drafting, draft = fit.step.drafting, draft_shape(spec.engine)
    if drafting is not None:
        yield (
            "planned",
            f"{counted(round(drafting.tokens), 'drafted token')}, of each request a step yields "
            f"{fit.step.tokens_per_step:.2f}, assumed",
        )
        resident = typical_resident_tokens(spec, reading, fit)
        if fit.step.tokens_per_step > 1:
            yield (
                "planned gain",
                f"{fit.step.decode_gain(1, resident):.2f} times as fast with 1 running request, "
                f"slower from {break_even_sequences(fit.step, resident)} on",
            )
    if drafting is not None and draft is not None:
        mib = math.ceil(footprint.resident_bytes(draft, None) / fit.hardware.devices / MIB)
        kv_bits = footprint.cache_bits(shape_of(spec) or draft, engine_terms(spec.engine).kv_bits)
        token_bytes = footprint.cache_bytes_per_token(draft, fit.hardware.devices, kv_bits)
        yield (
            "draft model",
            f"{draft.parameters} parameters take {mib} MiB on each device, and a token "
            f"{counted(token_bytes, 'byte')} of its KV cache",
        )
    if reading.median_running is not None:
        yield "running requests", f"{reading.median_running:.0f}, median of 10 minutes"


def _advice(spec: InferenceServiceSpec, fit: ReplicaFit, reading: SpeedReading) -> Iterator[str]:
    share = decode_share(spec, fit, reading)
    if share < _MIN_DECODE_SHARE:
        yield (
            f"prompts take {1 - share:.0%} of the engines' time, which speculation does not "
            "shorten: longer answers or shorter prompts would gain more"
        )


def _by_temperature(drafts: Sequence[DraftCounts]) -> Iterator[tuple[str, str]]:
    for counts in drafts:
        if counts.drafted_tokens:
            yield (
                f"acceptance {_TEMPERATURES[counts.temperature]}",
                f"{_acceptance(counts):.2f}, of {counted(counts.drafted_tokens, 'drafted token')} "
                "in 10 minutes at the gateway",
            )


def _temperature_advice(drafts: Sequence[DraftCounts]) -> str:
    if not drafts:
        return (
            "acceptance falls with the temperature, which is known of requests through the gateway "
            f"alone: above {HIGHEST_LOW_TEMPERATURE} expect little gain"
        )
    low = [
        _TEMPERATURES[counts.temperature]
        for counts in drafts
        if counts.drafted_tokens >= MIN_DRAFTED_TOKENS and _acceptance(counts) < MIN_ACCEPTANCE
    ]
    return (
        f"other temperatures: an acceptance below {MIN_ACCEPTANCE} have "
        f"{'requests ' + ' and '.join(low) if low else 'none'}"
    )


def _acceptance(counts: DraftCounts) -> float:
    drafted = counts.drafted_tokens
    return acceptance_of(counts.accepted_tokens / drafted, drafted / max(1, counts.drafts))


def decode_share(spec: InferenceServiceSpec, fit: ReplicaFit, reading: SpeedReading) -> float:
    """Return the share of the engines' time in which answers are decoded, beside their prompts."""
    context, step = spec.context, fit.step
    prompt = reading.mean_input_tokens or context.typical_input_tokens
    answer = reading.mean_output_tokens or context.typical_output_tokens
    running = max(1.0, reading.median_running or 1.0)
    resident = typical_resident_tokens(spec, reading, fit)
    decode_step = step.seconds(decoding=running, kv_tokens=running * resident)
    decoding = answer / step.tokens_per_step * decode_step / running
    reading_prompt = step.prefill_seconds(round(prompt), fit.limits.max_num_batched_tokens)
    return decoding / (decoding + reading_prompt)


_LABELS = ("namespace", "service")
_ACCEPTANCE = Series(
    "tessera_service_speculation_acceptance_ratio",
    "Probability that a drafted token is accepted, given that those before it were; as in "
    "`status.speculation`.",
    *_LABELS,
)
_SPECULATION_GAIN = Series(
    "tessera_service_speculation_gain_ratio",
    "How many times as fast the engines decode as without speculation; as in `status.speculation`.",
    *_LABELS,
)
_SPECULATING = Series(
    "tessera_service_speculating",
    "Whether the engines speculate (1), or speculation was switched off (0).",
    *_LABELS,
)


def _samples(
    placed: PlacedService, _readings: Readings | None, status: SpeculationStatus | None
) -> Iterator[Sample]:
    if status is None or placed.placement is None:
        return
    labels = placed.service.ref.namespace, placed.service.ref.name
    yield _ACCEPTANCE, labels, _number(status.acceptance)
    yield _SPECULATION_GAIN, labels, _number(status.gain)
    yield _SPECULATING, labels, float(status.enabled)


def _number(amount: Decimal | None) -> float | None:
    return None if amount is None else float(amount)


SPECULATION: Aspect[SpeculationStatus | None] = Aspect(
    name="speculation",
    measured_by="speeds",
    condition="Speculating",
    following=_following,
    verdict=_verdict,
    events=lambda old, new: transitions(old.conditions, new.conditions, "Speculating"),
    explain=_explain,
    series=(_ACCEPTANCE, _SPECULATION_GAIN, _SPECULATING),
    samples=_samples,
)
