"""What scaling policies attain and cost, and the time of a decision: `make bench-scaling`.

One service lives through an hour of five load shapes on the engine's state machine, under each
policy and with fixed numbers of replicas. Requests go to the replica with the fewest. Metrics are
those of a scrape each 15 seconds, decisions are made each 5 seconds. Then a world shows how long it
takes until a decision (`bench.scale_latency`). The last line is `BENCH {json}`.
"""

import math
import random
import statistics
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any

from bench import scale_latency
from figures import benchmark
from tessera.api.inference_service import InferenceServiceSpec
from tessera.api.model_files import ModelShape
from tessera.domain.hardware import device as hardware
from tessera.domain.hardware import gpu_catalog as catalog
from tessera.domain.observed.snapshot import SpeedReading
from tessera.domain.scaling.policies.capacity.policy import scale_by_capacity
from tessera.domain.scaling.policies.capacity.variant_capacity import (
    VariantCapacity,
    variant_capacity,
)
from tessera.domain.scaling.policies.queue_and_activity import decide as decide_by_queue
from tessera.domain.scaling.state import (
    ScaleDecision,
    ScalingHistory,
    ServiceLoad,
    TimestampedReplicas,
)
from tessera.domain.scaling.target import ScaleTarget, target_of
from tessera.domain.sizing.scheduler_limits import Demand
from tessera.domain.sizing.sizing import ReplicaFit, size
from tessera_lab.engine import EngineCore, ServedRequest, Timeline
from tessera_lab.engine.requests import EngineLimits, EngineRequest

MODEL = "meta-llama/Llama-3.1-8B-Instruct"
PRODUCT = "NVIDIA-A100-SXM4-80GB"
BEGIN = datetime(2026, 1, 1, tzinfo=UTC)
HOUR = 3600
LEAD = 100.0
SCRAPE, DECISION = 15, 5
MIN_REPLICAS, MAX_REPLICAS = 2, 8
GOAL = 0.95
SERVICES = 2000
BLOCK = 16

# Arrivals by the second, as multiples of what one replica carries.
SHAPES: Mapping[str, Callable[[float], float]] = {
    "steady": lambda _: 2.5,
    "ramp": lambda second: 1 + 4 * min(1.0, second / 2400),
    "burst": lambda second: 4.5 if 1200 <= second < 1800 else 1.2,
    "wave": lambda second: 2.75 - 1.75 * math.cos(2 * math.pi * second / 1800),
    "spikes": lambda second: 3.0 if second % 600 < 60 else 1.0,
}
Decide = Callable[[ServiceLoad, ScalingHistory], ScaleDecision]


@dataclass
class Replica:
    """An engine that starts, serves or drains."""

    timeline: Timeline
    ordered_at: float
    ready_at: float
    draining: bool = False


@dataclass
class Outcome:
    """What an hour attained and cost."""

    requests: int = 0
    within: int = 0
    replica_seconds: float = 0.0
    changes: int = 0
    finished: deque[tuple[float, int]] = field(default_factory=deque)

    @property
    def attainment(self) -> float:
        return self.within / max(1, self.requests)


def service_spec(policy: str) -> InferenceServiceSpec:
    """Return a spec whose values beside the policy and the bounds are defaults."""
    bounds = {"minReplicas": MIN_REPLICAS, "maxReplicas": MAX_REPLICAS}
    return InferenceServiceSpec.model_validate(
        {"model": {"uri": f"hf://{MODEL}"}, "scaling": {"policy": policy, **bounds}}
    )


def replica_fit(
    spec: InferenceServiceSpec, shape: ModelShape, product: str = PRODUCT
) -> ReplicaFit:
    """Return the model on one GPU."""
    demand = Demand(
        shape=shape,
        precision=None,
        max_model_len=8192,
        input_tokens=spec.context.typical_input_tokens,
        output_tokens=spec.context.typical_output_tokens,
        ttft=spec.slo.ttft_p95,
        inter_token=spec.slo.itl_p95,
    )
    fit = size(demand, hardware.whole_gpu_hardware(catalog.products()[product], 1))
    if not isinstance(fit, ReplicaFit):
        raise TypeError(f"{MODEL} does not fit on {product}")
    return fit


