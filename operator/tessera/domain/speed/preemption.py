"""status.preemption: what preemptions at steady load say, and the limit that they lower.

A preempted request is computed again, so a replica that runs fewer requests at once serves more.
Each lowering is a rollout. So it takes two readings, the second at least ten minutes after the
first, and the limit is never raised again by itself: that would preempt requests again.
"""

from datetime import datetime, timedelta

from tessera.api.inference_service import InferenceServiceSpec
from tessera.api.service_status import PreemptionStatus
from tessera.api.text import counted
from tessera.domain.observed.snapshot import SpeedReading
from tessera.domain.perf.sources import MIN_REQUESTS
from tessera.domain.placement.candidates import HardwareChoice
from tessera.domain.speed.condition import WINDOW

# Of the finished requests of five minutes, which is steady load if there are enough.
_SHARE = 0.01
# Below this share they are over, unless the limit was lowered for them.
_RECOVERED_SHARE = 0.005
_CONFIRMATION = timedelta(minutes=10)
# Requests grow until they end, so those that fit on average do not always.
_FILL = 0.9
# One reading does not lower a limit by more.
_LEAST_SHARE = 0.5


def next_preemption_status(
    spec: InferenceServiceSpec,
    choice: HardwareChoice,
    reading: SpeedReading,
    current: PreemptionStatus | None,
    at: datetime,
) -> PreemptionStatus | None:
    """Return the status that follows from a reading; one of too few requests changes nothing."""
    model, variant = spec.model.uri, choice.variant
    if current is not None and (current.model, current.variant) != (model, variant):
        current = None
    if reading.preemptions is None or (reading.requests or 0) < MIN_REQUESTS:
        return current
    # A reading covers the window, and the status is not written more often.
    if current is not None and at - current.at < WINDOW:
        return current
    requests = reading.requests or 0
    share = reading.preemptions / requests
    lowered = current.max_num_seqs if current is not None else None
    if share < (_SHARE if current is None else _RECOVERED_SHARE):
        return current if lowered is not None else None
    if share < _SHARE:
        return current
    since = at if current is None else current.since
    limit = choice.fit.limits.max_num_seqs
    is_confirmed = at - since >= _CONFIRMATION
    if is_confirmed and spec.engine.max_num_seqs is None and limit > 1:
        # The next lowering needs a confirmation of its own, under the new limit.
        lowered, since = _lower_limit(limit, reading, choice.fit.memory.kv_tokens), at
    return PreemptionStatus(
        model=model,
        variant=variant,
        since=since.replace(microsecond=0),
        at=at.replace(microsecond=0),
        preemptions=round(reading.preemptions),
        requests=round(requests),
        max_num_seqs=lowered,
    )


def preemption_message(status: PreemptionStatus) -> str:
    """Return what was observed, what was decided, and what else helps."""
    observed = (
        f"{counted(status.preemptions, 'preemption')} in {counted(status.requests, 'request')} "
        f"within 5 minutes until {status.at:%Y-%m-%d %H:%M} UTC: the KV cache does not hold the "
        "requests that run at once"
    )
    if status.max_num_seqs is None:
        return (
            f"{observed}; lower spec.engine.maxNumSeqs, or correct "
            "spec.context.typicalInputTokens and typicalOutputTokens to the requests that come"
        )
    return (
        f"{observed}; a replica runs at most {status.max_num_seqs} from now on. Correct "
        "spec.context.typicalInputTokens and typicalOutputTokens, or set spec.engine.maxNumSeqs"
    )


def _lower_limit(limit: int, reading: SpeedReading, kv_tokens: int) -> int:
    """Return the requests that the cache holds, by the mean that running ones have in it."""
    resident = reading.resident_tokens(kv_tokens)
    fitting = limit * _FILL
    if resident:
        fitting = min(fitting, _FILL * (reading.kv_tokens or kv_tokens) / resident)
    return max(1, int(limit * _LEAST_SHARE), int(fitting))
