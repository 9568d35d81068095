"""An engine on simulated time: from moment to moment, without a step for every token."""

import math
from dataclasses import dataclass

from tessera.domain.engine.machine import Engine
from tessera.domain.engine.sequence import Sequence
from tessera.domain.engine_requests import Reason, Refusal, Request


@dataclass(frozen=True, slots=True, kw_only=True)
class Served:
    """A request that left the engine, with its moments in seconds."""

    request: Request
    reason: Reason
    output_tokens: int
    preemptions: int
    cached_tokens: int
    arrived: float
    admitted: float | None
    first: float | None
    """Its first token; None if it got none."""
    ended: float

    @property
    def first_token_seconds(self) -> float | None:
        return None if self.first is None else self.first - self.arrived

    @property
    def token_seconds(self) -> float | None:
        """Mean time from one token to the next."""
        if self.first is None or self.output_tokens < 2:
            return None
        return (self.ended - self.first) / (self.output_tokens - 1)


class Timeline:
    """Runs an engine until given moments.

    A step is never broken off: a request that comes while one is under way waits for its end.
    """

    def __init__(self, engine: Engine, now: float = 0.0) -> None:
        self.engine = engine
        self.now = now
        """The end of the newest step, or the moment up to which nothing was to do."""
        self.busy_seconds = 0.0
        self._deadline = math.inf

    def submit(self, request: Request, at: float | None = None) -> Refusal | None:
        """A request arrives; having gone on to its moment, which may lie within the newest step."""
        moment = self.now if at is None else at
        if moment > self.now:
            raise ValueError(f"the moment {moment} is still to come")
        return self.engine.submit(request, moment)

    def drain(self, deadline: float = math.inf) -> None:
        """Take nothing more; what is still here at the deadline is aborted."""
        self.engine.drain()
        self._deadline = deadline

    def advance(self, until: float) -> list[Served]:
        """Do all steps that begin before `until`: who left meanwhile, in the order of their ends.

        `math.inf` runs to the end of the last request.
        """
        served = self._run(min(until, self._deadline))
        if until >= self._deadline and not self.engine.idle:
            served += [self._abort(request_id) for request_id in self.engine.requests]
        if self.now < until < math.inf:
            self.now = until
        return served

    def _run(self, until: float) -> list[Served]:
        engine, served = self.engine, list[Served]()
        while self.now < until and not engine.idle:
            seconds = engine.skip(until - self.now) or self._work()
            self.now += seconds
            self.busy_seconds += seconds
            served += [_served(gone, gone.request.ends, self.now) for gone in engine.let_go()]
        return served

    def _work(self) -> float:
        engine = self.engine
        seconds = engine.work()
        for sequence in engine.admitted:
            if sequence.admitted is None:
                sequence.admitted = self.now
        for sequence in engine.joined:
            if sequence.first is None:
                sequence.first = self.now + seconds
        return seconds

    def _abort(self, request_id: int) -> Served:
        gone = self.engine.take_out(request_id)
        if gone is None:
            raise KeyError(request_id)
        return _served(gone, Reason.ABORT, self.now)


def _served(gone: Sequence, reason: Reason, now: float) -> Served:
    return Served(
        request=gone.request,
        reason=reason,
        output_tokens=gone.emitted,
        preemptions=gone.preemptions,
        cached_tokens=gone.cached or 0,
        arrived=gone.arrived,
        admitted=gone.admitted,
        first=gone.first,
        ended=now,
    )
