"""A course recorded from a live fleet, and the simulated fleet beside it.

Once the operator decides otherwise, `make record-course` records another one.
"""

import bisect
import itertools
import math
import statistics
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from functools import cache
from pathlib import Path

import pytest

from bench.recorded_course import RecordedCourse, read_course
from tessera.domain.config import Config
from tessera.domain.incremental import Incremental
from tessera.domain.observed.demand import NO_TOKENS
from tessera.domain.observed.snapshot import Pod, Snapshot
from tessera.domain.planning.plan import PlanMemory, plan
from tessera.resources.defaults import newest_version
from tessera_lab.fleet.model import Router, StartUp
from tessera_lab.fleet.observation import (
    EngineSample,
    Observation,
    ReplicaStatus,
    Totals,
    total,
)
from tessera_lab.fleet.policies.product import FleetObjects, ProductPolicy
from tessera_lab.fleet.simulation import Simulation
from tessera_lab.fleet.sizing import sized_fleet
from tessera_lab.fleet.trace import Trace

FILE = Path(__file__).parent / "data" / "live_course.json.gz"
SCRAPE_SECONDS, CYCLE_SECONDS = 15.0, 5.0
# No request came before the load; the rate of arrivals is that of so long.
QUIET_SECONDS = 60.0
# Name in `Totals`, and the counters of vLLM of which it is the sum.
_COUNTERS = {
    "finished": "request_success_total",
    "prompt_tokens": "request_prompt_tokens_sum",
    "output_tokens": "request_generation_tokens_sum",
    "output_gaps": "inter_token_latency_seconds_count",
    "gap_seconds": "inter_token_latency_seconds_sum",
    "steps": "iteration_tokens_total_count",
    "generated_tokens": "generation_tokens_total",
}


@cache
def course() -> RecordedCourse:
    return read_course(FILE)


def second(moment: datetime) -> float:
    return (moment - course().begin).total_seconds()


def replicas(snapshot: Snapshot) -> list[Pod]:
    return [pod for pod in snapshot.pods if pod.service == course().service]


@cache
def objects() -> FleetObjects:
    """Return the service and its pools as they were when the load began."""
    cycles = course().cycles
    first = next(cycle.snapshot for cycle in cycles if cycle.snapshot.at >= course().begin)
    (service,) = first.services
    return FleetObjects(service=service, pools=first.pools, nodes=first.nodes)


def value_at(samples: Sequence[tuple[float, float]], at: float) -> float | None:
    """Return the newest sample; None before the first."""
    index = bisect.bisect_right(samples, at, key=lambda sample: sample[0])
    return samples[index - 1][1] if index else None


def total_at(name: str, at: float) -> float:
    values = [value_at(series.get(name, ()), at) for series in course().scrapes.values()]
    return sum(value for value in values if value is not None)


def sample_at(
    series: Mapping[str, Sequence[tuple[float, float]]], at: float
) -> EngineSample | None:
    running = value_at(series.get("num_requests_running", ()), at)
    waiting = value_at(series.get("num_requests_waiting", ()), at)
    if running is None or waiting is None:
        return None
    return EngineSample(
        running=int(running),
        waiting=int(waiting),
        kv_usage=value_at(series.get("kv_cache_usage_perc", ()), at) or 0.0,
        busy=value_at(series.get("DCGM_FI_PROF_GR_ENGINE_ACTIVE", ()), at) or 0.0,
    )


def status(pod: Pod, number: int, read_at: float, at: float) -> ReplicaStatus:
    leaves_at = at if pod.terminating else None
    draining = leaves_at if pod.draining_since is None else second(pod.draining_since)
    return ReplicaStatus(
        number=number,
        ordered_at=second(pod.created),
        bound_at=None if pod.bound is None else second(pod.bound),
        ready_at=None if pod.ready_since is None else second(pod.ready_since),
        draining_since=draining,
        sample=sample_at(course().scrapes.get(pod.ref.name, {}), read_at),
    )


