"""Engines that hold requests and make no progress.

A frozen engine passes every probe: `/health` only says that its process exists, and its gauges
keep their last values. The sign of a stall is a request in flight, as counted by vLLM's API server,
while the engine counts no step. Four situations look like a stall and are none:

- A long prompt. Steps that only process a prompt emit no token and are not counted, so an engine
  gets more than the time that the longest possible prompt needs.
- A first request. Kernels may be compiled for it, so an engine without any step gets longer.
- A slow client. Its response is ready, so the request is in flight although the engine is idle. A
  suspect is therefore asked for one token: a healthy engine answers, counts a step, and is cleared.
- An engine that is asleep, starting or draining. It is not inspected.

A restart of the operator loses only time: observation starts again, and the last replacement stands
in the status.
"""

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import NamedTuple

from tessera.api.service_status import ReplacementStatus
from tessera.api.text import counted
from tessera.domain.incremental import FOREVER, Until
from tessera.domain.observed.snapshot import EngineReading, InFlight, ObservedService, Pod, Ref
from tessera.domain.rollout.disruptions import Disruptions
from tessera.domain.scaling.load import MAX_READING_AGE
from tessera.domain.sizing.sizing import ReplicaFit

# At most one replacement per service in this time: a prompt or a driver that stalls all replicas
# stalls new ones too, and each of them loads the model again.
REPLACEMENT_INTERVAL = timedelta(minutes=10)
# Factor on the stall timeout of an engine without any step.
_FIRST_STEP_FACTOR = 5
# Factor by which the performance model may underestimate the time of a prompt.
_PREFILL_MARGIN = 4
# How often an engine without progress is checked within its stall timeout.
_CHECKS_PER_TIMEOUT = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineProgress:
    """What was observed of an engine since its step count last changed."""

    steps: float
    since: datetime
    """When this count was first scraped."""
    busy_since: datetime | None = None
    """Since when every check found requests in flight; None if the last one found none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stall:
    """The reaction to a stalled engine; empty without one."""

    replacement: ReplacementStatus | None = None
    """A replica that is deleted, so that its Deployment creates another."""
    blocker: str | None = None
    """Why a stalled replica may not be replaced yet."""


NO_STALL = Stall()


@dataclass(frozen=True, slots=True)
class Suspect:
    """A replica whose engine may be stalled and is asked for its requests in flight."""

    service: ObservedService
    pod: Pod


class Inspection(NamedTuple):
    """The result of inspecting the engines of one service."""

    engine_progress: Mapping[Ref, EngineProgress]
    suspects: tuple[Suspect, ...] = ()
    stall: Stall = NO_STALL


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineWatch:
    """Observations of all engines, and how long one may make no step."""

    at: datetime
    readings: Mapping[Ref, EngineReading]
    in_flight: Mapping[Ref, InFlight]
    progress: Mapping[Ref, EngineProgress]
    """The progress known to the last cycle."""
    stall_timeout: timedelta

    @property
    def is_empty(self) -> bool:
        """Whether nothing is known of any engine."""
        return not (self.progress or self.readings)

    def progress_of(self, pods: Iterable[Pod]) -> Mapping[Ref, EngineProgress]:
        return {pod.ref: self.progress[pod.ref] for pod in pods if pod.ref in self.progress}

    def seen(self, pod: Ref) -> tuple[object, ...]:
        """Return what was seen of an engine, which differs once it makes a step or answers."""
        reading, load = self.readings.get(pod), self.in_flight.get(pod)
        return (reading.steps, reading.awake, load) if reading is not None else (load,)


def inspect_engines(
    watch: EngineWatch,
    service: ObservedService,
    fits: Mapping[str, ReplicaFit],
    pods: Sequence[Pod],
    *,
    draining: Collection[Ref],
    disruptions: Disruptions,
) -> Until[Inspection]:
    """Inspect the replicas of the variants that fit, and name the one to replace, if any."""
    progress_by_pod: dict[Ref, EngineProgress] = {}
    suspects: list[Suspect] = []
    stalled: list[tuple[datetime, Ref, Pod]] = []
    checks: list[datetime] = []
    check_interval = watch.stall_timeout / _CHECKS_PER_TIMEOUT
    for pod in pods:
        if pod.variant not in fits or not _is_serving(watch, pod) or pod.ref in draining:
            continue
        reading, load = watch.readings.get(pod.ref), watch.in_flight.get(pod.ref)
        progress = updated_progress(watch.progress.get(pod.ref), reading, load)
        if progress is None:
            continue
        progress_by_pod[pod.ref] = progress
        if reading is None:
            continue
        if progress.busy_since is not None:
            checks.append(watch.at)
        if reading.scraped_at - progress.since < check_interval:
            # No scrape is of a later moment than now.
            checks.append(progress.since + check_interval)
            continue
        prefill = max_prefill_time(fits[pod.variant])
        timeout = stall_timeout_for(prefill, progress, watch.stall_timeout)
        due = _next_check(progress, load, timeout)
        if due is None or due <= watch.at:
            suspects.append(Suspect(service, pod))
        else:
            checks.append(due)
        if _is_stalled(progress, reading, load, timeout, watch.at):
            stalled.append((_idle_since(progress), pod.ref, pod))
    stall = NO_STALL
    if stalled:
        since, _, pod = min(stalled)
        peers = disruptions.healthy.difference(draining, (pod.ref,))
        stall = _judge_stall(watch, service, pod, since, len(peers), disruptions.floor - 1)
    inspection = Inspection(progress_by_pod, tuple(suspects), stall)
    return Until(inspection, min(checks, default=FOREVER), progress_by_pod)


def _is_serving(watch: EngineWatch, pod: Pod) -> bool:
    """Return whether a replica takes requests and is not asleep."""
    reading = watch.readings.get(pod.ref)
    is_asleep = reading is not None and reading.awake is False
    return pod.takes_requests and bool(pod.serving) and not is_asleep


def updated_progress(
    previous: EngineProgress | None, reading: EngineReading | None, load: InFlight | None
) -> EngineProgress | None:
    """Update the progress of an engine; a missing reading changes nothing."""
    progress = previous
    if reading is not None and (previous is None or reading.steps != previous.steps):
        progress = EngineProgress(steps=reading.steps, since=reading.scraped_at)
    if progress is None or load is None or load.at < progress.since:
        return progress
    busy_since = (progress.busy_since or load.at) if load.requests else None
    same = busy_since == progress.busy_since
    return progress if same else replace(progress, busy_since=busy_since)


def stall_timeout_for(
    prefill: timedelta, progress: EngineProgress, timeout: timedelta
) -> timedelta:
    """Return how long this engine may make no step while it holds requests."""
    if progress.steps == 0:
        timeout *= _FIRST_STEP_FACTOR
    return max(timeout, _PREFILL_MARGIN * prefill)


def max_prefill_time(fit: ReplicaFit) -> timedelta:
    """Return an upper bound of the time to prefill a prompt of the maximum length."""
    # Every step counts as the last one, which attends to the whole prompt.
    max_tokens, chunk = fit.max_model_len, fit.limits.max_num_batched_tokens
    last_step_seconds = fit.step.seconds(
        decoding=0, kv_tokens=max_tokens, prefill_tokens=chunk, prefill_pairs=2 * max_tokens * chunk
    )
    return timedelta(seconds=math.ceil(max_tokens / chunk) * last_step_seconds)


def _idle_since(progress: EngineProgress) -> datetime:
    """Return since when the engine had requests and made no step."""
    return max(progress.since, progress.busy_since or progress.since)


def _is_stalled(
    progress: EngineProgress,
    reading: EngineReading,
    load: InFlight | None,
    timeout: timedelta,
    now: datetime,
) -> bool:
    # Compare scrapes with each other, not with the clock, so that slow scrapes prove nothing.
    if progress.busy_since is None or load is None:
        return False
    return (
        now - load.at <= MAX_READING_AGE and reading.scraped_at - _idle_since(progress) >= timeout
    )


def _next_check(
    progress: EngineProgress, load: InFlight | None, timeout: timedelta
) -> datetime | None:
    """Return when to check again, None for at once; sooner while it has requests."""
    interval = timeout / _CHECKS_PER_TIMEOUT
    if progress.busy_since is not None:
        interval = min(interval / 3, MAX_READING_AGE / 3)
    return load.at + interval if load is not None else None


def _judge_stall(
    watch: EngineWatch,
    service: ObservedService,
    pod: Pod,
    since: datetime,
    ready_peers: int,
    needed_peers: int,
) -> Stall:
    """Replace the replica, or say why not yet."""
    observation = (
        f"{pod.ref.name} holds requests, and its engine made no step since "
        f"{since:%Y-%m-%dT%H:%M:%SZ}"
    )
    advice = f"To replace it now: kubectl delete pod -n {pod.ref.namespace} {pod.ref.name}"
    last_replacement = service.status.replacement
    if last_replacement is not None and last_replacement.uid == pod.uid:
        return Stall(replacement=last_replacement)
    if last_replacement is not None and watch.at - last_replacement.at < REPLACEMENT_INTERVAL:
        return Stall(
            blocker=(
                f"{observation}; {last_replacement.pod} was replaced recently, the next "
                "replacement is allowed from "
                f"{last_replacement.at + REPLACEMENT_INTERVAL:%H:%M:%SZ}. {advice}"
            )
        )
    # A recurring false alarm must not empty a service: minReplicas stay ready beside this one.
    if ready_peers < needed_peers:
        return Stall(
            blocker=(
                f"{observation}; it is replaced once {counted(needed_peers, 'other replica')} "
                f"can serve requests, now {ready_peers}. {advice}"
            )
        )
    at = watch.at.replace(microsecond=0)
    requests = counted(watch.in_flight[pod.ref].requests, "request")
    message = f"{observation}; replaced with {requests} in flight"
    replacement = ReplacementStatus(at=at, pod=pod.ref.name, uid=pod.uid, message=message)
    return Stall(replacement=replacement)
