"""The product's own decision: simulated observations in, `plan()`, its number of replicas out."""

from collections import Counter, deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, timedelta
from typing import Any

from tessera.api.accelerator_pool import AcceleratorPoolSpec
from tessera.api.inference_service import InferenceServiceSpec
from tessera.api.reasons import ScalingReason
from tessera.domain.config import Config
from tessera.domain.hardware.node_templates import template_node
from tessera.domain.hardware.pools import discover
from tessera.domain.incremental import Incremental
from tessera.domain.instance_types.rank import is_long_enough
from tessera.domain.names import deployment_name
from tessera.domain.observed.demand import ARRIVALS_SPAN, ArrivedTokens, GatewayDemand
from tessera.domain.observed.latency import (
    EngineLatency,
    GatewayLatency,
    LatencyHistogram,
    ServiceLatency,
)
from tessera.domain.observed.load_history import SPAN, LoadHistory
from tessera.domain.observed.snapshot import (
    STEP_SECONDS,
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
    StepReading,
    TokenRates,
    Workload,
)
from tessera.domain.placement.candidates import HardwareChoice
from tessera.domain.planning.plan import Plan, PlanMemory, plan
from tessera.domain.planning.service_plan import ServicePlan
from tessera.domain.status.variants import variant_status, variant_statuses
from tessera_lab.fleet.instance_types import (
    READ_INTERVAL,
    RecordedTypes,
    recorded_types,
)
from tessera_lab.fleet.model import Router, Tier
from tessera_lab.fleet.observation import Decision, EngineSample, Observation, ReplicaStatus
from tessera_lab.fleet.recorded_load import recorded_load, recorded_until
from tessera_lab.fleet.scraping import add
from tessera_lab.fleet.trace import Trace

# As results and commands call it.
OURS = "tessera"

_NO_SERVICE = Ref("", "")
_UNSCHEDULABLE = "Insufficient nvidia.com/gpu"
START = datetime(2026, 1, 5, tzinfo=UTC)
_SHORT, _LONG, _RATE = 300.0, 600.0, 60.0
_NODE_GPUS = 8
_MIN_EXPECTED_START = timedelta(seconds=10)
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

    def nodes_by_pool(self) -> Mapping[str, Sequence[Node]]:
        """Return the nodes of each pool that are always there."""
        return {
            pool.name: [
                node
                for node in self.nodes
                if pool.spec is not None and pool.spec.node_selector.items() <= node.labels.items()
            ]
            for pool in self.pools
        }

    def new_nodes(self) -> Mapping[str, Node]:
        """Return a node of each pool that has a template."""
        return {
            pool.name: template_node(pool.spec, pool.spec.node_template)
            for pool in self.pools
            if pool.spec is not None and pool.spec.node_template is not None
        }

    @property
    def spec(self) -> InferenceServiceSpec:
        spec = self.service.spec
        if spec is None:
            raise ValueError(f"{self.service.ref}: {self.service.problem}")
        return spec

    def first_plan(self) -> ServicePlan:
        """Return the decision for the service before it has replicas."""
        snapshot = Snapshot(at=START, services=(self.service,), pools=self.pools, nodes=self.nodes)
        return plan(_CONFIG, snapshot, PlanMemory()).service_plans[self.service.ref]

    def choice(self) -> HardwareChoice:
        """Return the hardware of the service; raise ValueError where it fits no pool."""
        choice = self.first_plan().choice
        if choice is None:
            raise ValueError(f"{self.service.ref} fits no pool")
        return choice

    def types(self, load: Trace, seconds: float, start: timedelta) -> RecordedTypes | None:
        """Return the instance types among which a load decides, of which the last `seconds` are
        played; None where too little is recorded before.

        `start` is the expected time until a replica is ready.
        """
        recorded = recorded_load(load, _moment(seconds))
        if not is_long_enough(recorded_until(recorded, START)):
            return None
        views = discover(self.pools, self.nodes, START.date())
        offers = [offer for view in views for offer in view.offers]
        return recorded_types(self.spec, self.choice(), offers, recorded, start).at(START)


