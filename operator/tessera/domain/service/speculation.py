"""Whether a service speculates: its engines do while that makes them decode faster.

The status is the only memory. It changes when the reason does, or the measured acceptance by much.
Switching off and on again are rollouts, so both wait: off for readings of 15 minutes that agree,
and on for a day and far fewer requests. What speculation would accept is not measured while it is
off, so a low acceptance is tried again only after an edit of `spec.engine.speculation`.
"""

import math
from bisect import bisect_left
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from decimal import Decimal

from tessera.api.engine_options import SpeculationOptions
from tessera.api.inference_service import InferenceServiceSpec
from tessera.api.reasons import Speculating, StatusVerdict
from tessera.api.service_status import SpeculationStatus
from tessera.api.text import counted
from tessera.domain.observed.snapshot import SPEED_SECONDS, SpeedReading
from tessera.domain.perf.engine_terms import planned_acceptance
from tessera.domain.perf.speculation import acceptance_of
from tessera.domain.perf.step import StepTime
from tessera.domain.sizing.sizing import ReplicaFit

# Below it, verifying drafts costs more than the few that are accepted are worth.
MIN_ACCEPTANCE = 0.6
# Of the tokens drafted within five minutes; fewer do not measure an acceptance.
MIN_DRAFTED_TOKENS = 1000
# Readings agree for so long before speculation is switched off.
LOSING_TIME = timedelta(minutes=15)
# Speculation stays off for so long at least, which is one rollout a day at most.
OFF_TIME = timedelta(hours=24)
# It is switched on again below this share of the concurrency from which it loses.
_RESUME_SHARE = 0.7
# A change of the acceptance that is written; it varies by less under the same load.
_MIN_CHANGE = Decimal("0.05")
# No engine runs more requests at once.
_MAX_SEQUENCES = 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class SpeculationMeasurement:
    """What speculation gains, by the acceptance that the engines counted in five minutes."""

    drafted_tokens: float
    accepted_tokens: float
    acceptance: float
    """Probability that a drafted token is accepted, given that those before it were."""
    tokens_per_step: float
    """Tokens that a step yields of each sequence, also of those without a draft."""
    running: float
    """Median of the running requests of a replica."""
    gain: float
    """How many times as fast it decodes at that as without speculation."""
    break_even: int
    """Running requests from which it decodes more slowly."""


def without_losing_speculation(
    spec: InferenceServiceSpec, status: SpeculationStatus | None
) -> InferenceServiceSpec:
    """Return the spec with 0 drafted tokens if speculation was switched off since its last edit."""
    speculation = spec.engine.speculation
    if speculation is None or status is None or status.enabled:
        return spec
    if requested_speculation(spec, speculation) != status.requested:
        return spec
    off = speculation.model_copy(update={"tokens": 0})
    engine = spec.engine.model_copy(update={"speculation": off})
    return spec.model_copy(update={"engine": engine})


def requested_speculation(spec: InferenceServiceSpec, speculation: SpeculationOptions) -> str:
    """Return what a spec asks for in words that differ where engines would speculate otherwise."""
    draft = speculation.model
    place = "" if draft is None else f" of {draft.uri}"
    revision = "" if draft is None or draft.revision is None else f" at {draft.revision}"
    tokens = counted(speculation.tokens, "token")
    return f"{speculation.method}, {tokens}{place}{revision} for {spec.model.uri}"


def measured_speculation(
    step: StepTime, reading: SpeedReading, resident_tokens: float
) -> SpeculationMeasurement | None:
    """Return what speculation gains; None while too few tokens were drafted, or none are.

    `step` has the drafting of the plan, and a running request has so many cached tokens.
    """
    drafting, drafted, accepted = step.drafting, reading.drafted_tokens, reading.accepted_tokens
    running, rate = reading.median_running, reading.tokens_per_second
    if drafting is None or drafted is None or accepted is None or running is None or rate is None:
        return None
    if drafted < MIN_DRAFTED_TOKENS or not reading.drafts:
        return None
    # Engines count themselves: a draft has no more tokens than were asked for.
    drafted = min(drafted, reading.drafts * drafting.tokens)
    accepted, running = min(accepted, drafted), max(1.0, running)
    # Each sequence of a step got one token beside its accepted drafts; n-grams draft for some only.
    sequences = max(reading.drafts, rate * SPEED_SECONDS - accepted)
    tokens_per_step = 1 + accepted / sequences
    step = replace(
        step,
        drafting=replace(drafting, tokens=drafted / sequences, accepted=tokens_per_step - 1),
    )
    return SpeculationMeasurement(
        drafted_tokens=drafted,
        accepted_tokens=accepted,
        acceptance=acceptance_of(accepted / drafted, drafted / reading.drafts),
        tokens_per_step=tokens_per_step,
        running=running,
        gain=step.decode_gain(running, running * resident_tokens),
        break_even=break_even_sequences(step, resident_tokens),
    )


def break_even_sequences(step: StepTime, resident_tokens: float) -> int:
    """Return the fewest sequences that decode more slowly with drafting, up to 1024."""
    counts = range(1, _MAX_SEQUENCES)
    # The gain shrinks with the batch, as verifying computes more tokens in each step.
    return 1 + bisect_left(
        counts, True, key=lambda count: step.decode_gain(count, count * resident_tokens) < 1
    )


def next_speculation_status(
    spec: InferenceServiceSpec,
    fit: ReplicaFit,
    reading: SpeedReading,
    current: SpeculationStatus | None,
    at: datetime,
) -> SpeculationStatus | None:
    """Return the status that follows from a reading; it is `current` where nothing changes."""
    speculation = spec.engine.speculation
    if speculation is None:
        return None
    if current is not None and not speculation.tokens:
        return _next_while_off(current, reading, at)
    requested = requested_speculation(spec, speculation)
    if current is None or current.requested != requested or not current.enabled:
        current = _assumed(speculation, requested, at)
    resident = typical_resident_tokens(spec, reading, fit)
    measurement = measured_speculation(fit.step, reading, resident)
    if measurement is None:
        return _without_losing(current)
    return _next_while_on(current, measurement, at)


