"""The product's own decision: simulated observations in, `plan()`, its number of replicas out."""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, timedelta
from typing import Any

from tessera.api.accelerator_pool import AcceleratorPoolSpec
from tessera.api.inference_service import InferenceServiceSpec
from tessera.api.reasons import ScalingReason
from tessera.domain.config import Config
from tessera.domain.incremental import Incremental
from tessera.domain.names import deployment_name
from tessera.domain.observed.demand import ARRIVALS_SPAN, ArrivedTokens, GatewayDemand
from tessera.domain.observed.latency import (
    EngineLatency,
    GatewayLatency,
    LatencyHistogram,
    ServiceLatency,
)
from tessera.domain.observed.snapshot import (
    Budget,
    Node,
    ObservedService,
    Pod,
    PodReading,
    Pool,
    Readings,
    Ref,
    Snapshot,
    SpeedReading,
    TokenRates,
    Workload,
)
from tessera.domain.placement.placement import HardwareChoice
from tessera.domain.planning.plan import Plan, PlanMemory, plan
from tessera.domain.planning.service_plan import ServicePlan
from tessera_lab.fleet.model import Router
from tessera_lab.fleet.observation import Observation, ReplicaStatus
from tessera_lab.fleet.scraping import add

# As results and commands call it.
OURS = "tessera"

_START = datetime(2026, 1, 5, tzinfo=UTC)
_SHORT, _LONG, _RATE = 300.0, 600.0, 60.0
_NODE_GPUS = 8
_CONFIG = Config()


def router_of(policy: str) -> Router:
    """Return the router of a policy: the product's queue is its own, rivals read the engines'."""
    return Router.GATEWAY if policy == OURS else Router.LEAST_TTFT


@dataclass(frozen=True, slots=True, kw_only=True)
class FleetObjects:
    """What `kubectl apply` and the cluster give the operator: one service and its pools."""

    service: ObservedService
    pools: tuple[Pool, ...]
    nodes: tuple[Node, ...]
    budgets: tuple[Budget, ...] = ()

    @property
    def spec(self) -> InferenceServiceSpec:
        spec = self.service.spec
        if spec is None:
            raise ValueError(f"{self.service.ref}: {self.service.problem}")
        return spec

    def first_plan(self) -> ServicePlan:
        """Return the decision for the service before it has replicas."""
        snapshot = Snapshot(at=_START, services=(self.service,), pools=self.pools, nodes=self.nodes)
        return plan(_CONFIG, snapshot, PlanMemory()).service_plans[self.service.ref]

    def choice(self) -> HardwareChoice:
        """Return the hardware of the service; raise ValueError where it fits no pool."""
        choice = self.first_plan().choice
        if choice is None:
            raise ValueError(f"{self.service.ref} fits no pool")
        return choice


@dataclass(frozen=True, slots=True, kw_only=True)
class WholeGpuPool:
    """A pool of nodes with 8 whole GPUs each, on demand."""

    name: str
    product: str
    price: str
    """USD per GPU and hour."""
    nodes: int

    def objects(
        self, ref: Ref, spec: dict[str, Any], budgets: Sequence[Budget] = ()
    ) -> FleetObjects:
        """Return a service on this pool; `spec` is that of its manifest."""
        pool = {
            "nodeSelector": {"pool": self.name},
            "tier": "OnDemand",
            "prices": [{"from": date(2026, 1, 1), "perGPUHour": self.price}],
        }
        labels = {
            "pool": self.name,
            "nvidia.com/gpu.product": self.product,
            "nvidia.com/gpu.count": str(_NODE_GPUS),
        }
        return FleetObjects(
            service=ObservedService(
                ref=ref,
                uid=ref.name,
                generation=1,
                spec=InferenceServiceSpec.model_validate(spec),
            ),
            pools=(
                Pool(
                    name=self.name,
                    uid=self.name,
                    generation=1,
                    spec=AcceleratorPoolSpec.model_validate(pool),
                ),
            ),
            nodes=tuple(
                Node(
                    name=f"node-{number}",
                    labels=labels,
                    schedulable=True,
                    allocatable={"nvidia.com/gpu": _NODE_GPUS},
                )
                for number in range(self.nodes)
            ),
            budgets=tuple(budgets),
        )