def observation(snapshot: Snapshot, numbers: dict[str, int]) -> Observation:
    """Return what a simulated fleet would show of a cycle: scrapes, pods and the gateway."""
    at = second(snapshot.at)
    assert snapshot.readings is not None
    read_at = second(snapshot.readings.at)
    scrapes = [
        moment
        for series in course().scrapes.values()
        for moment, _ in series["num_requests_running"]
        if moment <= read_at
    ]
    scraped_at = max(scrapes, default=0.0)
    objective = objects().spec.slo.ttft_p95.total_seconds()
    # As the gateway had counted when its latencies were read.
    counted_at = second(snapshot.readings.latencies_at or snapshot.readings.at)
    ttft = [each.ttft for each in course().requests if each.second + each.ttft <= counted_at]
    pods = replicas(snapshot)
    statuses = tuple(
        status(pod, numbers.setdefault(pod.uid, len(numbers)), read_at, at) for pod in pods
    )
    totals = {name: total_at(counter, read_at) for name, counter in _COUNTERS.items()}
    processed = total_at("iteration_tokens_total_sum", read_at)
    demand = snapshot.demand_of(course().service)
    assert demand is not None
    ready = [each for each in statuses if each.ready_at is not None and not each.draining_since]
    return Observation(
        at=at,
        replicas=snapshot.workloads[0].replicas,
        ready=len(ready),
        scraped_at=scraped_at,
        counted_at=counted_at,
        engines=tuple(each.sample for each in ready),
        statuses=statuses,
        totals=Totals(
            **totals,  # type: ignore[arg-type]
            prefill_tokens=int(processed - totals["generated_tokens"]),
            first_tokens=len(ttft),
            ttft_seconds=sum(ttft),
            in_time=sum(each <= objective for each in ttft),
            in_half_time=sum(each <= objective / 2 for each in ttft),
        ),
        in_flight=demand.in_flight + demand.queued,
        queued=demand.queued,
        arrived=bisect.bisect_right([each.second for each in course().requests], at),
        arrivals=demand.arrivals,
    )


def live_replicas() -> list[tuple[float, int]]:
    """Return the decisions, by the seconds since the load began."""
    return [(second(cycle.snapshot.at), cycle.replicas) for cycle in course().cycles]


def count_at(decisions: Sequence[tuple[float, int]], at: float) -> int:
    index = bisect.bisect_right(decisions, at, key=lambda decision: decision[0])
    return decisions[max(0, index - 1)][1]


def disagreeing_seconds(
    simulated: Sequence[tuple[float, int]], live: Sequence[tuple[float, int]], tolerance: float
) -> list[int]:
    """Return the seconds at which the simulated count is none that was live about then."""
    return [
        at
        for at in range(int(course().seconds))
        if not _about(live, at, tolerance)[0]
        <= count_at(simulated, at)
        <= _about(live, at, tolerance)[1]
    ]


def _about(decisions: Sequence[tuple[float, int]], at: float, span: float) -> tuple[int, int]:
    counts = [count for moment, count in decisions if at - span <= moment <= at + span]
    counts.append(count_at(decisions, at - span))
    return min(counts), max(counts)


class Remembered:
    """The product's policy, and what it decided."""

    def __init__(self) -> None:
        self._policy = ProductPolicy(objects(), interval=CYCLE_SECONDS, scrape=SCRAPE_SECONDS)
        self.interval, self.scrape = self._policy.interval, self._policy.scrape
        self.decisions: list[tuple[float, int]] = []

    def decide(self, observation: Observation) -> int:
        # The first replicas of a simulation are ready when they are ordered; live ones had started.
        statuses = tuple(
            replace(each, ordered_at=each.ordered_at - statistics.fmean(start_ups()))
            if each.ready_at == each.ordered_at
            else each
            for each in observation.statuses
        )
        # The recorded gateway reported no expected lengths yet.
        known = replace(observation, statuses=statuses, arrived_tokens=NO_TOKENS)
        count = total(self._policy.decide(known))
        self.decisions.append((observation.at, count))
        return count


def percentile(values: Sequence[float], share: float) -> float:
    return sorted(values)[math.ceil(share * len(values)) - 1]


def test_the_recorded_course_has_a_burst_that_scales_the_fleet_up_and_down() -> None:
    counts = [count for at, count in live_replicas() if at >= 0]
    assert counts[0] == 2
    assert max(counts) == 4
    assert counts[-1] < max(counts)
    assert len(course().requests) > 5000


