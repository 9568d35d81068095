"""The engine on the wall clock: one task that steps it and hands out tokens."""

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass

from tessera.domain.engine import Engine
from tessera.domain.engine_requests import Finished, Reason, Refusal, Request, Step
from tessera.engine_sim.meters import Meters
from tessera.engine_sim.pace import Pace
from tessera.engine_sim.usage import Timing

log = logging.getLogger(__name__)

_LATE_SECONDS = 1.0
"""Falling behind by less is no news."""


@dataclass(frozen=True, slots=True)
class Order:
    """A request with what only the look-alike's surroundings know of it."""

    request: Request
    max_tokens: int
    siblings: int = 1
    """Answers that were asked for with it, itself included."""
    adapter: str | None = None


class Stream:
    """The tokens of one request on their way to its handler."""

    def __init__(self, order: Order, news: asyncio.Event, *, live: bool) -> None:
        self.request = order.request
        self.adapter = order.adapter
        self.news = news
        """Of any token if the stream is live, else of the end; the answers of one ask share it."""
        self.tokens = 0
        """Given out so far."""
        self.over = False
        self.told = False
        """The client knows that it is over."""
        self.reason: Reason | None = None
        """Why it is over; None if it was dropped without having run."""
        self.broken = False
        """It is over because the engine died."""
        self.cached_tokens = 0
        """Of the prompt, from the prefix cache; known at the end."""
        self.timing: Timing | None = None
        """Known at the end."""
        self._live = live

    def token(self) -> None:
        self.tokens += 1
        if self._live:
            self.news.set()

    def end(self, reason: Reason | None) -> None:
        self.over, self.reason = True, reason
        self.news.set()


