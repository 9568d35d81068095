"""An engine on simulated time, which does equal steps at once."""

import math
from dataclasses import dataclass

from tessera_lab.engine.core import EngineCore
from tessera_lab.engine.requests import EngineRequest, FinishReason, RejectionReason
from tessera_lab.engine.sequence_state import SequenceState


@dataclass(frozen=True, slots=True, kw_only=True)
class ServedRequest:
    """A request that left the engine, with its timestamps in seconds."""

    request: EngineRequest
    reason: FinishReason
    output_tokens: int
    preemptions: int
    cached_tokens: int
    arrived_at: float
    admitted_at: float | None
    first_token_at: float | None
    """Moment of the first token; None if it got none."""
    ended_at: float
    last_token_at: float | None = None
    """Moment of the last token, where the request stayed longer than that."""

    @property
    def ttft_seconds(self) -> float | None:
        return None if self.first_token_at is None else self.first_token_at - self.arrived_at

    @property
    def tpot_seconds(self) -> float | None:
        """Return the mean time from one token to the next; None below two tokens."""
        if self.first_token_at is None or self.output_tokens < 2:
            return None
        last_token_at = self.ended_at if self.last_token_at is None else self.last_token_at
        return (last_token_at - self.first_token_at) / (self.output_tokens - 1)


class Timeline:
    """Runs an engine up to given moments.

    A step is never interrupted: a request that arrives during one waits for its end.
    """

    def __init__(self, engine: EngineCore, now: float = 0.0) -> None:
        self.engine = engine
        self.now = now
        """End of the newest step, or the moment up to which the engine was idle."""
        self.busy_seconds = 0.0
        self._deadline = math.inf

    def submit(self, request: EngineRequest, at: float | None = None) -> RejectionReason | None:
        """Submit a request at a moment that was reached; it may lie within the newest step."""
        moment = self.now if at is None else at
        if moment > self.now:
            raise ValueError(f"the moment {moment} is still to come")
        return self.engine.submit(request, moment)

    def drain(self, deadline: float = math.inf) -> None:
        """Accept no more requests; those left at the deadline are aborted."""
        self.engine.drain()
        self._deadline = deadline

    def advance(self, until: float) -> list[ServedRequest]:
        """Do all steps that begin before `until`; return the requests that left, in order of their
        ends.

        `math.inf` runs to the end of the last request.
        """
        served = self._run(min(until, self._deadline))
        if until >= self._deadline and not self.engine.idle:
            served += [self._abort(request_id) for request_id in self.engine.requests]
        if self.now < until < math.inf:
            self.now = until
        return served

    def _run(self, until: float) -> list[ServedRequest]:
        engine, served = self.engine, list[ServedRequest]()
        while self.now < until and not engine.idle:
            seconds = engine.skip(until - self.now) or self._run_step()
            self.now += seconds
            self.busy_seconds += seconds
            served += [
                _served_request(sequence, sequence.request.finish_reason, self.now)
                for sequence in engine.end_step()
            ]
        return served

    def _run_step(self) -> float:
        engine = self.engine
        seconds = engine.begin_step()
        for sequence in engine.admitted:
            if sequence.admitted_at is None:
                sequence.admitted_at = self.now
        for sequence in engine.completed_prefills:
            if sequence.first_token_at is None:
                sequence.first_token_at = self.now + seconds
        return seconds

    def _abort(self, request_id: int) -> ServedRequest:
        sequence = self.engine.remove(request_id)
        if sequence is None:
            raise KeyError(request_id)
        return _served_request(sequence, FinishReason.ABORT, self.now)


def _served_request(sequence: SequenceState, reason: FinishReason, now: float) -> ServedRequest:
    return ServedRequest(
        request=sequence.request,
        reason=reason,
        output_tokens=sequence.emitted,
        preemptions=sequence.preemptions,
        cached_tokens=sequence.cached or 0,
        arrived_at=sequence.arrived_at,
        admitted_at=sequence.admitted_at,
        first_token_at=sequence.first_token_at,
        ended_at=now,
    )