@dataclass(frozen=True, slots=True, kw_only=True)
class WholeGpuPool:
    """A pool of nodes with whole GPUs."""

    name: str
    product: str
    price: str
    """USD per GPU and hour."""
    nodes: int
    """Those that are always there."""
    gpus: int = _NODE_GPUS
    """GPUs of a node."""
    tier: Tier = Tier.ON_DEMAND
    max_nodes: int = 0
    """Nodes that come for replicas, and go with them."""
    start_seconds: float = 0.0
    """Expected time until one is there."""

    def objects(
        self, ref: Ref, spec: dict[str, Any], budgets: Sequence[Budget] = ()
    ) -> FleetObjects:
        """Return a service on this pool; `spec` is that of its manifest."""
        return FleetObjects(
            service=ObservedService(
                ref=ref,
                uid=ref.name,
                generation=1,
                spec=InferenceServiceSpec.model_validate(spec),
            ),
            pools=(self._pool(),),
            nodes=tuple(self._nodes()),
            budgets=tuple(budgets),
        )

    def beside(self, objects: FleetObjects) -> FleetObjects:
        """Return the objects with this pool as one more."""
        return replace(
            objects, pools=(*objects.pools, self._pool()), nodes=(*objects.nodes, *self._nodes())
        )

    def _pool(self) -> Pool:
        spec: dict[str, Any] = {
            "nodeSelector": {"pool": self.name},
            "tier": self.tier,
            "prices": [{"from": date(2026, 1, 1), "perGPUHour": self.price}],
        }
        if self.max_nodes:
            spec["nodeTemplate"] = {
                "product": self.product,
                "gpus": self.gpus,
                "maxNodes": self.max_nodes,
                "expectedStart": max(_MIN_EXPECTED_START, timedelta(seconds=self.start_seconds)),
            }
        return Pool(
            ref=Ref("", self.name),
            uid=self.name,
            generation=1,
            spec=AcceleratorPoolSpec.model_validate(spec),
        )

    def _nodes(self) -> Iterator[Node]:
        labels = {
            "pool": self.name,
            "nvidia.com/gpu.product": self.product,
            "nvidia.com/gpu.count": str(self.gpus),
        }
        for number in range(self.nodes):
            yield Node(
                name=f"{self.name}-{number}",
                labels=labels,
                schedulable=True,
                allocatable={"nvidia.com/gpu": self.gpus},
            )


