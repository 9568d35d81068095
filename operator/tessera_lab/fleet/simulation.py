"""A fleet under a trace and a policy: arrivals, decisions, starts, drains, and what they cost.

Discrete events: requests in the order of their arrival, and between them scrapes, decisions and
what befalls the nodes. Engines advance lazily (`SimulatedReplica.due`). Equal input gives equal
output.
"""

import heapq
import math
from array import array
from collections.abc import Callable, Mapping

from tessera.api.text import counted
from tessera_lab.fleet.course import Course, CourseSample
from tessera_lab.fleet.disturbance import CALM, Disturbance
from tessera_lab.fleet.model import FleetModel
from tessera_lab.fleet.nodes import Nodes
from tessera_lab.fleet.observation import Decision, Observation, Policy, ReplicaStatus, total
from tessera_lab.fleet.routing import Door
from tessera_lab.fleet.scraping import Scraper
from tessera_lab.fleet.spot import SpotMarket
from tessera_lab.fleet.trace import Trace

SAMPLE_SECONDS = 60.0
# As often as the operator reads the latencies that gateways count.
_COUNTS_INTERVAL = 30.0
# Events of one moment come in this order.
_NODE_DIES, _PREEMPTION, _READY, _SCRAPE, _DECISION, _SAMPLE = range(6)


