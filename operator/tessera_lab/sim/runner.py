"""The engine on the wall clock: one task that steps it and hands out tokens."""

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass

from tessera_lab.engine import EngineCore
from tessera_lab.engine.requests import (
    EngineRequest,
    EngineStep,
    FinishedRequest,
    FinishReason,
    RejectionReason,
)
from tessera_lab.sim.meters import EngineMeters
from tessera_lab.sim.usage import Timing

log = logging.getLogger(__name__)

# Falling behind by less is no news.
_LATE_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class QueuedRequest:
    """A request with what only the look-alike's surroundings know of it."""

    request: EngineRequest
    max_tokens: int
    siblings: int = 1
    """Answers that were asked for with it, itself included."""
    adapter: str | None = None


class TokenStream:
    """The tokens of one request on their way to its handler."""

    def __init__(self, queued: QueuedRequest, changed: asyncio.Event, *, live: bool) -> None:
        self.request = queued.request
        self.adapter = queued.adapter
        self.changed = changed
        """Of any token if the stream is live, else of the end; the answers of one ask share it."""
        self.tokens = 0
        """Given out so far."""
        self.ended = False
        self.end_sent = False
        """The client knows that it is over."""
        self.reason: FinishReason | None = None
        """Why it is over; None if it was dropped without having run."""
        self.engine_died = False
        """It is over because the engine died."""
        self.cached_tokens = 0
        """Of the prompt, from the prefix cache; known at the end."""
        self.timing: Timing | None = None
        """Known at the end."""
        self._live = live

    def add_token(self) -> None:
        self.tokens += 1
        if self._live:
            self.changed.set()

    def end(self, reason: FinishReason | None) -> None:
        self.ended, self.reason = True, reason
        self.changed.set()


class StepPacer:
    """When the present step ends, and how far the machine falls behind."""

    def __init__(self) -> None:
        self.max_late_seconds = 0.0
        """The latest that a step ended after its time."""
        self.lost_seconds = 0.0
        """What was never caught up before the engine became idle."""
        self._started_seconds = 0.0
        """What all steps so far should take, the present one in full."""
        self._due: float | None = None
        self._late_seconds = 0.0

    def busy_seconds(self, now: float) -> float:
        """Engine work so far; of the present step only what has passed."""
        remaining = 0.0 if self._due is None else max(0.0, self._due - now)
        return self._started_seconds - remaining

    def begin_step(self, seconds: float, now: float) -> float:
        """Begin a step that takes so long; wait the returned time before its end.

        A step begins where the one before it should have ended, so that a late one is made up for.
        """
        self._started_seconds += seconds
        self._due = (now if self._due is None else self._due) + seconds
        return max(0.0, self._due - now)

    def end_step(self, now: float) -> None:
        """The step was given out."""
        self._late_seconds = max(0.0, now - (now if self._due is None else self._due))
        self.max_late_seconds = max(self.max_late_seconds, self._late_seconds)

    def pause(self) -> None:
        """Nothing is left to do: the next step begins when there is."""
        self.lost_seconds += self._late_seconds
        self._due, self._late_seconds = None, 0.0