class ProductPolicy:
    """The operator's cycle each `interval` seconds; gateways report each second.

    In a fleet of several pools it says how many replicas each has, by the Deployments of the plan's
    variants. All have the same hardware, or each is an instance type and the recorded load decides.
    """

    def __init__(
        self,
        objects: FleetObjects,
        interval: float = 5.0,
        scrape: float = 15.0,
        edits: Sequence[tuple[float, FleetObjects]] = (),
        types: RecordedTypes | None = None,
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
        self._nodes, self._new_nodes = objects.nodes_by_pool(), objects.new_nodes()
        self._types = types
        self._choice = types.choice if types is not None else objects.choice()
        self._created = {self._choice.variant: types.running.since if types is not None else None}
        """When the Deployments of variants were created; None of one that the service began on."""
        self._load_history: LoadHistory | None = None
        self._choices = (
            {each.variant: each for each in types.choices}
            if types is not None
            else {
                each.offer.pool: each for each in reversed(objects.first_plan().placement.choices)
            }
        )
        """The variant on each pool that it fits, the first of several; or all instance types."""
        self._node_names: dict[int, str] = {}
        """The nodes of replicas, by their numbers."""
        self._service = objects.service
        if types is not None:
            # As old as its recorded load.
            self._service = replace(self._service, created=types.recorded.spans[0].end - SPAN)
        self._variants: tuple[str, ...] = ()
        """Those in the status, the one that the service was placed on first."""
        self._memory = PlanMemory()
        self._incremental = Incremental()
        self._history: deque[Observation] = deque()
        """Observations of new scrapes in the last ten minutes, oldest first."""
        self._slow_readings: tuple[float, SpeedReading, ServiceLatency] | None = None
        """What is read less often, with its moment."""
        self._arrivals: deque[tuple[float, int, ArrivedTokens]] = deque()
        """Moments of the last minute with the arrivals until then, and their expected tokens."""

    def decide(self, observation: Observation) -> Decision:
        """Return the replicas that the plan asks for, of several pools those of each."""
        while self._edits and self._edits[0][0] <= observation.at:
            _, self._objects = self._edits.popleft()
            self._nodes = self._objects.nodes_by_pool()
            self._new_nodes = self._objects.new_nodes()
        self._remember(observation)
        self._assign_nodes(observation)
        snapshot = self._snapshot(observation)
        decided = self._incremental.run(plan, _CONFIG, snapshot, self._memory)
        self.last = decided
        self._memory = self._memory.after(decided)
        service_plan = decided.service_plans[self._service.ref]
        self._write_status(service_plan)
        choice = service_plan.choice
        if (
            self._types is not None
            and choice is not None
            and choice.variant != self._choice.variant
        ):
            self._choice = self._choices[choice.variant]
            self._created[choice.variant] = _moment(observation.at)
        if service_plan.scale.reason is ScalingReason.BUDGET_EXHAUSTED:
            self.held_seconds += self.interval
        if not observation.targets:
            return service_plan.desired_pods
        desired = {variant.choice.variant: variant.desired for variant in service_plan.variants}
        # What is left of a previous type serves until the replicas of its successor do.
        staying = Counter(
            self._pool(status)
            for status in observation.statuses
            if self._pod_ref(status.number) not in service_plan.drain.draining
        )
        return {
            pool: desired.get(each.variant, staying[pool] if self._types is not None else 0)
            for pool, each in self._choices.items()
        }

    def _load_histories(self, at: datetime) -> Mapping[Ref, LoadHistory]:
        """Return what is recorded of the load, as read in the last hour; nothing of one type."""
        if self._types is None or len(self._types.choices) == 1:
            return {}
        if self._load_history is None or at >= self._load_history.read_at + READ_INTERVAL:
            self._load_history = recorded_until(self._types.recorded, at)
        return {self._service.ref: self._load_history}

    def _write_status(self, service_plan: ServicePlan) -> None:
        """Write what plans read of the status: the speed, and the names of the variants."""
        status, choice = self._service.status, service_plan.choice
        update: dict[str, object] = {}
        if service_plan.reported.speed is not status.speed:
            update["speed"] = service_plan.reported.speed
        variants = tuple(variant.choice.variant for variant in service_plan.variants)
        if choice is not None and variants != self._variants:
            self._variants = variants
            update["variant"] = variant_status(service_plan, choice)
            update["variants"] = variant_statuses(service_plan)
        if update:
            self._service = replace(self._service, status=status.model_copy(update=update))

    def _deployment(self, choice: HardwareChoice) -> Ref:
        service = self._service.ref
        return Ref(service.namespace, deployment_name(service.name, choice.variant))

    def _pool(self, status: ReplicaStatus) -> str:
        """Return the pool of a replica; a fleet without pools has a part of one for each tier."""
        return status.pool if status.pool in self._choices else self._first_pool

    @property
    def _first_pool(self) -> str:
        return next(pool for pool, choice in self._choices.items() if choice == self._choice)

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
            nodes=(*self._objects.nodes, *self._added_nodes(observation)),
            budgets=self._objects.budgets,
            pods=(
                *(self._pod(status) for status in observation.statuses),
                *self._foreign_pods(observation),
            ),
            workloads=tuple(self._workloads(observation)),
            readings=self._readings(observation),
            demand={ref: self._demand(observation)},
        )

    def _pod(self, status: ReplicaStatus) -> Pod:
        ref, pool = self._pod_ref(status.number), self._pool(status)
        draining, bound = status.draining_since, status.bound_at
        fit = self._choices[pool].fit
        hardware, limits = fit.hardware, fit.limits
        return Pod(
            ref=ref,
            uid=ref.name,
            service=self._service.ref,
            variant=self._choices[pool].variant,
            created=_moment(status.ordered_at),
            bound=None if bound is None else _moment(bound),
            node=self._node_names.get(status.number),
            unschedulable=_UNSCHEDULABLE if bound is None else None,
            devices={hardware.resource: hardware.devices},
            ready_since=None
            if status.ready_at is None or draining is not None
            else _moment(status.ready_at),
            containers_ready=status.ready_at is not None,
            serving=draining is None,
            draining_since=None if draining is None else _moment(draining),
            max_num_seqs=limits.max_num_seqs,
            max_num_batched_tokens=limits.max_num_batched_tokens,
        )

    def _assign_nodes(self, observation: Observation) -> None:
        """Give each replica that has a node the first one with room for its devices, or one of its
        own where nodes come for them."""
        bound = [status for status in observation.statuses if status.bound_at is not None]
        known, names, used = self._node_names, dict[int, str](), Counter[str]()
        for status in sorted(bound, key=lambda each: each.number not in known):
            pool, number = self._pool(status), status.number
            choice = self._choices[pool]
            devices, resource = choice.fit.hardware.devices, choice.fit.hardware.resource
            nodes = self._nodes[choice.offer.pool]
            if number in known:
                names[number] = known[number]
            elif pool in self._new_nodes:
                names[number] = f"{pool}-{number}"
            else:
                names[number] = next(
                    (
                        node.name
                        for node in nodes
                        if used[node.name] + devices <= node.allocatable.get(resource, 0)
                    ),
                    nodes[number % len(nodes)].name,
                )
            used[names[number]] += devices
        self._node_names = names

    def _added_nodes(self, observation: Observation) -> Iterator[Node]:
        for status in observation.statuses:
            pool = self._pool(status)
            if pool in self._new_nodes and status.bound_at is not None:
                yield replace(self._new_nodes[pool], name=self._node_names[status.number])

    def _foreign_pods(self, observation: Observation) -> Iterator[Pod]:
        """Yield what others run on the nodes of pools."""
        for pool, nodes in observation.foreign.items():
            if nodes:
                yield Pod(
                    ref=Ref("other", pool),
                    uid=pool,
                    service=_NO_SERVICE,
                    created=START,
                    bound=START,
                    node=self._nodes[pool][0].name,
                    devices={self._choice.fit.hardware.resource: nodes},
                )

    def _pod_ref(self, number: int) -> Ref:
        return Ref(self._service.ref.namespace, f"{self._service.ref.name}-{number}")

    def _workloads(self, observation: Observation) -> Iterator[Workload]:
        targets = observation.targets or {self._first_pool: observation.replicas}
        existing = {self._pool(status) for status in observation.statuses}
        for pool, choice in self._choices.items():
            is_chosen = self._types is not None and pool == self._first_pool
            if targets.get(pool) or pool in existing or is_chosen:
                yield Workload(
                    ref=self._deployment(choice),
                    service=self._service.ref,
                    variant=choice.variant,
                    created=self._created.get(choice.variant),
                    replicas=targets.get(pool, 0),
                    rollout_complete=True,
                )

    def _readings(self, observation: Observation) -> Readings:
        ref, newest = self._service.ref, self._history[-1]
        steps = self._steps(observation)
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
                    steps=steps.get(status.number),
                )
                for status in observation.statuses
                if status.sample is not None
            },
            finished={ref: max(0, finished)},
            finish_rates={ref: max(0, recent) / span} if span > 0 else {},
            token_rates={ref: self._token_rates(newest, rate)} if span > 0 else {},
            speeds={ref: tuple(self._speeds(speed, observation.statuses))},
            latencies={ref: latency},
            latencies_at=_moment(counted_at),
            load_histories=self._load_histories(_moment(observation.at)),
            speeds_at=_moment(counted_at),
        )

    def _steps(self, observation: Observation) -> dict[int, StepReading]:
        """Return what each replica did in the last two minutes, of which it has all scrapes."""
        short = self._before(STEP_SECONDS)
        before = {each.number: each.sample for each in short.statuses}
        return {
            status.number: reading
            for status in observation.statuses
            if (reading := self._step_reading(status, before.get(status.number))) is not None
        }

    def _step_reading(
        self, status: ReplicaStatus, before: EngineSample | None
    ) -> StepReading | None:
        sample = status.sample
        span = self._history[-1].scraped_at - self._before(STEP_SECONDS).scraped_at
        if sample is None or before is None or span <= 0:
            return None
        steps = sample.steps - before.steps
        if steps <= 0:
            return None
        return StepReading(
            steps=steps * STEP_SECONDS / span,
            sequences=(sample.generated_tokens - before.generated_tokens) / steps,
            prefill_tokens=(sample.prefill_tokens - before.prefill_tokens) / steps,
            activity=min(1.0, (sample.busy_seconds - before.busy_seconds) / span),
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
            engines=(EngineLatency(prefill=prefill),),
            gateway=GatewayLatency(ttft=histogram),
        )

    def _before(self, seconds: float) -> Observation:
        """Return the oldest observation that Prometheus takes for the last so many seconds.

        Their first moment is not of them, so a minute has four scrapes of 15 s, over 45 s.
        """
        begin = self._history[-1].scraped_at - seconds + self.scrape
        return next(each for each in self._history if each.scraped_at >= begin)

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
            return SpeedReading()
        return SpeedReading(
            requests=change.finished,
            tokens_per_second=change.generated_tokens / span,
            sequences=_quotient(change.generated_tokens, change.steps),
            prefill_tokens=_quotient(change.prefill_tokens, change.steps),
            prompt_tokens=_quotient(change.prefill_tokens, change.finished),
            mean_input_tokens=_quotient(long.prompt_tokens, long.finished),
            mean_output_tokens=_quotient(long.output_tokens, long.finished),
            cached_share=_quotient(long.hit_tokens, long.queried_tokens),
            itl_seconds=_quotient(change.gap_seconds, change.output_gaps),
            running=_mean_running(samples),
            kv_usage=_mean_usage(samples),
        )

    def _speeds(
        self, speed: SpeedReading, statuses: Sequence[ReplicaStatus]
    ) -> Iterator[SpeedReading]:
        """Yield the reading of each variant, of what all did the part of its ready replicas."""
        pools = [self._pool(status) for status in statuses if status.ready_at is not None]
        samples = self._samples_by_pool() if self._types is not None else {}
        for pool, choice in self._choices.items():
            share = pools.count(pool) / len(pools) if pools else 1.0
            own = samples.get(pool)
            yield replace(
                speed,
                variant=choice.variant,
                running=_mean_running(own) if own else speed.running,
                kv_usage=_mean_usage(own) if own else speed.kv_usage,
                kv_tokens=None if speed.running is None else choice.fit.memory.kv_tokens,
                requests=speed.requests and speed.requests * share,
                tokens_per_second=speed.tokens_per_second and speed.tokens_per_second * share,
            )

    def _samples_by_pool(self) -> Mapping[str, Sequence[EngineSample]]:
        """Return what each instance type had at the scrapes of five minutes, since their caches
        differ."""
        since, samples = self._before(_SHORT).scraped_at, dict[str, list[EngineSample]]()
        for observation in self._history:
            for status in observation.statuses if observation.scraped_at >= since else ():
                if status.sample is not None:
                    samples.setdefault(self._pool(status), []).append(status.sample)
        return samples

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
    return START + timedelta(seconds=seconds)


def _mean_running(samples: Sequence[EngineSample]) -> float:
    return sum(sample.running for sample in samples) / len(samples)


def _mean_usage(samples: Sequence[EngineSample]) -> float:
    return sum(sample.kv_usage for sample in samples) / len(samples)


def _quotient(total: float, count: float) -> float | None:
    return total / count if count > 0 else None
