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

from tessera.domain.load import FRESH
from tessera.domain.sizing import Fit
from tessera.domain.snapshot import EngineReading, InFlight, Pod, Ref, Service, Snapshot, Watch

HOLD = timedelta(minutes=10)
"""From one replacement of a service to the next: what stalls all its replicas, a prompt or a
driver, is not cured by new ones, and each of them loads the model again."""
_FIRST = 5
"""So many times the patience for an engine that has not taken a step yet."""
_MARGIN = 4
"""The performance model may be so much too fast about reading a prompt."""
_LOOKS = 4
"""An engine whose count stands still is asked so many times within its patience."""


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

    replace: Replacement | None = None
    waits: str | None = None
    """A replica is stalled and may not be replaced yet: the sentence says why."""


@dataclass(frozen=True, slots=True)
class Suspect:
    """A replica whose engine may stand still: it is asked for its requests in flight."""

    service: Service
    pod: Pod


@dataclass(frozen=True, slots=True, kw_only=True)
class Inspection:
    """What a turn finds of the engines of one service."""

    watches: Mapping[Ref, Watch] = field(default_factory=dict)
    suspects: tuple[Suspect, ...] = ()
    stall: Stall = Stall()


def inspect(
    snapshot: Snapshot,
    service: Service,
    fit: Fit,
    pods: Sequence[Pod],
    *,
    leaving: Collection[Ref],
    floor: int,
) -> Inspection:
    """Watch the replicas of the chosen variant, and name the one to replace, if any."""
    readings = snapshot.readings.engines if snapshot.readings else {}
    watches: dict[Ref, Watch] = {}
    suspects: list[Suspect] = []
    stalled: list[tuple[datetime, Ref, Pod]] = []
    for pod in pods:
        reading, load = readings.get(pod.ref), snapshot.in_flight.get(pod.ref)
        asleep = reading is not None and reading.awake is False
        if asleep or not (pod.takes_requests and pod.serving) or pod.ref in leaving:
            continue
        watch = watched(snapshot.watches.get(pod.ref), reading, load)
        if watch is None:
            continue
        watches[pod.ref] = watch
        if reading is None or reading.scraped - watch.since < snapshot.patience / _LOOKS:
            continue
        patience = patience_for(fit, watch, snapshot.patience)
        if _is_due(watch, load, patience, snapshot.at):
            suspects.append(Suspect(service, pod))
        if _is_stalled(watch, reading, load, patience, snapshot.at):
            stalled.append((_idle_since(watch), pod.ref, pod))
    stall = Stall()
    if stalled:
        since, _, pod = min(stalled)
        stall = _judged(snapshot, service, pod, since, pods, floor)
    return Inspection(watches=watches, suspects=tuple(suspects), stall=stall)


def watched(
    old: Watch | None, reading: EngineReading | None, load: InFlight | None
) -> Watch | None:
    """What is known after another look; a missing reading changes nothing."""
    watch = old
    if reading is not None and (old is None or reading.steps != old.steps):
        watch = Watch(steps=reading.steps, since=reading.scraped)
    if watch is None or load is None or load.at < watch.since:
        return watch
    busy = (watch.busy_since or load.at) if load.requests else None
    same = busy == watch.busy_since
    return watch if same else Watch(steps=watch.steps, since=watch.since, busy_since=busy)


def patience_for(fit: Fit, watch: Watch, patience: timedelta) -> timedelta:
    """How long this engine may take no step although it holds requests."""
    if watch.steps == 0:
        patience *= _FIRST
    return max(patience, _MARGIN * longest_prompt(fit))


def longest_prompt(fit: Fit) -> timedelta:
    """The time to read a prompt that fills the whole context, in steps as large as allowed.

    Rather too long: each step is taken as slow as the last one, which attends to all before it.
    """
    longest, chunk = fit.max_model_len, fit.limits.max_num_batched_tokens
    last = fit.step.seconds(
        decoding=0,
        kv_tokens=longest,
        prefill_tokens=chunk,
        prefill_pairs=2 * longest * chunk,
    )
    return timedelta(seconds=math.ceil(longest / chunk) * last)


def _idle_since(watch: Watch) -> datetime:
    """From when on the engine had something to do and took no step."""
    return max(watch.since, watch.busy_since or watch.since)


def _is_stalled(
    watch: Watch, reading: EngineReading, load: InFlight | None, patience: timedelta, now: datetime
) -> bool:
    """By a scrape that is so much younger than the first one, so that slow scrapes prove nothing,
    and a look that is not much older."""
    if watch.busy_since is None or load is None:
        return False
    return now - load.at <= FRESH and reading.scraped - _idle_since(watch) >= patience


def _is_due(watch: Watch, load: InFlight | None, patience: timedelta, now: datetime) -> bool:
    """Engines with requests in them are asked more often."""
    pause = patience / _LOOKS
    if watch.busy_since is not None:
        pause = min(pause / 3, FRESH / 3)
    return load is None or now - load.at >= pause


def _judged(
    snapshot: Snapshot,
    service: Service,
    pod: Pod,
    since: datetime,
    pods: Sequence[Pod],
    floor: int,
) -> Stall:
    """Replace it, or say why not yet.

    A false alarm that comes again and again must not empty a service, so beside the one that goes
    all others of the floor have to take requests.
    """
    fact = (
        f"{pod.ref.name} holds requests, and its engine took no step since "
        f"{since:%Y-%m-%dT%H:%M:%SZ}"
    )
    last = service.status.replacement
    if last is not None and last.uid == pod.uid:
        again = Replacement(pod=pod.ref, uid=pod.uid, at=last.at, message=last.message)
        return Stall(replace=again)
    if last is not None and snapshot.at - last.at < HOLD:
        return Stall(
            waits=f"{fact}; {last.pod} was replaced before, and the next one may be "
            f"from {last.at + HOLD:%H:%M:%SZ} on"
        )
    others = sum(other.takes_requests for other in pods if other.uid != pod.uid)
    if others < floor - 1:
        return Stall(
            waits=f"{fact}; it is replaced once {floor - 1} others take requests, now {others} do"
        )
    at = snapshot.at.replace(microsecond=0)
    told = f"{fact}: it is replaced ({snapshot.in_flight[pod.ref].requests} in flight)"
    return Stall(replace=Replacement(pod=pod.ref, uid=pod.uid, at=at, message=told))