def engine(fit: ReplicaFit) -> EngineCore:
    limits = EngineLimits(
        max_model_len=fit.max_model_len,
        max_num_seqs=fit.limits.max_num_seqs,
        max_num_batched_tokens=fit.limits.max_num_batched_tokens,
        blocks=fit.memory.kv_tokens // BLOCK,
        block_size=BLOCK,
    )
    return EngineCore(limits, fit.step)


def arrivals(
    shape: Callable[[float], float],
    unit: float,
    spec: InferenceServiceSpec,
    seed: int,
    seconds: int,
) -> Iterator[tuple[float, EngineRequest]]:
    """Yield Poisson arrivals of requests with log-normal lengths around the typical ones."""
    rng = random.Random(seed)  # noqa: S311 - not a secret
    highest = max(map(shape, range(seconds))) * unit
    moment, number = 0.0, 0
    while (moment := moment + rng.expovariate(highest)) < seconds:
        if rng.random() * highest > shape(moment) * unit:
            continue
        spread = rng.lognormvariate(-0.125, 0.5), rng.lognormvariate(-0.125, 0.5)
        yield (
            moment,
            EngineRequest(
                id=number,
                prompt_tokens=int(min(4000.0, spec.context.typical_input_tokens * spread[0])) + 1,
                output_tokens=int(min(2000.0, spec.context.typical_output_tokens * spread[1])) + 1,
            ),
        )
        number += 1


class Fleet:
    """The replicas of the service."""

    def __init__(self, fit: ReplicaFit, replicas: int, ttft_seconds: float) -> None:
        self.fit = fit
        self.ttft_seconds = ttft_seconds
        self.outcome = Outcome()
        self.arrived: deque[float] = deque()
        self.replicas = [Replica(Timeline(engine(fit)), 0.0, 0.0) for _ in range(replicas)]
        self.busy = 0.0

    def submit(self, moment: float, request: EngineRequest) -> None:
        self.arrived.append(moment)
        serving = self.serving(moment)
        for replica in serving:
            self._note(replica.timeline.advance(moment))
        target = min(serving, key=lambda replica: _requests(replica.timeline))
        target.timeline.submit(request, moment)

    def serving(self, moment: float) -> list[Replica]:
        return [each for each in self.replicas if not each.draining and each.ready_at <= moment]

    def advance(self, moment: float) -> None:
        before = sum(replica.timeline.busy_seconds for replica in self.replicas)
        for replica in self.replicas:
            self._note(replica.timeline.advance(moment))
        self.busy += sum(replica.timeline.busy_seconds for replica in self.replicas) - before
        for replica in [each for each in self.replicas if each.draining]:
            if replica.timeline.engine.idle:
                self.outcome.replica_seconds += moment - replica.ordered_at
                self.replicas.remove(replica)

    def resize(self, moment: float, replicas: int) -> None:
        active = [replica for replica in self.replicas if not replica.draining]
        self.outcome.changes += replicas != len(active)
        for _ in range(replicas - len(active)):
            timeline = Timeline(engine(self.fit), moment)
            self.replicas.append(Replica(timeline, moment, moment + LEAD))
        # Those that still start go first, then the emptiest.
        active.sort(key=lambda each: (each.ready_at <= moment, _requests(each.timeline)))
        for replica in active[: max(0, len(active) - replicas)]:
            replica.draining = True

    def end(self, moment: float) -> Outcome:
        for replica in self.replicas:
            self._note(replica.timeline.advance(math.inf))
            self.outcome.replica_seconds += moment - replica.ordered_at
        return self.outcome

    def load(self, moment: float, busy_before: float, *, by_gateway: bool) -> ServiceLoad:
        """Return what a scrape shows."""
        serving = self.serving(moment)
        engines = [replica.timeline.engine for replica in self.replicas]
        waiting = float(sum(each.waiting for each in engines))
        running = float(sum(each.running for each in engines))
        finished = self.outcome.finished
        while finished and moment - finished[0][0] > 60:
            finished.popleft()
        while self.arrived and moment - self.arrived[0] > 60:
            self.arrived.popleft()
        span = max(DECISION, min(60.0, moment))
        arrivals = Counter(int(moment - arrived_at) for arrived_at in self.arrived)
        active = len([replica for replica in self.replicas if not replica.draining])
        return ServiceLoad(
            at=BEGIN + timedelta(seconds=moment),
            replicas=active,
            ready=len(serving),
            serving=len(serving),
            waiting=waiting,
            running=running,
            activity=min(1.0, (self.busy - busy_before) / SCRAPE / max(1, len(serving))),
            known_waiting=waiting,
            known_requests=waiting + running,
            with_counts=len(serving),
            finish_rate=sum(count for _, count in finished) / span,
            arrival_rate=len(self.arrived) / span if by_gateway else None,
            arrivals=tuple(arrivals[second] for second in reversed(range(60)))
            if by_gateway
            else (),
        )

    def _note(self, served: list[ServedRequest]) -> None:
        for request in served:
            self.outcome.requests += 1
            ttft = request.ttft_seconds
            self.outcome.within += ttft is not None and ttft <= self.ttft_seconds
            self.outcome.finished.append((request.ended_at, 1))