class Runner:
    """Takes requests at any time; what they get comes at the end of each step.

    A halted engine takes requests, too, but they do not reach its queue and no metric moves. There
    are two ways to halt: paused, after the step under way, and stuck, in the middle of it.
    """

    def __init__(self, engine: Engine, meters: Meters, clock: Callable[[], float]) -> None:
        self._pace = Pace()
        self._engine = engine
        self._meters = meters
        self._clock = clock
        self._streams: dict[int, Stream] = {}
        self._held: dict[int, Order] = {}
        """Requests that wait for a halted engine."""
        self._gone: list[int] = []
        """Requests whose clients left meanwhile."""
        self._closed = False
        """Requests wait outside although it runs."""
        self._numbers = 0
        self._work = asyncio.Event()
        self._idle = asyncio.Event()
        self._moving = _is_set()
        """Unless paused."""
        self._alive = _is_set()
        """Unless stuck."""

    async def run(self) -> None:
        """Step while there is work; ends only by being cancelled."""
        while True:
            await self._moving.wait()
            step = self._engine.step()
            if step is None:
                self._idle.set()
                self._pace.rest()
                self._work.clear()
                await self._work.wait()
                continue
            now = self._clock()
            self._meters.began(step, now)
            await asyncio.sleep(self._pace.wait(step.seconds, now))
            await self._alive.wait()
            self._hand_out(step)

    @property
    def paused(self) -> bool:
        return not self._moving.is_set()

    @property
    def _halted(self) -> bool:
        return self._closed or self.paused or not self._alive.is_set()

    def pause(self) -> None:
        """Take no further step; who is in the engine keeps its place."""
        self._moving.clear()

    async def finish(self) -> None:
        """Let those end that are in the engine, while later ones wait outside, and pause."""
        self._closed = True
        self._idle.clear()
        self._work.set()
        await self._idle.wait()
        self.pause()

    def resume(self) -> None:
        """Go on after a pause."""
        self._closed = False
        self._moving.set()
        self._let_in()

    def freeze(self, seconds: float | None = None) -> None:
        """As a stopped engine process behind a living API server: no step ends any more, and
        requests that come do not reach the queue, so that no metric moves. It ends after so many
        seconds, or with `thaw`.
        """
        self._alive.clear()
        if seconds is not None:
            asyncio.get_running_loop().call_later(seconds, self.thaw)

    def thaw(self) -> None:
        """Go on in the middle of the step; who left meanwhile is aborted now."""
        self._alive.set()
        for number in self._gone:
            self._engine.abort(number)
            self._meters.aborted(number)
        self._gone.clear()
        self._let_in()

    def forget(self) -> None:
        """Empty the prefix cache."""
        self._engine.forget()

    def busy_seconds(self) -> float:
        """Engine work until now."""
        return self._pace.busy_seconds(self._clock())

    def next_number(self) -> int:
        self._numbers += 1
        return self._numbers

    def adapters(self) -> tuple[set[str], set[str]]:
        """Names of the adapters of running and of waiting requests."""
        running: set[str] = set()
        waiting: set[str] = set()
        for number, stream in self._streams.items():
            if stream.adapter is not None and number not in self._held:
                (waiting if self._engine.is_waiting(number) else running).add(stream.adapter)
        return running, waiting

    def submit(self, order: Order, news: asyncio.Event, *, live: bool) -> Stream | Refusal:
        """Queue a request, or say which limit refuses it."""
        request = order.request
        refusal = self._refusal() if self._halted else self._engine.submit(request)
        if refusal is not None:
            self._meters.refused_by[refusal] += 1
            return refusal
        stream = self._streams[request.id] = Stream(order, news, live=live)
        if self._halted:
            self._held[request.id] = order
        else:
            self._arrived(order)
        return stream

    def leave(self, stream: Stream) -> None:
        """The handler is done with it; a request that has not ended is aborted."""
        number = stream.request.id
        if self._streams.pop(number, None) is None:
            return
        if self._held.pop(number, None) is not None:
            return
        if not self._alive.is_set():
            self._gone.append(number)
            return
        self._engine.abort(number)
        self._meters.aborted(number)

    def abort_all(self) -> None:
        """End every request: those that run as aborted, those that wait without a word."""
        for stream in list(self._streams.values()):
            number = stream.request.id
            unheard = number in self._held or (
                self._engine.is_waiting(number) and not stream.tokens
            )
            self._abort(stream, None if unheard else Reason.ABORT)

    def abort_running(self) -> None:
        """End every request that the engine has, as aborted."""
        for stream in list(self._streams.values()):
            if stream.request.id not in self._held:
                self.abort(stream)

    def abort(self, stream: Stream) -> None:
        """End this one as aborted, if it has not ended."""
        if stream.request.id in self._streams:
            self._abort(stream, Reason.ABORT)

    def break_all(self) -> None:
        """The engine is dead: nothing of it is heard any more."""
        self.freeze()
        for stream in list(self._streams.values()):
            stream.broken = True
            self._end(stream, None)

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

    def _refusal(self) -> Refusal | None:
        """The API server counts requests itself."""
        limit = self._engine.limits.max_queued_requests
        if limit is not None and len(self._streams) >= limit:
            return Refusal.QUEUED_REQUESTS
        return None

    def _let_in(self) -> None:
        """Queue what was held back, unless the engine still stands."""
        if self._halted:
            return
        orders, self._held = self._held, {}
        for order in orders.values():
            if self._engine.submit(order.request) is None:
                self._arrived(order)
            else:
                self._end(self._streams[order.request.id], None)

    def _arrived(self, order: Order) -> None:
        self._meters.arrived(order.request, order.max_tokens, order.siblings, self._clock())
        self._idle.clear()
        self._work.set()

    def _abort(self, stream: Stream, reason: Reason | None) -> None:
        if self._held.pop(stream.request.id, None) is None:
            self._engine.abort(stream.request.id)
            self._meters.aborted(stream.request.id)
        self._end(stream, reason)

    def _hand_out(self, step: Step) -> None:
        now = self._clock()
        self._pace.ended(now)
        timings = self._meters.ended(step, now)
        for request_id in step.emitted:
            stream = self._streams.get(request_id)
            if stream is not None:
                stream.token()
        for finished in step.finished:
            self._finished(finished, timings.get(finished.request.id))

    def _finished(self, finished: Finished, timing: Timing | None) -> None:
        stream = self._streams.get(finished.request.id)
        if stream is not None:
            stream.cached_tokens, stream.timing = finished.cached_tokens, timing
            self._end(stream, finished.reason)

    def _end(self, stream: Stream, reason: Reason | None) -> None:
        del self._streams[stream.request.id]
        stream.end(reason)


def _is_set() -> asyncio.Event:
    event = asyncio.Event()
    event.set()
    return event