def speculation_verdict(status: SpeculationStatus) -> StatusVerdict[Speculating]:
    """Return the condition that follows from the status."""
    reason = _REASON_BY_NAME.get(status.reason, Speculating.ACCEPTANCE_ASSUMED)
    return StatusVerdict(reason, status.message)


_REASON_BY_NAME = {reason.value: reason for reason in Speculating}


def _assumed(speculation: SpeculationOptions, requested: str, at: datetime) -> SpeculationStatus:
    return SpeculationStatus(
        requested=requested,
        reason=Speculating.ACCEPTANCE_ASSUMED,
        message=f"speculating by {requested}; plans assume an acceptance of "
        f"{planned_acceptance(speculation):.2f} until "
        f"{counted(MIN_DRAFTED_TOKENS, 'token')} are drafted within 5 minutes",
        changed_at=at.replace(microsecond=0),
    )


def typical_resident_tokens(
    spec: InferenceServiceSpec, reading: SpeedReading, fit: ReplicaFit
) -> float:
    """Return the cached tokens of a running request, as measured or of a typical one half way."""
    typical = spec.context.typical_input_tokens + spec.context.typical_output_tokens / 2
    return reading.resident_tokens(fit.memory.kv_tokens) or typical


def _without_losing(status: SpeculationStatus) -> SpeculationStatus:
    """Return the status after a reading that measures nothing: readings agree no longer."""
    if status.losing_since is None:
        return status
    return status.model_copy(update={"losing_since": None})


def _next_while_on(
    current: SpeculationStatus, measurement: SpeculationMeasurement, at: datetime
) -> SpeculationStatus:
    cause = _cause(measurement)
    if cause is None:
        reason, losing_since = Speculating.FASTER, None
    else:
        losing_since = current.losing_since or at.replace(microsecond=0)
        is_over = at - losing_since >= LOSING_TIME
        reason = cause if is_over else Speculating.LOSING
    acceptance = Decimal(f"{measurement.acceptance:.2f}")
    last = current.acceptance
    is_near = last is not None and abs(acceptance - last) < _MIN_CHANGE
    if (reason, losing_since) == (current.reason, current.losing_since) and is_near:
        return current
    is_off = cause is not None and reason is cause
    return SpeculationStatus(
        requested=current.requested,
        enabled=not is_off,
        reason=reason,
        message=_message(current.requested, measurement, reason, cause),
        acceptance=acceptance,
        tokens_per_step=Decimal(f"{measurement.tokens_per_step:.2f}"),
        gain=Decimal(f"{measurement.gain:.2f}"),
        break_even=measurement.break_even,
        changed_at=at.replace(microsecond=0) if is_off else current.changed_at,
        losing_since=None if is_off else losing_since,
    )


def _cause(measurement: SpeculationMeasurement) -> Speculating | None:
    """Return why speculation should be off; None where it gains."""
    if measurement.acceptance < MIN_ACCEPTANCE:
        return Speculating.LOW_ACCEPTANCE
    return Speculating.HIGH_CONCURRENCY if measurement.gain < 1 else None


def _next_while_off(
    current: SpeculationStatus, reading: SpeedReading, at: datetime
) -> SpeculationStatus:
    """Return the status of engines without speculation: it is on again once its cause has gone."""
    running = reading.median_running
    if current.reason != Speculating.HIGH_CONCURRENCY or running is None:
        return current
    limit = math.floor((current.break_even or 0) * _RESUME_SHARE)
    if at - current.changed_at < OFF_TIME or running > limit:
        return current
    return SpeculationStatus(
        requested=current.requested,
        reason=Speculating.FASTER,
        message=f"speculating by {current.requested} again: at the median of 10 minutes "
        f"{counted(round(running), 'request')} run, and it loses from {current.break_even} on",
        acceptance=current.acceptance,
        break_even=current.break_even,
        changed_at=at.replace(microsecond=0),
    )


def _message(
    requested: str,
    measurement: SpeculationMeasurement,
    reason: Speculating,
    cause: Speculating | None,
) -> str:
    share = measurement.accepted_tokens / measurement.drafted_tokens
    measured = (
        f"{requested}: {share:.0%} of {measurement.drafted_tokens:.0f} drafted tokens were "
        f"accepted in 5 minutes, an acceptance of {measurement.acceptance:.2f}; with "
        f"{counted(round(measurement.running), 'running request')} it decodes "
        f"{measurement.gain:.2f} times as fast as without, and loses from "
        f"{measurement.break_even} on"
    )
    if cause is None:
        return measured
    low = cause is Speculating.LOW_ACCEPTANCE
    minutes = counted(LOSING_TIME // timedelta(minutes=1), "minute")
    if reason is Speculating.LOSING:
        loss = f"An acceptance below {MIN_ACCEPTANCE}" if low else "Such a loss"
        return f"{measured}. {loss} switches it off if it lasts {minutes}"
    if low:
        return (
            f"{measured}. Switched off below an acceptance of {MIN_ACCEPTANCE}: name another draft "
            "or fewer tokens in spec.engine.speculation, or remove it"
        )
    limit = counted(math.floor(measurement.break_even * _RESUME_SHARE), "request")
    return (
        f"{measured}. Switched off; it is on again after "
        f"{counted(OFF_TIME // timedelta(hours=1), 'hour')} when at most {limit} run, or after an "
        "edit of spec.engine.speculation"
    )