def _requests(timeline: Timeline) -> int:
    return timeline.engine.running + timeline.engine.waiting


def live(
    fleet: Fleet,
    requests: Iterator[tuple[float, EngineRequest]],
    decide: Decide | None,
    seconds: int,
    *,
    by_gateway: bool,
) -> Outcome:
    """Return the outcome of so many seconds."""
    start = TimestampedReplicas(BEGIN - timedelta(hours=1), len(fleet.replicas))
    history = ScalingHistory(decisions=(start,))
    coming = next(requests, None)
    reading: ServiceLoad | None = None
    busy = 0.0
    for moment in range(DECISION, seconds + 1, DECISION):
        while coming is not None and coming[0] <= moment:
            fleet.submit(*coming)
            coming = next(requests, None)
        fleet.advance(moment)
        if moment % SCRAPE == 0:
            reading, busy = fleet.load(moment, busy, by_gateway=by_gateway), fleet.busy
        if decide is not None and reading is not None:
            now = BEGIN + timedelta(seconds=moment)
            serving = len(fleet.serving(moment))
            seen = replace(reading, at=now, ready=serving, serving=serving, with_counts=serving)
            decision = decide(seen, history)
            history = decision.history
            fleet.resize(moment, decision.replicas)
    return fleet.end(seconds)


def simulate(seconds: int) -> dict[str, Any]:
    """Return the attainment and the cost of each policy in each shape."""
    spec = service_spec("Capacity")
    shape = catalog.models()[MODEL]
    fit = replica_fit(spec, shape)
    capacity = _capacity(spec, shape, fit)
    policies: dict[str, Decide] = {
        "capacity": _by_capacity(target_of(spec, fit.limits, fit.max_model_len), capacity),
        "estimated": _by_capacity(target_of(spec, fit.limits, fit.max_model_len), capacity),
        "queue": _by_queue(
            target_of(service_spec("QueueAndActivity"), fit.limits, fit.max_model_len)
        ),
    }
    ttft = spec.slo.ttft_p95.total_seconds()
    figures: dict[str, Any] = {"replica_requests_per_s": round(capacity.requests_per_second, 2)}
    for number, (name, rate) in enumerate(SHAPES.items()):
        first = max(MIN_REPLICAS, math.ceil(rate(0) * 1.2))

        def run(
            decide: Decide | None,
            replicas: int,
            rate: Callable[[float], float] = rate,
            seed: int = number,
            *,
            by_gateway: bool = False,
        ) -> Outcome:
            requests = arrivals(rate, capacity.requests_per_second, spec, seed, seconds)
            fleet = Fleet(fit, replicas, ttft)
            return live(fleet, requests, decide, seconds, by_gateway=by_gateway)

        for policy, decide in policies.items():
            outcome = run(decide, first, by_gateway=policy == "capacity")
            figures |= _figures(f"{name}_{policy}", outcome)
        for replicas in range(MIN_REPLICAS, MAX_REPLICAS + 1):
            outcome = run(None, replicas)
            if outcome.attainment >= GOAL:
                break
        figures |= _figures(f"{name}_static", outcome)
    for policy in (*policies, "static"):
        hours = sum(figures[f"{name}_{policy}_replica_hours"] for name in SHAPES)
        worst = min(figures[f"{name}_{policy}_attainment"] for name in SHAPES)
        figures |= {f"{policy}_replica_hours": round(hours, 2), f"{policy}_worst": worst}
    return figures


