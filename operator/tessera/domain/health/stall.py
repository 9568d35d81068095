"""Engines that hold requests and work on none of them.

A frozen engine passes every probe: `/health` only says that its process is there, and its gauges
stand still at whatever they showed. What cannot be explained otherwise is a request in flight, as
the API server in front of the engine counts it, while the engine counts no step. Four things look
alike and are none:

- A long prompt. Steps that only read a prompt give out no token and are not counted, so an engine
  gets the time that it may need for the longest prompt of all, and more.
- A first request. Kernels may be compiled for it, so an engine that never took a step gets longer.
- A slow reader. Its answer is ready and waits for the client, so the request is in flight although
  the engine is idle. Who is suspected is therefore asked for a token: a healthy engine answers,
  counts a step, and is suspected no more.
- One that is asleep, starting or draining. It is not looked at.

Nothing here is lost by a restart but time: the watch begins anew, and what was replaced last stands
in the status.
"""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from tessera.domain.observed.snapshot import (
    EngineReading,
    InFlight,
    ObservedService,
    Pod,
    Ref,
)
from tessera.domain.scaling.load import MAX_READING_AGE
from tessera.domain.sizing.sizing import ReplicaFit

# From one replacement of a service to the next: what stalls all its replicas, a prompt or a
# driver, is not cured by new ones, and each of them loads the model again.
REPLACEMENT_INTERVAL = timedelta(minutes=10)
# So many times the patience for an engine that has not taken a step yet.
_FIRST_STEP_FACTOR = 5
# The performance model may be so much too fast about reading a prompt.
_PREFILL_MARGIN = 4
# An engine whose count stands still is asked so many times within its patience.
_CHECKS_PER_TIMEOUT = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineProgress:
    """What was seen of an engine since its count of steps last changed."""

    steps: float
    since: datetime
    """When this count was scraped first."""
    busy_since: datetime | None = None
    """Since when every look has found requests in it; None when the last one found none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Replacement:
    """A replica that is deleted, so that its Deployment makes another."""

    pod: Ref
    uid: str
    at: datetime
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Stall:
    """What is done about an engine that stands still; empty when none does."""

    replacement: Replacement | None = None
    blocker: str | None = None
    """A replica is stalled and may not be replaced yet: the sentence says why."""


@dataclass(frozen=True, slots=True)
class Suspect:
    """A replica whose engine may stand still: it is asked for its requests in flight."""

    service: ObservedService
    pod: Pod


@dataclass(frozen=True, slots=True, kw_only=True)
class Inspection:
    """What a turn finds of the engines of one service."""

    engine_progress: Mapping[Ref, EngineProgress] = field(default_factory=dict)
    suspects: tuple[Suspect, ...] = ()
    stall: Stall = Stall()


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineWatch:
    """What is known of the engines of the fleet, and how long one of them may take no step."""

    at: datetime
    readings: Mapping[Ref, EngineReading]
    in_flight: Mapping[Ref, InFlight]
    progress: Mapping[Ref, EngineProgress]
    """What the last cycle knew."""
    stall_timeout: timedelta

    @property
    def is_empty(self) -> bool:
        """Nothing was read of any engine, now or before."""
        return not (self.progress or self.readings)


def inspect_engines(
    watch: EngineWatch,
    service: ObservedService,
    fit: ReplicaFit,
    pods: Sequence[Pod],
    *,
    draining: Collection[Ref],
    min_replicas: int,
) -> Inspection:
    """Watch the replicas of the chosen variant, and name the one to replace, if any."""
    progress_by_pod: dict[Ref, EngineProgress] = {}
    suspects: list[Suspect] = []
    stalled: list[tuple[datetime, Ref, Pod]] = []
    for pod in pods:
        reading, load = watch.readings.get(pod.ref), watch.in_flight.get(pod.ref)
        asleep = reading is not None and reading.awake is False
        if asleep or not (pod.takes_requests and pod.serving) or pod.ref in draining:
            continue
        progress = updated_progress(watch.progress.get(pod.ref), reading, load)
        if progress is None:
            continue
        progress_by_pod[pod.ref] = progress
        if (
            reading is None
            or reading.scraped_at - progress.since < watch.stall_timeout / _CHECKS_PER_TIMEOUT
        ):
            continue
        timeout = stall_timeout_for(fit, progress, watch.stall_timeout)
        if _is_check_due(progress, load, timeout, watch.at):
            suspects.append(Suspect(service, pod))
        if _is_stalled(progress, reading, load, timeout, watch.at):
            stalled.append((_idle_since(progress), pod.ref, pod))
    stall = Stall()
    if stalled:
        since, _, pod = min(stalled)
        stall = _judge_stall(watch, service, pod, since, pods, min_replicas)
    return Inspection(engine_progress=progress_by_pod, suspects=tuple(suspects), stall=stall)


def updated_progress(
    previous: EngineProgress | None, reading: EngineReading | None, load: InFlight | None
) -> EngineProgress | None:
    """What is known after another look; a missing reading changes nothing."""
    progress = previous
    if reading is not None and (previous is None or reading.steps != previous.steps):
        progress = EngineProgress(steps=reading.steps, since=reading.scraped_at)
    if progress is None or load is None or load.at < progress.since:
        return progress
    busy_since = (progress.busy_since or load.at) if load.requests else None
    same = busy_since == progress.busy_since
    return (
        progress
        if same
        else EngineProgress(steps=progress.steps, since=progress.since, busy_since=busy_since)
    )


def stall_timeout_for(fit: ReplicaFit, progress: EngineProgress, timeout: timedelta) -> timedelta:
    """How long this engine may take no step although it holds requests."""
    if progress.steps == 0:
        timeout *= _FIRST_STEP_FACTOR
    return max(timeout, _PREFILL_MARGIN * max_prefill_time(fit))


def max_prefill_time(fit: ReplicaFit) -> timedelta:
    """The time to read a prompt that fills the whole context, in steps as large as allowed.

    Rather too long: each step is taken as slow as the last one, which attends to all before it.
    """
    max_tokens, chunk = fit.max_model_len, fit.limits.max_num_batched_tokens
    last_step_seconds = fit.step.seconds(
        decoding=0,
        kv_tokens=max_tokens,
        prefill_tokens=chunk,
        prefill_pairs=2 * max_tokens * chunk,
    )
    return timedelta(seconds=math.ceil(max_tokens / chunk) * last_step_seconds)


def _idle_since(progress: EngineProgress) -> datetime:
    """From when on the engine had something to do and took no step."""
    return max(progress.since, progress.busy_since or progress.since)


def _is_stalled(
    progress: EngineProgress,
    reading: EngineReading,
    load: InFlight | None,
    timeout: timedelta,
    now: datetime,
) -> bool:
    """By a scrape that is so much younger than the first one, so that slow scrapes prove nothing,
    and a look that is not much older."""
    if progress.busy_since is None or load is None:
        return False
    return (
        now - load.at <= MAX_READING_AGE and reading.scraped_at - _idle_since(progress) >= timeout
    )


def _is_check_due(
    progress: EngineProgress, load: InFlight | None, timeout: timedelta, now: datetime
) -> bool:
    """Engines with requests in them are asked more often."""
    interval = timeout / _CHECKS_PER_TIMEOUT
    if progress.busy_since is not None:
        interval = min(interval / 3, MAX_READING_AGE / 3)
    return load is None or now - load.at >= interval


def _judge_stall(
    watch: EngineWatch,
    service: ObservedService,
    pod: Pod,
    since: datetime,
    pods: Sequence[Pod],
    min_replicas: int,
) -> Stall:
    """Replace it, or say why not yet.

    A false alarm that comes again and again must not empty a service, so beside the one that goes
    all others of the floor have to take requests.
    """
    observation = (
        f"{pod.ref.name} holds requests, and its engine took no step since "
        f"{since:%Y-%m-%dT%H:%M:%SZ}"
    )
    last_replacement = service.status.replacement
    if last_replacement is not None and last_replacement.uid == pod.uid:
        replacement = Replacement(
            pod=pod.ref, uid=pod.uid, at=last_replacement.at, message=last_replacement.message
        )
        return Stall(replacement=replacement)
    if last_replacement is not None and watch.at - last_replacement.at < REPLACEMENT_INTERVAL:
        return Stall(
            blocker=(
                f"{observation}; {last_replacement.pod} was replaced before, and the next one may "
                f"be from {last_replacement.at + REPLACEMENT_INTERVAL:%H:%M:%SZ} on"
            ),
        )
    ready_peers = sum(other.takes_requests for other in pods if other.uid != pod.uid)
    if ready_peers < min_replicas - 1:
        return Stall(
            blocker=(
                f"{observation}; it is replaced once {min_replicas - 1} others take requests, now "
                f"{ready_peers} do"
            )
        )
    at = watch.at.replace(microsecond=0)
    message = f"{observation}: it is replaced ({watch.in_flight[pod.ref].requests} in flight)"
    return Stall(replacement=Replacement(pod=pod.ref, uid=pod.uid, at=at, message=message))
