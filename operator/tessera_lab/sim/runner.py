"""The engine on the wall clock: one task that steps it and publishes tokens."""

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
    """A request with fields that only the API server needs."""

    request: EngineRequest
    max_tokens: int
    siblings: int = 1
    """Samples of the same HTTP request, itself included."""
    adapter: str | None = None


class TokenStream:
    """The tokens of one request on their way to its handler."""

    def __init__(self, queued: QueuedRequest, changed: asyncio.Event, *, live: bool) -> None:
        self.request = queued.request
        self.adapter = queued.adapter
        self.changed = changed
        """Set at every token if the stream is live, else at the end; samples of a request share it.
        """
        self.tokens = 0
        """Tokens published so far."""
        self.ended = False
        self.end_sent = False
        """Whether the client knows the end."""
        self.reason: FinishReason | None = None
        """Why it ended; None if it was dropped without having run."""
        self.engine_died = False
        """Whether it ended because the engine died."""
        self.cached_tokens = 0
        """Prompt tokens from the prefix cache; set at the end."""
        self.timing: Timing | None = None
        """Set at the end."""
        self._live = live

    def add_tokens(self, count: int = 1) -> None:
        """Publish the tokens of a step; drafts beyond the end of the output are none."""
        self.tokens = min(self.tokens + count, self.request.output_tokens)
        if self._live:
            self.changed.set()

    def end(self, reason: FinishReason | None) -> None:
        self.ended, self.reason = True, reason
        self.changed.set()


class StepPacer:
    """When the present step ends, and how far the host falls behind.

    The mean speed holds although single waits are never exact.
    """

    def __init__(self) -> None:
        self.max_late_seconds = 0.0
        """The latest that a step ended after its time."""
        self.lost_seconds = 0.0
        """Delay that was not caught up before the engine became idle."""
        self._started_seconds = 0.0
        """Time that all steps so far should take, the present one in full."""
        self._due: float | None = None
        self._late_seconds = 0.0

    def busy_seconds(self, now: float) -> float:
        """Return the engine's work so far; of the present step only what has passed."""
        remaining = 0.0 if self._due is None else max(0.0, self._due - now)
        return self._started_seconds - remaining

    def begin_step(self, seconds: float, now: float) -> float:
        """Begin a step of `seconds`; return the time to wait before its end."""
        self._started_seconds += seconds
        # It begins where the step before it should have ended, which makes up for a late one.
        self._due = (now if self._due is None else self._due) + seconds
        return max(0.0, self._due - now)

    def end_step(self, now: float) -> None:
        """Record that the step was published."""
        self._late_seconds = max(0.0, now - (now if self._due is None else self._due))
        self.max_late_seconds = max(self.max_late_seconds, self._late_seconds)

    def pause(self) -> None:
        """Record that nothing is left to do: the next step begins when there is."""
        self.lost_seconds += self._late_seconds
        self._due, self._late_seconds = None, 0.0