def test_the_recorded_snapshots_give_the_recorded_decisions() -> None:
    config, memory, incremental = (
        Config(builder_version=newest_version()),
        PlanMemory(),
        Incremental(),
    )
    decided = []
    for cycle in course().cycles:
        decision = incremental.run(plan, config, cycle.snapshot, memory)
        memory = memory.after(decision)
        service_plan = decision.service_plans.get(course().service)
        decided.append(
            (0, "")
            if service_plan is None
            else (service_plan.scale.replicas, str(service_plan.scale.reason))
        )
    assert decided == [(cycle.replicas, cycle.reason) for cycle in course().cycles]


def fed_decisions() -> list[tuple[float, int]]:
    """Return what the simulated operator decides at the live cycles from what was scraped."""
    policy, numbers = Remembered(), dict[str, int]()
    for cycle in course().cycles:
        # Before that the service had no replicas, no gateway had reported, or nothing was scraped.
        snapshot = cycle.snapshot
        if cycle.replicas and snapshot.demand is not None and snapshot.readings is not None:
            observed = observation(snapshot, numbers)
            if any(observed.engines):
                policy.decide(observed)
    return policy.decisions


def changes(decisions: Sequence[tuple[float, int]]) -> list[tuple[float, int]]:
    """Return the decisions for another number than before."""
    return [
        after
        for before, after in itertools.pairwise(decisions)
        if before[1] != after[1] and after[0] >= 0
    ]


def test_the_simulated_operator_decides_the_same_from_the_recorded_scrapes() -> None:
    fed, live = changes(fed_decisions()), changes(live_replicas())
    assert [count for _, count in fed] == [count for _, count in live] == [3, 4, 3, 2]
    delays = [simulated - at for (simulated, _), (at, _) in zip(fed, live, strict=True)]
    assert all(abs(delay) <= CYCLE_SECONDS for delay in delays)


@cache
def start_ups() -> list[float]:
    """Return how long the replicas took to start that were ordered under the load."""
    ready = {
        pod.uid: (pod.ready_since - pod.created).total_seconds()
        for cycle in course().cycles
        for pod in replicas(cycle.snapshot)
        if pod.ready_since is not None and pod.created >= course().begin
    }
    return sorted(ready.values())


@cache
def simulate() -> tuple[list[tuple[float, int]], list[float]]:
    """Return the decisions and the TTFTs of a simulation of the recorded requests."""
    seconds = start_ups()
    low, high, mean = seconds[0], seconds[-1], statistics.fmean(seconds)
    mode = min(high, max(low, 3 * mean - low - high))
    fleet_objects, requests = objects(), course().requests
    choice = fleet_objects.choice()
    fleet = sized_fleet(
        fleet_objects.spec, choice.fit, start_up=StartUp(low=low, mode=mode, high=high)
    )
    trace = Trace(
        name="live course",
        seconds=course().seconds + QUIET_SECONDS,
        arrivals=array("d", [each.second + QUIET_SECONDS for each in requests]),
        input_tokens=array("i", [each.prompt_tokens for each in requests]),
        output_tokens=array("i", [each.output_tokens for each in requests]),
    )
    policy = Remembered()
    played = Simulation(
        trace, replace(fleet, initial_replicas=2, router=Router.GATEWAY), policy
    ).run()
    return [(at - QUIET_SECONDS, count) for at, count in policy.decisions], list(played.ttft)


def test_a_free_simulation_has_the_live_replicas_within_a_scrape_and_a_cycle() -> None:
    decisions, _ = simulate()
    assert [count for _, count in changes(decisions)] == [3, 4, 3, 2]
    assert not disagreeing_seconds(decisions, live_replicas(), SCRAPE_SECONDS + CYCLE_SECONDS)


def test_a_free_simulation_has_the_ttft_of_the_live_fleet() -> None:
    live, (_, simulated) = [each.ttft for each in course().requests], simulate()
    assert statistics.fmean(simulated) == pytest.approx(statistics.fmean(live), rel=0.25)
    for share in (0.5, 0.95):
        assert percentile(simulated, share) == pytest.approx(percentile(live, share), rel=0.25)
    in_time = [sum(ttft <= 1 for ttft in each) / len(live) for each in (simulated, live)]
    assert in_time[0] == pytest.approx(in_time[1], abs=0.01)