def _capacity(spec: InferenceServiceSpec, shape: ModelShape, fit: ReplicaFit) -> VariantCapacity:
    return variant_capacity(
        spec,
        shape,
        fit,
        reading=SpeedReading(),
        measured_ratio=None,
        lead=timedelta(seconds=LEAD),
    )


def _by_capacity(target: ScaleTarget, capacity: VariantCapacity) -> Decide:
    return lambda load, history: scale_by_capacity(target, capacity, load, history)


def _by_queue(target: ScaleTarget) -> Decide:
    return lambda load, history: decide_by_queue(target, load, history)


def _figures(name: str, outcome: Outcome) -> dict[str, Any]:
    figures = {
        f"{name}_attainment": round(outcome.attainment, 4),
        f"{name}_replica_hours": round(outcome.replica_seconds / HOUR, 2),
        f"{name}_changes": outcome.changes,
    }
    print("  ".join(f"{key} {value}" for key, value in figures.items()), flush=True)
    return figures


def time_decisions(cycles: int) -> dict[str, Any]:
    """Return the CPU time of decisions for services whose inputs all changed."""
    spec = service_spec("Capacity")
    shape = catalog.models()[MODEL]
    fit = replica_fit(spec, shape)
    target = target_of(spec, fit.limits, fit.max_model_len)
    histories = [ScalingHistory() for _ in range(SERVICES)]
    milliseconds, totals = list[float](), list[float]()
    for cycle in range(cycles):
        began = time.process_time()
        for service in range(SERVICES):
            load = _changed_load(cycle, service)
            reading = SpeedReading(
                requests=500, mean_input_tokens=800 + service, mean_output_tokens=200 + cycle
            )
            started = time.process_time()
            capacity = variant_capacity(
                spec,
                shape,
                fit,
                reading=reading,
                measured_ratio=1.1,
                lead=timedelta(seconds=LEAD),
            )
            histories[service] = scale_by_capacity(
                target, capacity, load, histories[service]
            ).history
            milliseconds.append((time.process_time() - started) * 1e3)
        totals.append((time.process_time() - began) * 1e3)
    milliseconds.sort()
    return {
        "decision_ms_p50": round(statistics.median(milliseconds), 3),
        "decision_ms_p99": round(milliseconds[len(milliseconds) * 99 // 100], 3),
        "all_2000_changed_ms": round(statistics.median(totals), 1),
    }


def _changed_load(cycle: int, service: int) -> ServiceLoad:
    running = float((service * 7 + cycle * 3) % 120)
    return ServiceLoad(
        at=BEGIN + timedelta(seconds=DECISION * cycle),
        replicas=3,
        ready=3,
        serving=3,
        waiting=float((service + cycle) % 5),
        running=running,
        activity=0.9,
        known_waiting=float((service + cycle) % 5),
        known_requests=running,
        with_counts=3,
        finish_rate=running / 10,
        arrival_rate=running / 9 if service % 2 else None,
    )


def measure(
    seconds: int = HOUR, cycles: int = 30, rounds: int = 5, without_world: bool = False
) -> dict[str, float]:
    """Measure policies, their decisions, and in a world the time until one."""
    figures = simulate(seconds) | time_decisions(cycles)
    return figures if without_world else figures | scale_latency.measure(rounds)


if __name__ == "__main__":
    benchmark(
        measure,
        short={"seconds": 60, "cycles": 1, "rounds": 1},
        seconds={"help": "of each load shape"},
        cycles={"help": "in which all services decide"},
        rounds={"help": "of each latency"},
        without_world={"help": "measure no latency"},
    )