class EngineRunner:
    """Takes requests at any time; what they get comes at the end of each step.

    A halted engine takes requests, too, but they do not reach its queue and no metric moves. There
    are two ways to halt: paused, after the step under way, and stuck, in the middle of it.
    """

    def __init__(
        self, engine: EngineCore, meters: EngineMeters, clock: Callable[[], float]
    ) -> None:
        self._pacer = StepPacer()
        self._engine = engine
        self._meters = meters
        self._clock = clock
        self._streams: dict[int, TokenStream] = {}
        self._deferred: dict[int, QueuedRequest] = {}
        """Requests that wait for a halted engine."""
        self._disconnected: list[int] = []
        """Requests whose clients left meanwhile."""
        self._admission_closed = False
        """Requests wait outside although it runs."""
        self._last_number = 0
        self._work_available = asyncio.Event()
        self._idle = asyncio.Event()
        self._not_paused = _set_event()
        """Unless paused."""
        self._not_frozen = _set_event()
        """Unless stuck."""

    async def run(self) -> None:
        """Step while there is work; ends only by being cancelled."""
        while True:
            await self._not_paused.wait()
            step = self._engine.step()
            if step is None:
                self._idle.set()
                self._pacer.pause()
                self._work_available.clear()
                await self._work_available.wait()
                continue
            now = self._clock()
            self._meters.step_started(step, now)
            await asyncio.sleep(self._pacer.begin_step(step.seconds, now))
            await self._not_frozen.wait()
            self._publish_step(step)

    @property
    def paused(self) -> bool:
        return not self._not_paused.is_set()

    @property
    def _halted(self) -> bool:
        return self._admission_closed or self.paused or not self._not_frozen.is_set()

    def pause(self) -> None:
        """Take no further step; who is in the engine keeps its place."""
        self._not_paused.clear()

    async def finish_and_pause(self) -> None:
        """Let those end that are in the engine, while later ones wait outside, and pause."""
        self._admission_closed = True
        self._idle.clear()
        self._work_available.set()
        await self._idle.wait()
        self.pause()

    def resume(self) -> None:
        """Go on after a pause."""
        self._admission_closed = False
        self._not_paused.set()
        self._submit_deferred()

    def freeze(self, seconds: float | None = None) -> None:
        """As a stopped engine process behind a living API server: no step ends any more, and
        requests that come do not reach the queue, so that no metric moves. It ends after so many
        seconds, or with `thaw`.
        """
        self._not_frozen.clear()
        if seconds is not None:
            asyncio.get_running_loop().call_later(seconds, self.thaw)

    def thaw(self) -> None:
        """Go on in the middle of the step; who left meanwhile is aborted now."""
        self._not_frozen.set()
        for number in self._disconnected:
            self._engine.abort(number)
            self._meters.request_aborted(number)
        self._disconnected.clear()
        self._submit_deferred()

    def reset_prefix_cache(self) -> None:
        """Empty the prefix cache."""
        self._engine.reset_prefix_cache()

    def busy_seconds(self) -> float:
        """Engine work until now."""
        return self._pacer.busy_seconds(self._clock())

    def next_number(self) -> int:
        self._last_number += 1
        return self._last_number

    def adapters(self) -> tuple[set[str], set[str]]:
        """Names of the adapters of running and of waiting requests."""
        running: set[str] = set()
        waiting: set[str] = set()
        for number, stream in self._streams.items():
            if stream.adapter is not None and number not in self._deferred:
                (waiting if self._engine.is_waiting(number) else running).add(stream.adapter)
        return running, waiting

    def submit(
        self, queued: QueuedRequest, changed: asyncio.Event, *, live: bool
    ) -> TokenStream | RejectionReason:
        """Queue a request, or say which limit refuses it."""
        request = queued.request
        rejection = self._rejection() if self._halted else self._engine.submit(request)
        if rejection is not None:
            self._meters.rejected_by[rejection] += 1
            return rejection
        stream = self._streams[request.id] = TokenStream(queued, changed, live=live)
        if self._halted:
            self._deferred[request.id] = queued
        else:
            self._record_arrival(queued)
        return stream

    def release(self, stream: TokenStream) -> None:
        """The handler is done with it; a request that has not ended is aborted."""
        number = stream.request.id
        if self._streams.pop(number, None) is None:
            return
        if self._deferred.pop(number, None) is not None:
            return
        if not self._not_frozen.is_set():
            self._disconnected.append(number)
            return
        self._engine.abort(number)
        self._meters.request_aborted(number)

    def abort_all(self) -> None:
        """End every request: those that run as aborted, those that wait without a word."""
        for stream in list(self._streams.values()):
            number = stream.request.id
            unsent = number in self._deferred or (
                self._engine.is_waiting(number) and not stream.tokens
            )
            self._abort(stream, None if unsent else FinishReason.ABORT)

    def abort_running(self) -> None:
        """End every request that the engine has, as aborted."""
        for stream in list(self._streams.values()):
            if stream.request.id not in self._deferred:
                self._abort(stream, FinishReason.ABORT)

    def fail_all(self) -> None:
        """The engine is dead: nothing of it is heard any more."""
        self.freeze()
        for stream in list(self._streams.values()):
            stream.engine_died = True
            self._end(stream, None)

    def log_speed(self) -> None:
        """Log whether the machine kept up with the simulated hardware."""
        pacer = self._pacer
        level = logging.WARNING if pacer.max_late_seconds > _LATE_SECONDS else logging.INFO
        log.log(
            level,
            "simulated %.1f s of engine work; steps were late by at most %.3f s, %.3f s were lost",
            self.busy_seconds(),
            pacer.max_late_seconds,
            pacer.lost_seconds,
        )

    def _rejection(self) -> RejectionReason | None:
        """The API server counts requests itself."""
        limit = self._engine.limits.max_queued_requests
        if limit is not None and len(self._streams) >= limit:
            return RejectionReason.QUEUED_REQUESTS
        return None

    def _submit_deferred(self) -> None:
        """Queue what was held back, unless the engine still stands."""
        if self._halted:
            return
        deferred, self._deferred = self._deferred, {}
        for queued in deferred.values():
            if self._engine.submit(queued.request) is None:
                self._record_arrival(queued)
            else:
                self._end(self._streams[queued.request.id], None)

    def _record_arrival(self, queued: QueuedRequest) -> None:
        self._meters.request_arrived(
            queued.request, queued.max_tokens, queued.siblings, self._clock()
        )
        self._idle.clear()
        self._work_available.set()

    def _abort(self, stream: TokenStream, reason: FinishReason | None) -> None:
        if self._deferred.pop(stream.request.id, None) is None:
            self._engine.abort(stream.request.id)
            self._meters.request_aborted(stream.request.id)
        self._end(stream, reason)

    def _publish_step(self, step: EngineStep) -> None:
        now = self._clock()
        self._pacer.end_step(now)
        timings = self._meters.step_ended(step, now)
        for request_id in step.emitted:
            stream = self._streams.get(request_id)
            if stream is not None:
                stream.add_token()
        for finished in step.finished:
            self._finish_stream(finished, timings.get(finished.request.id))

    def _finish_stream(self, finished: FinishedRequest, timing: Timing | None) -> None:
        stream = self._streams.get(finished.request.id)
        if stream is not None:
            stream.cached_tokens, stream.timing = finished.cached_tokens, timing
            self._end(stream, finished.reason)

    def _end(self, stream: TokenStream, reason: FinishReason | None) -> None:
        del self._streams[stream.request.id]
        stream.end(reason)


def _set_event() -> asyncio.Event:
    event = asyncio.Event()
    event.set()
    return event
