"""How much of its predicted load a replica is given, by the TTFT that clients had.

A prediction for every mix of lengths is right on the whole alone. While nearly all first tokens
come in half of the objective, replicas carry more than predicted, and while some come late, less.
The share in half of the objective warns before any is late, so no request is lost to find out.
What is late while replicas are missing, or carry more than a factor lets them, says nothing of it,
nor does a prompt that takes longer than the objective by itself. A factor at which some came late
is not tried again soon: each try costs a part of the error budget.
"""

from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from tessera.api.inference_service import Slo
from tessera.domain.observed.latency import ServiceLatency
from tessera.domain.scaling.state import TtftShares
from tessera.domain.slo.attainment import attainment, combined
from tessera.domain.slo.measurement import GOAL, MIN_REQUESTS, WINDOW_SECONDS, measure_slo

# Bounds of the factor, up to where it rises at first, and how it rises with every minute.
LEAST, MOST = 0.6, 1.3
_FIRST_LIMIT = 1.05
_RISE = 1.02
# What is left of a factor at which too many came late: up to there it rises. A minute lifts the
# limit.
_FALL, _LIFT = 0.9, 1.001
# First tokens in half of the objective above which the factor rises.
_EARLY_SHARE = 0.95
# Share of the error budget that may be late before the factor falls, and the least share of the
# requests: what no replica can mend may use up the whole budget.
_BUDGET_SHARE, _LEAST_LATE = 0.8, 0.005
# Replicas that carry less say nothing of what they could carry.
_LEAST_USE = 0.6
# What a missed reading lets pass counts at most so long.
_LONGEST_STEP = timedelta(minutes=1)
# What the shares are of, and by what a scrape and the reading of it may be late.
_SPAN = timedelta(seconds=WINDOW_SECONDS + 60)


@dataclass(frozen=True, slots=True)
class Pace:
    """The factor, and the reading that it follows."""

    factor: float = 1.0
    read_at: datetime | None = None
    limit: float = _FIRST_LIMIT
    """Up to which the factor rises."""
    changed_at: datetime | None = None
    """The last reading at or after which replicas were missing, or with too many late: what came
    about then says nothing of the factor."""


def ttft_shares(
    slo: Slo, latency: ServiceLatency | None, read_at: datetime | None
) -> TtftShares | None:
    """Return what gateways counted; None of too few requests, and where engines see most."""
    if latency is None or latency.gateway is None or latency.gateway.ttft is None:
        return None
    measured = measure_slo(slo, latency).ttft
    half = attainment(latency.gateway.ttft, measured.target_seconds / 2)
    attained = measured.attained
    if read_at is None or attained is None or half is None or measured.source != "Gateway":
        return None
    if min(attained.total, half.total) < MIN_REQUESTS:
        return None
    return TtftShares(
        read_at=read_at,
        in_time=attained.upper_share,
        early=half.lower_share,
        slow=_slow_share(latency, measured.target_seconds),
        half_slow=_slow_share(latency, measured.target_seconds / 2),
    )


def _slow_share(latency: ServiceLatency, seconds: float) -> float:
    """Return the share of the prompts that took engines longer; 0 where they do not say."""
    prefills = combined(
        attainment(engine.prefill, seconds) for engine in latency.engines if engine.prefill
    )
    return 1 - prefills.upper_share if prefills is not None and prefills.total > 0 else 0.0


def next_pace(pace: Pace, shares: TtftShares | None, use: float, *, missing: bool = False) -> Pace:
    """Return the pace after a reading; `use` is the load of the replicas relative to the pace.

    `missing` is whether fewer replicas are ready than ordered, or than the load needs.
    """
    if shares is None:
        return pace
    now, before = shares.read_at, pace.read_at
    # Also of replicas that are ready again before the next reading.
    if missing and pace.changed_at != now:
        pace = replace(pace, changed_at=now)
    if now == before:
        return pace
    pace = replace(pace, read_at=now)
    if before is None:
        return pace
    minutes = min(now - before, _LONGEST_STEP) / timedelta(minutes=1)
    if shares.late > max(_LEAST_LATE, _BUDGET_SHARE * (1 - GOAL - shares.slow)):
        return _slower(pace, now)
    limit = min(MOST, pace.limit * _LIFT**minutes)
    factor = pace.factor
    if shares.early + shares.half_slow >= _EARLY_SHARE and use >= _LEAST_USE:
        # More than predicted costs a part of the error budget, which slow prompts may use up.
        tries_more = shares.slow <= (1 - _BUDGET_SHARE) * (1 - GOAL)
        factor = min(limit if tries_more else min(1.0, limit), factor * _RISE**minutes)
    return replace(pace, factor=factor, limit=limit)


def _slower(pace: Pace, now: datetime) -> Pace:
    if pace.changed_at is not None and now - pace.changed_at < _SPAN:
        return pace
    factor = max(LEAST, pace.factor * _FALL)
    return replace(pace, factor=factor, limit=factor, changed_at=now)
