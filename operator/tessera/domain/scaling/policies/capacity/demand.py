"""The arrivals that the policy `Capacity` follows, and what it remembers of earlier readings."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import NamedTuple

from typing_extensions import override

from tessera.domain.scaling.policies.capacity.bursts import Burst
from tessera.domain.scaling.policies.capacity.hold import Lulls
from tessera.domain.scaling.policies.capacity.pace import Pace
from tessera.domain.scaling.policies.capacity.variant_capacity import VariantCapacity
from tessera.domain.scaling.state import MAX_READING_GAP, NONE_LATE, LateAlone, ServiceLoad
from tessera.domain.scaling.target import ScaleTarget
from tessera.domain.sizing.scheduler_limits import LATE_SHARE

# The rate of arrivals is estimated over this span.
RATE_SPAN = timedelta(seconds=60)
_MIN_RATE_SPAN = timedelta(seconds=30)
_SAMPLE_INTERVAL = timedelta(seconds=5)
# Arrivals of so many seconds count where they exceed those of the longer one by so many deviations
# of Poisson arrivals.
_RECENT_SECONDS = 15
_RISE_DEVIATIONS = 3.0
# Engines that finish and hold so many times the requests of gateways have other clients as well.
_OTHER_CLIENTS = 1.25
# The measured throughput of full replicas corrects the prediction at most to this share.
_MIN_CORRECTION = 0.5
_FULL_SPAN = timedelta(seconds=60)
# A correction is forgotten after so long without full replicas, a share of late prompts without
# enough requests.
_CORRECTION_SPAN = timedelta(hours=1)
_FULL_KV_USAGE = 0.9
# The share of prompts that are late by themselves follows the last minute within this span, of so
# many requests at least.
_LATE_ALONE_SPAN = timedelta(minutes=10)
_MIN_COUNTED = 50


def next_late_alone(before: LateAlone, load: ServiceLoad) -> LateAlone:
    """Return the share of prompts that are late by themselves, with those of the last minute.

    It is a mean of about ten minutes: the share of one varies, and decides what replicas carry. It
    is forgotten where for an hour too few requests come to say what it is.
    """
    arrived, at = load.arrived_tokens, before.counted_at
    if arrived.requests < _MIN_COUNTED:
        is_old = at is not None and load.at - at >= _CORRECTION_SPAN
        return NONE_LATE if is_old and before.share > LATE_SHARE else before
    weight = 1.0 if at is None else min(1.0, max(0.0, (load.at - at) / _LATE_ALONE_SPAN))
    share = before.share + (arrived.late_alone_share - before.share) * weight
    return LateAlone(share, load.at)


class Arrivals(NamedTuple):
    """Requests per second that arrive."""

    rate: float
    """What is known to arrive; replicas are added for it."""
    most: float | None
    """The most that may arrive; replicas are removed by it. None is "not known"."""
    source: str
    """Where the rate comes from."""
    estimated: bool

    @override
    def __str__(self) -> str:
        return f"{self.rate:.2f} requests/s {self.source}"


@dataclass(frozen=True, slots=True, kw_only=True)
class DemandHistory:
    """What the policy needs of earlier readings."""

    in_flight: tuple[tuple[datetime, float], ...] = ()
    """Waiting and running requests of the last minute, oldest first; a number that stays since
    longer is there once."""
    known_at: datetime | None = None
    """Time of the last known load that was decided on."""
    missing_since: datetime | None = None
    """Since when the load is not known."""
    full_since: datetime | None = None
    """Since when requests wait although all replicas serve; None while they do not."""
    correction: float = 1.0
    """Share of the predicted capacity that full replicas were measured to carry."""
    late_alone: LateAlone = NONE_LATE
    pace: Pace = field(default_factory=Pace)
    slow_at: datetime | None = None
    """When steps were last measured to take longer than within the tolerance."""
    lulls: Lulls = field(default_factory=Lulls)
    bursts: tuple[Burst, ...] = ()
    """Those of the last half hour, oldest first."""


def gap_is_over(at: datetime, memory: DemandHistory) -> bool:
    """Return whether the readings are missing for so long that those left decide."""
    return memory.missing_since is not None and at - memory.missing_since >= MAX_READING_GAP


def arrivals_of(
    load: ServiceLoad, capacity: VariantCapacity, memory: DemandHistory | None
) -> Arrivals:
    """Return the arrivals by gateways where these see all requests, else by the engines.

    Output tokens are no measure of them: engines that are full give out no more of them, however
    many requests wait.
    """
    estimate, arrival_rate = _estimated_rate(load, capacity, memory), load.arrival_rate
    if arrival_rate is None and load.queued == load.gateway_requests == 0 and load.is_known:
        # Gateways report no service that had no request yet.
        arrival_rate = 0.0
    if arrival_rate is not None and (
        estimate is None or estimate <= arrival_rate * _OTHER_CLIENTS + 1 / 30
    ):
        rate = max(arrival_rate, _risen_rate(load.arrivals))
        return Arrivals(rate, rate, "at the gateway", estimated=False)
    if estimate is None:
        return Arrivals(0.0, None, "not known", estimated=True)
    if load.is_known:
        return Arrivals(estimate, estimate, "estimated from the engines", estimated=True)
    # Replicas without a reading may be full.
    unknown = max(0, load.serving - load.with_counts)
    most = estimate + unknown * capacity.requests_per_second
    return Arrivals(estimate, most, "estimated from replicas with metrics", estimated=True)


def _risen_rate(arrivals: Sequence[int]) -> float:
    """Return the rate that is certain from the arrivals of the last seconds."""
    recent = sum(arrivals[-_RECENT_SECONDS:])
    return (recent - _RISE_DEVIATIONS * math.sqrt(recent)) / _RECENT_SECONDS


def _estimated_rate(
    load: ServiceLoad, capacity: VariantCapacity, memory: DemandHistory | None
) -> float | None:
    """Return finished requests and the change of those in engines, or Little's law without them."""
    if load.known_requests is None:
        return None
    if not load.is_known or load.finish_rate is None:
        return load.known_requests * capacity.requests_per_second / capacity.concurrent
    changes = [
        (load.known_requests - before) / (load.at - began).total_seconds()
        for began, before in (_samples(memory, load.at) if memory is not None else ())
        if load.at - began >= _MIN_RATE_SPAN
    ]
    # The longest span decides, and the shortest where requests become more.
    change = max(changes[0], changes[-1]) if changes else 0.0
    return max(0.0, load.finish_rate + change)


