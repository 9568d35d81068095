"""What one replica carries: its load, faster until it misses the SLO or its queue would grow."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from tessera_lab.engine.play import PlayedLoad, TimedRequest, play
from tessera_lab.engine.setup import EngineSetup

# A replica is loaded to so much of what it computes while all requests wait, so that its queue
# ends again after bursts.
MOST_USE = 0.8
# One that would keep its SLO only below this misses it, and is loaded as if its users waited. So is
# a static batch, which keeps an SLO only while it is nearly idle.
LEAST_USE = 0.02
_BISECTIONS = 6
# So many fill an engine for long enough to see what it computes.
_FILLING_REQUESTS = 2000


@dataclass(frozen=True, slots=True, kw_only=True)
class LatencyObjectives:
    """P95 of TTFT and TPOT, in seconds."""

    ttft: float
    tpot: float


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadSample:
    """Requests that stand for a load, of which one replica gets a part."""

    name: str
    requests: tuple[TimedRequest, ...]
    rate: float = 1.0
    """Requests per second."""
    sessions: tuple[int, ...] | None = None
    """Number of each request's session, from 0 in the order of their first requests, of a recorded
    load; None: arrivals are independent, so that fewer of them are the same at longer gaps."""
    shared_tokens: int | None = None
    """Tokens of each name in `shared_prefixes`; None where no request has any."""

    @property
    def input_tokens(self) -> float:
        return fmean(each.request.prompt_tokens for each in self.requests)

    @property
    def output_tokens(self) -> float:
        return fmean(each.request.output_tokens for each in self.requests)

    def at(self, rate: float) -> list[TimedRequest]:
        """Return what one of several replicas gets at so many requests per second.

        Of a recorded load these are some of the sessions at their times, so that bursts last as
        long as they did. Where even all are too few, they come faster.
        """
        share = rate / self.rate
        if self.sessions is not None and share < 1:
            return self._part(share)
        return [TimedRequest(each.at / share, each.request) for each in self.requests]

    def at_once(self) -> list[TimedRequest]:
        """Return enough requests to fill an engine, all at the same time."""
        requests = self._part(_FILLING_REQUESTS / len(self.requests))
        return [TimedRequest(0.0, each.request) for each in requests]

    def _part(self, share: float) -> list[TimedRequest]:
        """Return a share of the sessions, evenly spread."""
        sessions = self.sessions or range(len(self.requests))
        return [
            request
            for request, session in zip(self.requests, sessions, strict=True)
            if session == 0 or int((session + 1) * share) > int(session * share)
        ]


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaRate:
    """The load of one replica, in requests per second, with P95 latencies in seconds."""

    rate: float
    saturated: float
    """What it computes while all requests wait."""
    keeps_slo: bool
    ttft: float
    tpot: float
    joules: float | None = None
    """Of an output token at this load; None where the watts of the GPU are not known."""

    @property
    def keeps_up(self) -> bool:
        """Return whether it keeps the SLO at the highest load that any replica gets."""
        return self.keeps_slo and self.rate >= MOST_USE * self.saturated


def replica_rate(
    setup: EngineSetup, load: LoadSample, objectives: LatencyObjectives
) -> ReplicaRate:
    """Return the highest rate within the SLO, at most `MOST_USE` of what the engine computes."""
    saturated = _saturated(play(setup, load.at_once()))

    def loaded(use: float) -> ReplicaRate:
        rate = use * saturated
        played = play(setup, load.at(rate))
        ttft, tpot = played.ttft(95), played.tpot(95) or 0.0
        return ReplicaRate(
            rate=rate,
            saturated=saturated,
            keeps_slo=ttft <= objectives.ttft and tpot <= objectives.tpot,
            ttft=ttft,
            tpot=tpot,
            joules=played.joules_per_token,
        )

    full = loaded(MOST_USE)
    if full.keeps_slo or setup.static_batch is not None:
        return full
    best, low, high = loaded(LEAST_USE), LEAST_USE, MOST_USE
    if not best.keeps_slo:
        return full
    for _ in range(_BISECTIONS):
        # Low rates are found as precisely as high ones.
        middle = math.sqrt(low * high)
        candidate = loaded(middle)
        if candidate.keeps_slo:
            best, low = candidate, middle
        else:
            high = middle
    return best


def _saturated(played: PlayedLoad) -> float:
    """Return requests per second, without the first and the last quarter of those that ended.

    The engine fills up in the first one and runs empty in the last one.
    """
    ends: Sequence[float] = sorted(each.ended_at for each in played.served)
    first, last = len(ends) // 4, len(ends) * 3 // 4
    seconds = ends[last] - ends[first] if last > first else 0.0
    return (last - first) / seconds if seconds else played.requests_per_second