class Simulation:
    """One run. After an interrupt, `course` is what came until then."""

    def __init__(
        self,
        trace: Trace,
        fleet: FleetModel,
        policy: Policy,
        *,
        seed: int = 1,
        disturbance: Disturbance = CALM,
        spot: SpotMarket | None = None,
    ) -> None:
        limits = fleet.limits
        unit = limits.shared_tokens or limits.block_size
        if trace.prefixes is not None and limits.prefix_cache and unit != trace.prefix_tokens:
            raise ValueError(
                f"prefixes of {counted(trace.prefix_tokens, 'token')} for an engine that finds "
                f"those of {unit}"
            )
        self.course = Course(ttft=array("d", [math.inf]) * len(trace))
        self._trace, self._fleet, self._policy = trace, fleet, policy
        self._progress: Callable[[float], None] = lambda _: None
        self._door = Door(trace, fleet, self.course.ttft)
        self._nodes = Nodes(fleet, disturbance, spot, seed, self.course.ttft)
        self._scraper = Scraper(disturbance)
        self._decision: Decision = fleet.initial_replicas
        self._last_scrape = 0.0
        self._events: list[tuple[float, int, int]] = []
        for moment in disturbance.dead_nodes:
            self._push(moment, _NODE_DIES)
        self._preemptions = spot.preemptions if spot is not None else ()
        notice = spot.notice if spot is not None else 0.0
        for index, preemption in enumerate(self._preemptions):
            self._push(preemption.at - notice, _PREEMPTION, index)
        if policy.scrape:
            self._push(policy.scrape, _SCRAPE)
        self._push(policy.interval, _DECISION)
        self._push(SAMPLE_SECONDS, _SAMPLE)

    def run(self, progress: Callable[[float], None] | None = None) -> Course:
        """Play the trace; an interrupt ends it early.

        `progress` is called with the simulated seconds, once a minute of these.
        """
        self._progress = progress or self._progress
        if self._fleet.pools:
            self._decision = self._targets(0.0)
        self._nodes.resize(0.0, self._targets(0.0))
        self._find_ready(0.0)
        try:
            self._play()
        except KeyboardInterrupt:
            self.course.interrupted = True
        self._finish()
        return self.course

    def _push(self, moment: float, kind: int, index: int = 0) -> None:
        heapq.heappush(self._events, (moment, kind, index))

    def _play(self) -> None:
        events, end = self._events, self._trace.seconds
        while events and events[0][0] <= end:
            moment, kind, index = heapq.heappop(events)
            self._door.admit_until(moment)
            self.course.seconds = moment
            self._handle(moment, kind, index)
        self._door.admit_until(end)
        self.course.seconds = end

    def _handle(self, moment: float, kind: int, index: int) -> None:
        if kind == _SCRAPE:
            self._scrape(moment)
            self._push(moment + self._policy.scrape, kind)
        elif kind == _DECISION:
            self._decide(moment)
            self._push(moment + self._policy.interval, kind)
        elif kind == _SAMPLE:
            self._sample(moment)
            self._push(moment + SAMPLE_SECONDS, kind)
        elif kind == _READY:
            self._find_ready(moment)
        elif kind == _NODE_DIES:
            self._nodes.lose_oldest(moment)
            self._find_ready(moment)
        else:
            self._nodes.preempt(moment, self._preemptions[index])
            self._resize(moment)

    def _scrape(self, moment: float) -> None:
        self._advance(moment)
        self._scraper.scrape(moment, self._door.serving, moment - self._last_scrape)
        self._last_scrape = moment

    def _decide(self, moment: float) -> None:
        if not self._policy.scrape:
            self._scrape(moment)
        else:
            self._advance(moment)
        decision = self._policy.decide(self._observe(moment))
        if isinstance(decision, int):
            decision = min(max(decision, self._fleet.min_replicas), self._fleet.max_replicas)
        self.course.changes += decision != self._decision
        self._decision = decision
        # Also without a change: what died or was taken back is replaced.
        self._resize(moment)

    def _targets(self, moment: float) -> Mapping[str, int]:
        """Return the replicas of each pool."""
        decision = self._decision
        return self._nodes.split(moment, decision) if isinstance(decision, int) else decision

    def _observe(self, moment: float) -> Observation:
        scrape, door = self._scraper.newest(moment), self._door
        statuses = tuple(
            ReplicaStatus(
                number=replica.number,
                ordered_at=replica.ordered_at,
                pool=replica.pool.name,
                bound_at=replica.bound_at if replica.bound_at <= moment else None,
                ready_at=replica.ready_at if replica.ready_at <= moment else None,
                draining_since=replica.drained_at if replica.draining else None,
                sample=scrape.samples.get(replica.number),
            )
            for replica in self._nodes.replicas
        )
        ended = self._scraper.take_ended()
        return Observation(
            at=moment,
            replicas=total(self._decision),
            ready=len(door.serving),
            scraped_at=scrape.at,
            counted_at=scrape.at // _COUNTS_INTERVAL * _COUNTS_INTERVAL,
            engines=tuple(scrape.samples.values()),
            statuses=statuses,
            targets=self._targets(moment) if self._fleet.pools else {},
            foreign=self._nodes.foreign(moment),
            totals=scrape.totals,
            in_flight=self._in_flight(),
            queued=door.queued,
            arrived=door.arrived,
            arrived_tokens=door.arrived_tokens,
            arrivals=door.arrivals_by_second(moment),
            finished_lengths=[(each.prompt_tokens, each.output_tokens) for each in ended],
        )

    def _in_flight(self) -> int:
        replicas = self._nodes.replicas
        return self._door.queued + sum(replica.load for replica in replicas)

    def _sample(self, moment: float) -> None:
        self._advance(moment)
        self._nodes.record_activity(moment)
        self.course.samples.append(
            CourseSample(
                at=moment,
                arrived=self._door.arrived,
                in_flight=self._in_flight(),
                desired=total(self._decision),
                ready=len(self._door.serving),
                nodes=sum(each.paid_from <= moment for each in self._nodes.replicas),
            )
        )
        self._progress(moment)

    def _advance(self, moment: float) -> None:
        self._nodes.advance(moment)
        self._door.learn(self._scraper.count(self._nodes.replicas))

    def _resize(self, moment: float) -> None:
        for replica in self._nodes.resize(moment, self._targets(moment)):
            self._push(replica.ready_at, _READY)
        self._find_ready(moment)

    def _find_ready(self, moment: float) -> None:
        self._door.serving = self._nodes.ready(moment)
        self._door.pump(moment)

    def _finish(self) -> None:
        course, nodes = self.course, self._nodes
        if self._door.queued and not self._door.serving:
            self._wait_for_replica()
        self._door.pump(math.inf)
        course.paid_seconds = nodes.finish(course.seconds)
        course.lifetimes = nodes.lifetimes
        course.broken_streams = nodes.broken_streams
        course.lost_streams = nodes.lost_streams
        course.longest_wait = nodes.longest_wait
        course.refused, course.requests = self._door.refused, self._door.requests
        course.prompt_tokens, course.cached_tokens = nodes.prompt_tokens, nodes.cached_tokens
        course.promised_tokens = nodes.promised_tokens
        course.output_tokens = nodes.output_tokens

    def _wait_for_replica(self) -> None:
        """Let requests that came when there was no replica be served after the trace."""
        ready_at = min((replica.ready_at for replica in self._nodes.active), default=math.inf)
        if math.isfinite(ready_at):
            self._find_ready(ready_at)