def _samples(memory: DemandHistory, at: datetime) -> tuple[tuple[datetime, float], ...]:
    """Return the samples of requests; a single one stands until now, and is repeated."""
    if len(memory.in_flight) != 1:
        return memory.in_flight
    ((since, requests),) = memory.in_flight
    steps = range(RATE_SPAN // _SAMPLE_INTERVAL - 1, 0, -1)
    moments = (since, at - RATE_SPAN, *(at - step * _SAMPLE_INTERVAL for step in steps))
    return tuple((moment, requests) for moment in moments if moment >= max(since, at - RATE_SPAN))


def remember(
    target: ScaleTarget,
    capacity: VariantCapacity,
    load: ServiceLoad,
    current: int,
    memory: DemandHistory | None,
) -> DemandHistory:
    """Return what later decisions need of this reading; a missed one changes nothing."""
    memory = memory or DemandHistory(known_at=load.at)
    if not load.is_known or load.known_requests is None:
        return replace(memory, missing_since=memory.missing_since or load.at)
    in_flight = memory.in_flight
    if in_flight and {requests for _, requests in in_flight} == {load.known_requests}:
        in_flight = in_flight[:1]
    elif not in_flight or load.at - in_flight[-1][0] >= _SAMPLE_INTERVAL:
        in_flight = (*_samples(memory, load.at), (load.at, load.known_requests))
    while len(in_flight) > 1 and load.at - in_flight[1][0] >= RATE_SPAN:
        in_flight = in_flight[1:]
    full_since = (
        (memory.full_since or load.at) if _is_full(target, capacity, load, current) else None
    )
    return replace(
        memory,
        in_flight=in_flight,
        known_at=load.at,
        missing_since=None,
        full_since=full_since,
        correction=_correction(capacity, load, memory, full_since),
    )


def is_at_rest(memory: DemandHistory, load: ServiceLoad) -> bool:
    """Return whether no time that passes changes what is remembered while the load stays."""
    requests = [requests for _, requests in memory.in_flight]
    is_corrected = memory.full_since is not None or memory.correction != 1
    return requests == [load.known_requests] and not is_corrected


def _is_full(
    target: ScaleTarget, capacity: VariantCapacity, load: ServiceLoad, current: int
) -> bool:
    """Return whether requests wait although all replicas serve, and another reading agrees."""
    if not load.waiting or load.serving < max(1, current):
        return False
    if load.ttft is not None:
        # Their pace follows from it.
        return False
    # The engines count their requests themselves; a device may look idle beside a busy one.
    if target.max_num_seqs and (load.running or 0.0) >= load.serving * target.max_num_seqs:
        return True
    activity = load.measured_activity
    active = activity is None or activity >= float(target.spec.activity.target)
    return active or (capacity.kv_usage or 0.0) >= _FULL_KV_USAGE


def _correction(
    capacity: VariantCapacity,
    load: ServiceLoad,
    memory: DemandHistory,
    full_since: datetime | None,
) -> float:
    """Return the measured share of the capacity; the longer no replica is full, the nearer to 1."""
    full = full_since is not None and load.at - full_since >= _FULL_SPAN
    if full and load.finish_rate is not None:
        measured = load.finish_rate / load.serving / capacity.requests_per_second
        return min(1.0, max(_MIN_CORRECTION, measured))
    if load.waiting:
        return memory.correction
    elapsed = load.at - (memory.known_at or load.at)
    return min(1.0, memory.correction + elapsed / _CORRECTION_SPAN)