class EngineRunner:
    """Takes requests at any time; their tokens come at the end of each step.

    A halted engine takes requests, too, but they do not reach its queue and no metric moves. There
    are two ways to halt: paused, after the step in progress, and frozen, in the middle of it.
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
        """Requests whose clients left while the engine was frozen."""
        self._admission_closed = False
        """Whether requests wait outside although the engine runs."""
        self._last_number = 0
        self._work_available = asyncio.Event()
        self._idle = asyncio.Event()
        self._not_paused = _set_event()
        """Set unless paused."""
        self._not_frozen = _set_event()
        """Set unless frozen."""

    async def run(self) -> None:
        """Step while there is work, until cancelled."""
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
        """Take no further step; requests in the engine keep their place."""
        self._not_paused.clear()

    async def finish_and_pause(self) -> None:
        """Let requests in the engine end while later ones wait outside, then pause."""
        self._admission_closed = True
        self._idle.clear()
        self._work_available.set()
        await self._idle.wait()
        self.pause()

    def resume(self) -> None:
        """Continue after a pause."""
        self._admission_closed = False
        self._not_paused.set()
        self._submit_deferred()

    def freeze(self, seconds: float | None = None) -> None:
        """Halt as a stopped engine process behind a living API server does.

        No step ends any more, and new requests do not reach the queue, so that no metric moves. It
        ends after `seconds`, or with `thaw`.
        """
        self._not_frozen.clear()
        if seconds is not None:
            asyncio.get_running_loop().call_later(seconds, self.thaw)

    def thaw(self) -> None:
        """Continue in the middle of the step; requests of disconnected clients are aborted now."""
        self._not_frozen.set()
        for number in self._disconnected:
            self._engine.abort(number)
            self._meters.request_left(number)
        self._disconnected.clear()
        self._submit_deferred()

    def reset_prefix_cache(self) -> None:
        self._engine.reset_prefix_cache()

    def busy_seconds(self) -> float:
        """Return the engine's work until now."""
        return self._pacer.busy_seconds(self._clock())

    def next_number(self) -> int:
        self._last_number += 1
        return self._last_number

    def adapters(self) -> tuple[set[str], set[str]]:
        """Return the names of the adapters of running and of waiting requests."""
        running: set[str] = set()
        waiting: set[str] = set()
        for number, stream in self._streams.items():
            if stream.adapter is not None and number not in self._deferred:
                (waiting if self._engine.is_waiting(number) else running).add(stream.adapter)
        return running, waiting

    def submit(
        self, queued: QueuedRequest, changed: asyncio.Event, *, live: bool
    ) -> TokenStream | RejectionReason:
        """Queue a request, or return the limit that rejects it."""
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
        """Forget a request; one that has not ended is aborted."""
        number = stream.request.id
        if self._streams.pop(number, None) is None:
            return
        if self._deferred.pop(number, None) is not None:
            return
        if not self._not_frozen.is_set():
            self._disconnected.append(number)
            return
        self._engine.abort(number)
        self._meters.request_left(number)

    def abort_all(self) -> None:
        """End every request: running ones as aborted, waiting ones without a finish reason."""
        for stream in list(self._streams.values()):
            number = stream.request.id
            unsent = number in self._deferred or (
                self._engine.is_waiting(number) and not stream.tokens
            )
            self._abort(stream, None if unsent else FinishReason.ABORT)

    def abort_running(self) -> None:
        """End every request in the engine as aborted."""
        for stream in list(self._streams.values()):
            if stream.request.id not in self._deferred:
                self._abort(stream, FinishReason.ABORT)

    def fail_all(self) -> None:
        """End every request because the engine has died."""
        self.freeze()
        for stream in list(self._streams.values()):
            stream.engine_died = True
            self._end(stream, None)

    def log_lateness(self) -> None:
        """Log whether the host kept up with the simulated hardware."""
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
        """Return the queue limit that rejects a request: the API server counts requests itself."""
        limit = self._engine.limits.max_queued_requests
        if limit is not None and len(self._streams) >= limit:
            return RejectionReason.QUEUED_REQUESTS
        return None

    def _submit_deferred(self) -> None:
        """Queue deferred requests, unless the engine is still halted."""
        if self._halted:
            return
        deferred, self._deferred = self._deferred, {}
        for queued in deferred.values():
            if self._engine.submit(queued.request) is None:
                self._record_arrival(queued)
            else:
                self._end(self._streams[queued.request.id], None)

    def _record_arrival(self, queued: QueuedRequest) -> None:
        now = self._clock()
        self._meters.request_arrived(queued.request, queued.max_tokens, queued.siblings, now)
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
        single = {*step.first, *step.resumed} if step.tokens_per_request > 1 else ()
        for request_id in step.emitted:
            stream = self._streams.get(request_id)
            if stream is not None:
                stream.add_tokens(1 if request_id in single else step.tokens_per_request)
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
