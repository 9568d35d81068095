"""The engine on the wall clock: one task that steps it and hands out tokens."""

import asyncio
import logging
from collections.abc import Callable

from tessera.domain.engine import Engine
from tessera.domain.engine_requests import Finished, Reason, Refusal, Request, Step
from tessera.engine_sim.meters import Meters
from tessera.engine_sim.pace import Pace

log = logging.getLogger(__name__)

_LATE_SECONDS = 1.0
"""Falling behind by less is no news."""


class Stream:
    """The tokens of one request on their way to its handler."""

    def __init__(self, request: Request, *, live: bool) -> None:
        self.request = request
        self.tokens = 0
        """Given out so far."""
        self.over = False
        self.reason: Reason | None = None
        """Why it is over; None if it was dropped without having run."""
        self.cached_tokens = 0
        """Of the prompt, from the prefix cache; known at the end."""
        self._live = live
        self._news = asyncio.Event()

    async def more(self) -> None:
        """Wait for news: of any token if the stream is live, else of the end."""
        await self._news.wait()
        self._news.clear()

    def token(self) -> None:
        self.tokens += 1
        if self._live:
            self._news.set()

    def end(self, reason: Reason | None) -> None:
        self.over, self.reason = True, reason
        self._news.set()


class Runner:
    """Takes requests at any time; what they get comes at the end of each step."""

    def __init__(self, engine: Engine, meters: Meters, clock: Callable[[], float]) -> None:
        self._pace = Pace()
        self._engine = engine
        self._meters = meters
        self._clock = clock
        self._streams: dict[int, Stream] = {}
        self._numbers = 0
        self._work = asyncio.Event()
        self._frozen = False

    async def run(self) -> None:
        """Step while there is work; ends only by being cancelled."""
        while True:
            step = self._engine.step()
            if step is None:
                self._pace.rest()
                self._work.clear()
                await self._work.wait()
                continue
            now = self._clock()
            self._meters.began(step, now)
            await asyncio.sleep(self._pace.wait(step.seconds, now))
            if self._frozen:
                await asyncio.Event().wait()
            self._hand_out(step)

    def freeze(self) -> None:
        """As a stopped engine process behind a living API server: no step ends any more, and
        requests that come do not reach the queue, so that no metric moves. It never thaws."""
        self._frozen = True

    def busy_seconds(self) -> float:
        """Engine work until now."""
        return self._pace.busy_seconds(self._clock())

    def next_number(self) -> int:
        self._numbers += 1
        return self._numbers

    def submit(self, request: Request, *, max_tokens: int, live: bool) -> Stream | Refusal:
        """Queue a request, or say which limit refuses it."""
        refusal = None if self._frozen else self._engine.submit(request)
        if refusal is not None:
            self._meters.refused_by[refusal] += 1
            return refusal
        stream = self._streams[request.id] = Stream(request, live=live)
        if not self._frozen:
            self._meters.arrived(request, max_tokens, self._clock())
            self._work.set()
        return stream

    def leave(self, stream: Stream) -> None:
        """The handler is done with it; a request that has not ended is aborted."""
        if self._streams.pop(stream.request.id, None) is not None and not self._frozen:
            self._engine.abort(stream.request.id)
            self._meters.aborted(stream.request.id)

    def abort_all(self) -> None:
        """End every request: those that run as aborted, those that wait without a word."""
        for stream in list(self._streams.values()):
            unheard = self._engine.is_waiting(stream.request.id) and not stream.tokens
            self._engine.abort(stream.request.id)
            self._meters.aborted(stream.request.id)
            self._end(stream, None if unheard else Reason.ABORT)

    def told_speed(self) -> None:
        """Log whether the machine kept up with the simulated hardware."""
        pace = self._pace
        level = logging.WARNING if pace.worst_seconds > _LATE_SECONDS else logging.INFO
        log.log(
            level,
            "simulated %.1f s of engine work; steps were late by at most %.3f s, %.3f s were lost",
            self.busy_seconds(),
            pace.worst_seconds,
            pace.lost_seconds,
        )

    def _hand_out(self, step: Step) -> None:
        now = self._clock()
        self._pace.ended(now)
        self._meters.ended(step, now)
        for request_id in step.emitted:
            stream = self._streams.get(request_id)
            if stream is not None:
                stream.token()
        for finished in step.finished:
            self._finished(finished)

    def _finished(self, finished: Finished) -> None:
        stream = self._streams.get(finished.request.id)
        if stream is not None:
            stream.cached_tokens = finished.cached_tokens
            self._end(stream, finished.reason)

    def _end(self, stream: Stream, reason: Reason | None) -> None:
        del self._streams[stream.request.id]
        stream.end(reason)
