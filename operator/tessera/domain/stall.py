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

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from tessera.domain.load import FRESH
from tessera.domain.placement import Choice
from tessera.domain.sizing import Fit
from tessera.domain.snapshot import InFlight, Pod, PodReading, Ref, Service, Snapshot, Watch

HOLD = timedelta(minutes=10)
"""From one replacement of a service to the next: what stalls all its replicas, a prompt or a
driver, is not cured by new ones, and each of them loads the model again."""
_FIRST = 5
"""So many times the patience for an engine that has not taken a step yet."""
_MARGIN = 4
"""The performance model may be so much too fast about reading a prompt."""
_NEVER = PodReading()


@dataclass(frozen=True, slots=True, kw_only=True)
class Replacement:
    """A replica that is deleted, so that its Deployment makes another."""

    pod: Ref
    uid: str
    at: datetime
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Stall:
    """What a turn knows of the engines of one service."""

    watches: Mapping[Ref, Watch] = field(default_factory=dict)
    look: tuple[Ref, ...] = ()
    """Replicas to be asked for their requests in flight."""
    replace: Replacement | None = None
    waits: str | None = None
    """A replica is stalled and may not be replaced yet: the sentence says why."""


def stalled(
    snapshot: Snapshot,
    service: Service,
    choice: Choice,
    pods: Sequence[Pod],
    *,
    leaving: Collection[Ref],
    floor: int,
) -> Stall:
    """Watch the replicas of the chosen variant, and name the one to replace, if any."""
    readings = snapshot.readings.pods if snapshot.readings else {}
    watches: dict[Ref, Watch] = {}
    look: list[Ref] = []
    found: list[tuple[datetime, Pod]] = []
    for pod in pods:
        reading, load = readings.get(pod.ref, _NEVER), snapshot.in_flight.get(pod.ref)
        at_work = pod.takes_requests and pod.serving and pod.ref not in leaving
        if not at_work or reading.awake is False:
            continue
        watch = watched(snapshot.watches.get(pod.ref), reading, load)
        if watch is None:
            continue
        watches[pod.ref] = watch
        patience = patience_for(choice.fit, watch, snapshot.patience)
        if _is_due(watch, reading, load, patience, snapshot.at):
            look.append(pod.ref)
        if _is_stalled(watch, reading, load, patience, snapshot.at):
            found.append((_idle_since(watch), pod))
    told = Stall(watches=watches, look=tuple(look))
    if not found:
        return told
    since, pod = min(found, key=lambda one: (one[0], one[1].ref))
    replacement, waits = _judged(snapshot, service, pod, since, pods, floor)
    return Stall(watches=watches, look=told.look, replace=replacement, waits=waits)


def watched(old: Watch | None, reading: PodReading, load: InFlight | None) -> Watch | None:
    """What is known after another look; a missing reading changes nothing."""
    watch = old
    steps, scraped = reading.steps, reading.scraped
    if steps is not None and scraped is not None and (old is None or steps != old.steps):
        watch = Watch(steps=steps, since=scraped)
    if watch is None or load is None or load.at < watch.since:
        return watch
    busy = (watch.busy_since or load.at) if load.requests else None
    return Watch(steps=watch.steps, since=watch.since, busy_since=busy)


def patience_for(fit: Fit, watch: Watch, patience: timedelta) -> timedelta:
    """How long this engine may take no step although it holds requests."""
    if watch.steps == 0:
        patience *= _FIRST
    return max(patience, _MARGIN * longest_prompt(fit))


def longest_prompt(fit: Fit) -> timedelta:
    """The time to read a prompt that fills the whole context, in steps as large as allowed."""
    chunk = fit.limits.max_num_batched_tokens
    seconds = sum(
        fit.step.seconds(
            decoding=0, kv_tokens=read, prefill_tokens=min(chunk, fit.max_model_len - read)
        )
        for read in range(0, fit.max_model_len, chunk)
    )
    return timedelta(seconds=seconds)


def _idle_since(watch: Watch) -> datetime:
    """From when on the engine had something to do and took no step."""
    return max(watch.since, watch.busy_since or watch.since)


def _is_stalled(
    watch: Watch, reading: PodReading, load: InFlight | None, patience: timedelta, now: datetime
) -> bool:
    """By a scrape that is so much younger than the first one, so that slow scrapes prove nothing,
    and a look that is not much older."""
    if watch.busy_since is None or load is None or reading.scraped is None:
        return False
    recent = now - load.at <= FRESH
    return recent and reading.scraped - _idle_since(watch) >= patience


def _is_due(
    watch: Watch, reading: PodReading, load: InFlight | None, patience: timedelta, now: datetime
) -> bool:
    """Only engines whose count stands still are asked; those with requests in them more often."""
    if reading.scraped is None or reading.scraped - watch.since < patience / 4:
        return False
    pause = patience / 4 if watch.busy_since is None else min(patience / 12, FRESH / 3)
    return load is None or now - load.at >= pause


def _judged(
    snapshot: Snapshot,
    service: Service,
    pod: Pod,
    since: datetime,
    pods: Sequence[Pod],
    floor: int,
) -> tuple[Replacement | None, str | None]:
    """Replace it, or say why not yet.

    A false alarm that comes again and again must not empty a service, so beside the one that goes
    all others of the floor have to take requests.
    """
    load = snapshot.in_flight[pod.ref]
    fact = (
        f"{pod.ref.name} holds {load.requests} requests, and its engine took no step "
        f"since {since:%Y-%m-%dT%H:%M:%SZ}"
    )
    last = service.status.replacement
    if last is not None and last.uid == pod.uid:
        again = Replacement(pod=pod.ref, uid=pod.uid, at=last.at, message=last.message)
        return again, None
    if last is not None and snapshot.at - last.at < HOLD:
        return None, (
            f"{fact}; {last.pod} was replaced before, and the next one may be "
            f"from {last.at + HOLD:%H:%M:%SZ} on"
        )
    others = sum(other.takes_requests for other in pods if other.uid != pod.uid)
    if others < floor - 1:
        return (
            None,
            f"{fact}; it is replaced once {floor - 1} others take requests, now {others} do",
        )
    at = snapshot.at.replace(microsecond=0)
    return Replacement(pod=pod.ref, uid=pod.uid, at=at, message=f"{fact}: it is replaced"), None
