"""The metrics of the engines as a monitoring system has them: by scrape, late, or not at all."""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field, fields

from tessera_lab.fleet.disturbance import Disturbance, within
from tessera_lab.fleet.observation import EngineSample, Totals
from tessera_lab.fleet.simulated_replica import EndedRequest, SimulatedReplica

_COUNTERS = tuple(counter.name for counter in fields(Totals))


@dataclass(frozen=True, slots=True, kw_only=True)
class Scrape:
    """All engines at one moment."""

    at: float = 0.0
    samples: dict[int, EngineSample | None] = field(default_factory=dict)
    """By the replicas' numbers; None where one has no metrics."""
    totals: Totals = field(default_factory=Totals)


def add(first: Totals, second: Totals, sign: int = 1) -> Totals:
    """Return the sum of two counts, or their difference."""
    return Totals(
        **{name: getattr(first, name) + sign * getattr(second, name) for name in _COUNTERS}
    )


class Scraper:
    """Counts what engines do, and scrapes them."""

    def __init__(self, disturbance: Disturbance) -> None:
        self.ended: list[EndedRequest] = []
        """Requests that ended since they were last taken."""
        self._disturbance = disturbance
        self._counted: dict[str, float] = dict.fromkeys(_COUNTERS, 0)
        self._reset = Totals()
        """Counters at their last reset."""
        self._resets = deque(sorted(disturbance.counter_resets))
        self._scrapes: deque[Scrape] = deque([Scrape()])
        """The newest one that has come, and those that are late."""

    def count(self, replicas: Sequence[SimulatedReplica]) -> list[EndedRequest]:
        """Take what ended in the engines since the last call."""
        ended: list[EndedRequest] = []
        counted = self._counted
        for replica in replicas:
            ended += replica.ended
            replica.ended = []
            for name, new in replica.take_counts().items():
                counted[name] += new
        for request in ended:
            counted["prompt_tokens"] += request.prompt_tokens
            counted["output_tokens"] += request.output_tokens
            counted["output_gaps"] += request.output_tokens - 1
            counted["gap_seconds"] += request.decode_seconds
        counted["finished"] += len(ended)
        self.ended += ended
        return ended

    def scrape(self, moment: float, ready: Sequence[SimulatedReplica], seconds: float) -> None:
        """Read the engines, unless metrics are missing; the last scrape was `seconds` ago."""
        if within(moment, self._disturbance.no_metrics):
            return
        totals = Totals(**self._counted)  # type: ignore[arg-type]
        while self._resets and self._resets[0] <= moment:
            self._resets.popleft()
            self._reset = totals
        samples: dict[int, EngineSample | None] = {
            replica.number: replica.sample(seconds) for replica in ready
        }
        if samples and within(moment, self._disturbance.partial_metrics):
            samples[min(samples)] = None
        self._scrapes.append(
            Scrape(at=moment, samples=samples, totals=add(totals, self._reset, -1))
        )

    def newest(self, moment: float) -> Scrape:
        """Return the newest scrape that has come by now."""
        scrapes, delay = self._scrapes, self._disturbance.metrics_delay
        while len(scrapes) > 1 and scrapes[1].at + delay <= moment:
            scrapes.popleft()
        return scrapes[0]

    def take_ended(self) -> list[EndedRequest]:
        """Return the requests that ended since the last call."""
        ended, self.ended = self.ended, []
        return ended