class ProductPolicy:
    """The operator's cycle each `interval` seconds; gateways report each second."""

    def __init__(
        self,
        objects: FleetObjects,
        interval: float = 5.0,
        scrape: float = 15.0,
        edits: Sequence[tuple[float, FleetObjects]] = (),
    ) -> None:
        """`edits` are pools, nodes and budgets from a moment on, in the order of time."""
        self.interval = interval
        self.scrape = scrape
        self.last: Plan | None = None
        """The newest plan."""
        self.held_seconds = 0.0
        """Time for which a TenantBudget granted fewer replicas than were asked for."""
        self._objects = objects
        self._edits = deque(edits)
        self._choice = objects.choice()
        self._service = objects.service
        self._memory = PlanMemory()
        self._incremental = Incremental()
        self._history: deque[Observation] = deque()
        """Observations of new scrapes in the last ten minutes, oldest first."""
        self._slow_readings: tuple[float, SpeedReading, ServiceLatency] | None = None
        """What is read less often, with its moment."""
        self._arrivals: deque[tuple[float, int, ArrivedTokens]] = deque()
        """Moments of the last minute with the arrivals until then, and their expected tokens."""

    def decide(self, observation: Observation) -> int:
        """Return the replicas that the plan asks for."""
        while self._edits and self._edits[0][0] <= observation.at:
            _, self._objects = self._edits.popleft()
        self._remember(observation)
        snapshot = self._snapshot(observation)
        decided = self._incremental.run(plan, _CONFIG, snapshot, self._memory)
        self.last = decided
        self._memory = self._memory.after(decided)
        service_plan = decided.service_plans[self._service.ref]
        if service_plan.speed is not self._service.status.speed:
            status = self._service.status.model_copy(update={"speed": service_plan.speed})
            self._service = replace(self._service, status=status)
        if service_plan.scale.reason is ScalingReason.BUDGET_EXHAUSTED:
            self.held_seconds += self.interval
        return service_plan.scale.replicas

    def _remember(self, observation: Observation) -> None:
        history, arrivals = self._history, self._arrivals
        if not history or observation.scraped_at > history[-1].scraped_at:
            history.append(observation)
        while len(history) > 1 and history[1].scraped_at <= observation.scraped_at - _LONG:
            history.popleft()
        arrivals.append((observation.at, observation.arrived, observation.arrived_tokens))
        while len(arrivals) > 1 and arrivals[1][0] <= observation.at - _RATE:
            arrivals.popleft()

    def _snapshot(self, observation: Observation) -> Snapshot:
        ref, at = self._service.ref, _moment(observation.at)
        return Snapshot(
            at=at,
            services=(self._service,),
            pools=self._objects.pools,
            nodes=self._objects.nodes,
            budgets=self._objects.budgets,
            pods=tuple(self._pod(status) for status in observation.statuses),
            workloads=(self._workload(observation.replicas),),
            readings=self._readings(observation),
            demand={ref: self._demand(observation)},
        )

    def _pod(self, status: ReplicaStatus) -> Pod:
        ref, ordered = self._pod_ref(status.number), _moment(status.ordered_at)
        draining = status.draining_since
        hardware = self._choice.fit.hardware
        return Pod(
            ref=ref,
            uid=ref.name,
            service=self._service.ref,
            variant=self._choice.variant,
            created=ordered,
            bound=None if status.bound_at is None else _moment(status.bound_at),
            node=None
            if status.bound_at is None
            else self._objects.nodes[status.number % len(self._objects.nodes)].name,
            devices={hardware.resource: hardware.devices},
            ready_since=None if status.ready_at is None else _moment(status.ready_at),
            containers_ready=status.ready_at is not None,
            serving=draining is None,
            draining_since=None if draining is None else _moment(draining),
            max_num_seqs=self._choice.fit.limits.max_num_seqs,
            max_num_batched_tokens=self._choice.fit.limits.max_num_batched_tokens,
        )

    def _pod_ref(self, number: int) -> Ref:
        return Ref(self._service.ref.namespace, f"{self._service.ref.name}-{number}")

    def _workload(self, replicas: int) -> Workload:
        service = self._service.ref
        name = deployment_name(service.name, self._choice.variant)
        return Workload(
            ref=Ref(service.namespace, name),
            service=service,
            variant=self._choice.variant,
            replicas=replicas,
            rollout_complete=True,
        )

    def _readings(self, observation: Observation) -> Readings:
        ref, newest = self._service.ref, self._history[-1]
        short, rate = self._before(_SHORT), self._before(_RATE)
        if self._slow_readings is None or observation.counted_at != self._slow_readings[0]:
            speed, latency = self._speed(newest, short), self._latency(observation, short)
            self._slow_readings = observation.counted_at, speed, latency
        counted_at, speed, latency = self._slow_readings
        finished = add(newest.totals, short.totals, -1).finished
        recent = add(newest.totals, rate.totals, -1).finished
        span = newest.scraped_at - rate.scraped_at
        return Readings(
            at=_moment(newest.scraped_at),
            pods={
                self._pod_ref(status.number): PodReading(
                    waiting=status.sample.waiting,
                    running=status.sample.running,
                    activity=status.sample.busy,
                )
                for status in observation.statuses
                if status.sample is not None
            },
            finished={ref: max(0, finished)},
            finish_rates={ref: max(0, recent) / span} if span > 0 else {},
            token_rates={ref: self._token_rates(newest, rate)} if span > 0 else {},
            speeds={ref: (speed,)},
            latencies={ref: latency},
            latencies_at=_moment(counted_at),
            speeds_at=_moment(counted_at),
        )

    @staticmethod
    def _token_rates(newest: Observation, before: Observation) -> TokenRates:
        change = add(newest.totals, before.totals, -1)
        span = newest.scraped_at - before.scraped_at
        return TokenRates(
            prompt=max(0, change.prefill_tokens) / span,
            output=max(0, change.generated_tokens) / span,
        )

    def _latency(self, newest: Observation, before: Observation) -> ServiceLatency:
        """Return what the gateways counted in the last five minutes."""
        change = add(newest.totals, before.totals, -1)
        objective = self._objects.spec.slo.ttft_p95.total_seconds()
        counts = ((objective / 2, change.in_half_time), (objective, change.in_time))
        histogram = LatencyHistogram(
            total=max(0, change.first_tokens),
            at_most=tuple((edge, float(max(0, count))) for edge, count in counts),
        )
        slow = ((objective / 2, change.half_slow_prefills), (objective, change.slow_prefills))
        prefill = LatencyHistogram(
            total=histogram.total,
            at_most=tuple((edge, histogram.total - max(0, count)) for edge, count in slow),
        )
        return ServiceLatency(
            engines=(EngineLatency(variant=self._choice.variant, prefill=prefill),),
            gateway=GatewayLatency(ttft=histogram),
        )

    def _before(self, seconds: float) -> Observation:
        """Return the oldest observation of the last so many seconds."""
        newest = self._history[-1].scraped_at
        return next(each for each in self._history if each.scraped_at >= newest - seconds)

    def _speed(self, newest: Observation, short: Observation) -> SpeedReading:
        change = add(newest.totals, short.totals, -1)
        long = add(newest.totals, self._history[0].totals, -1)
        span = newest.scraped_at - short.scraped_at
        samples = [
            sample
            for each in self._history
            if each.scraped_at >= short.scraped_at
            for sample in each.engines
            if sample is not None
        ]
        if span <= 0 or change.finished <= 0 or not samples:
            return SpeedReading(variant=self._choice.variant)
        return SpeedReading(
            variant=self._choice.variant,
            requests=change.finished,
            tokens_per_second=change.generated_tokens / span,
            sequences=_quotient(change.generated_tokens, change.steps),
            prefill_tokens=_quotient(change.prefill_tokens, change.steps),
            prompt_tokens=_quotient(change.prefill_tokens, change.finished),
            mean_input_tokens=_quotient(long.prompt_tokens, long.finished),
            mean_output_tokens=_quotient(long.output_tokens, long.finished),
            cached_share=_quotient(long.hit_tokens, long.queried_tokens),
            itl_seconds=_quotient(change.gap_seconds, change.output_gaps),
            running=sum(sample.running for sample in samples) / len(samples),
            kv_usage=sum(sample.kv_usage for sample in samples) / len(samples),
            kv_tokens=self._choice.fit.memory.kv_tokens,
        )

    def _demand(self, observation: Observation) -> GatewayDemand:
        since, arrived, tokens = self._arrivals[0]
        span = min(ARRIVALS_SPAN.total_seconds(), observation.at - since)
        rate = (observation.arrived - arrived) / span if span else None
        return GatewayDemand(
            queued=observation.queued,
            in_flight=observation.in_flight - observation.queued,
            tokens=observation.arrived_tokens.plus(tokens, -1),
            arrivals_per_second=rate,
            arrivals=observation.arrivals,
        )


def _moment(seconds: float) -> datetime:
    return _START + timedelta(seconds=seconds)


def _quotient(total: float, count: float) -> float | None:
    return total / count if count > 0 else None
