"""Generated fleets whose engines are measured, played to what people and machines read of them.

A sequence is a fleet of one to three services, and what happens to it in half an hour: readings of
every kind, edits, lost nodes, budgets, restarts of the operator. It is recorded as JSON: statuses,
Events, explanations and series.
"""

import dataclasses
import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any, Literal, get_args

from tessera.api.inference_service import InferenceServiceSpec
from tessera.api.service_status import InferenceServiceStatus
from tessera.domain.cost.bill import Bill
from tessera.domain.explain.explain import explain
from tessera.domain.observed.drafts import DraftCounts, TemperatureClass
from tessera.domain.observed.latency import (
    EngineLatency,
    GatewayLatency,
    LatencyHistogram,
    ServiceLatency,
)
from tessera.domain.observed.snapshot import (
    ObservedService,
    PodReading,
    Readings,
    Ref,
    Snapshot,
    SpeedReading,
)
from tessera.domain.planning.plan import PlanMemory, plan
from tessera.domain.status.events import event_notes
from tessera.reconcile.cycle import ReconcileOutcome
from tessera.telemetry.telemetry import Telemetry
from tests.builders import NOW, a_budget, a_node, a_pool, a_service, a_spec
from tests.domain.variant_fleet import VariantFleet
from tests.text_records import step_lines, text_of

Kind = Literal["statuses", "events", "explanations", "series"]
KINDS: Sequence[Kind] = get_args(Kind)
SEQUENCES = 300
_NAMES = ("chat", "code", "draft")
_TIERS = ("Reserved", "OnDemand")
_DRAFTED = {"method": "NGram", "tokens": 4}
# What Prometheus is asked for less often than for loads, in cycles.
_SLOW_QUERY = 4
_EDGES = (0.01, 0.02, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)


@dataclass
class _Load:
    """What the engines of a service are doing, which drifts."""

    slowness: float
    acceptance: float
    running: float
    preemptions: float
    late_share: float
    pace: float


@dataclass
class MeasuredFleet:
    """A sequence, by its seed."""

    seed: int
    record: Mapping[Kind, list[Any]] = field(default_factory=lambda: {kind: [] for kind in KINDS})

    def __post_init__(self) -> None:
        self.random = random.Random(self.seed)  # noqa: S311 - a sequence is its seed
        self.edits = 0
        self.speeds: Mapping[Ref, tuple[SpeedReading, ...]] = {}
        self.speeds_at: datetime | None = None
        self.latencies: Mapping[Ref, ServiceLatency] = {}
        self.latencies_at: datetime | None = None
        self.prices = {name: "2.00" for name in ("first", "second", "third")}
        self.pools = list(self.prices)[: self.random.randint(1, 3)]
        self.tiers = {name: self.random.choice(_TIERS) for name in self.pools}
        services = [
            a_service(name, self._spec()) for name in _NAMES[: self.random.choice((1, 1, 2, 3))]
        ]
        self.loads = {service.ref: self._load() for service in services}
        self.fleet = VariantFleet(
            service=services[0],
            others=services[1:],
            pools=self._pools(),
            nodes=[
                a_node(
                    name,
                    whole=self.random.randint(0, 3),
                    slices=self.random.choice((None, {"1g.10gb": 4}, {"3g.40gb": 2})),
                )
                for name in self.pools
            ],
            start=timedelta(seconds=self.random.choice((5, 20, 90))),
            stop=timedelta(seconds=self.random.choice((0, 10))),
            decide=self._decide,
        )
        self.telemetry = Telemetry()
        self.last: tuple[Snapshot, Any] | None = None

    # What there is

    def _spec(self) -> InferenceServiceSpec:
        chosen, floor = self.random, self.random.randint(1, 3)
        fields: dict[str, Any] = {
            "class": chosen.choice(("Interactive", "Standard")),
            "scaling": {"minReplicas": floor, "maxReplicas": floor + chosen.randint(0, 4)},
            "podTemplate": {"annotations": {"edit": str(self.edits)}},
        }
        if chosen.random() < 0.5:
            fields["slo"] = {
                "ttftP95": chosen.choice(("500ms", "1s", "700ms")),
                "itlP95": chosen.choice(("25ms", "50ms", "33ms")),
            }
        if chosen.random() < 0.4:
            fields["engine"] = {"speculation": _DRAFTED}
        return a_spec(**fields)

    def _load(self) -> _Load:
        chosen = self.random
        return _Load(
            slowness=chosen.choice((0.5, 1.0, 1.0, 1.6)),
            acceptance=chosen.choice((0.05, 0.4, 0.8)),
            running=chosen.choice((0.0, 1.0, 8.0, 60.0)),
            preemptions=chosen.choice((0.0, 0.0, 3.0, 200.0)),
            late_share=chosen.choice((0.0, 0.01, 0.2)),
            pace=chosen.choice((0.0, 1.0, 4.0)),
        )

    def _pools(self) -> Sequence[Any]:
        return [a_pool(name, self.prices[name], tier=self.tiers[name]) for name in self.pools]

    def _services(self) -> Sequence[ObservedService]:
        return self.fleet.service, *self.fleet.others

    # What is measured

    def _read(self, cycle: int) -> None:
        at = NOW + self.fleet.now - timedelta(seconds=self.random.choice((0, 3)))
        if cycle % _SLOW_QUERY == 0 and self.random.random() < 0.9:
            refs = [service.ref for service in self._services()]
            self.speeds = {ref: self._speeds(ref) for ref in refs if self.random.random() < 0.9}
            self.latencies = {ref: self._latency(ref) for ref in refs if self.random.random() < 0.9}
            self.speeds_at = self.latencies_at = at
        if self.random.random() < 0.05:
            self.fleet.fields["readings"] = None
            return
        serving = [pod for pod in self.fleet.pods.values() if pod.takes_requests]
        self.fleet.fields["readings"] = Readings(
            at=at,
            pods={
                pod.ref: PodReading(
                    waiting=float(self.random.choice((0, 0, 4))),
                    running=self.loads[pod.service].running * self.random.choice((0.1, 1, 2)),
                    activity=self.random.random(),
                )
                for pod in serving
            },
            finish_rates={ref: load.pace for ref, load in self.loads.items()},
            speeds=self.speeds,
            speeds_at=self.speeds_at,
            latencies=self.latencies,
            latencies_at=self.latencies_at,
            drafts={ref: (self._drafts(ref),) for ref in self.loads},
        )

    def _speeds(self, ref: Ref) -> tuple[SpeedReading, ...]:
        load, readings = self.loads[ref], []
        variants = {pod.variant for pod in self.fleet.pods.values() if pod.service == ref}
        for variant in sorted(variants):
            drafts = 30_000.0 if load.running else 0.0
            readings.append(
                SpeedReading(
                    variant=variant,
                    requests=300 * load.pace,
                    tokens_per_second=100 * load.running,
                    sequences=load.running or None,
                    prefill_tokens=32.0,
                    prompt_tokens=400.0,
                    mean_input_tokens=400.0,
                    mean_output_tokens=100.0,
                    itl_seconds=0.012 * load.slowness,
                    median_itl_seconds=0.011 * load.slowness,
                    preemptions=load.preemptions,
                    running=load.running,
                    median_running=load.running,
                    drafts=drafts,
                    drafted_tokens=4 * drafts,
                    accepted_tokens=4 * drafts * load.acceptance,
                    kv_usage=min(0.95, load.running / 64),
                    kv_tokens=self.random.choice((120_000, 90_000)),
                    flops_per_second=2e13,
                    bytes_per_second=4e11,
                )
            )
        return tuple(readings)

    def _latency(self, ref: Ref) -> ServiceLatency:
        load = self.loads[ref]
        histograms = [
            LatencyHistogram(
                total=count,
                at_most=tuple(
                    (edge, count * (1 if edge >= slow else 1 - load.late_share)) for edge in _EDGES
                ),
            )
            for count, slow in ((300 * load.pace, 2.5), (30_000 * load.pace, 0.1))
        ]
        ttft, itl = histograms
        gateway = GatewayLatency(ttft=ttft, itl=itl, overdue=load.late_share * 20)
        return ServiceLatency(
            engines=(EngineLatency(ttft=ttft, itl=itl, waiting=load.running / 8),),
            gateway=gateway if self.random.random() < 0.3 else None,
            budget_burn=self.random.choice((None, 0.2, 1.5)),
        )

    def _drafts(self, ref: Ref) -> DraftCounts:
        accepted = round(1000 * self.loads[ref].acceptance)
        return DraftCounts(
            temperature=TemperatureClass.GREEDY,
            drafts=250,
            drafted_tokens=1000,
            accepted_tokens=accepted,
        )

    # What happens

    def _change(self) -> str:
        chosen, services = self.random, self._services()
        kind = chosen.choice(("load", "load", "load", "edit", "pod", "node", "price", "budget",
                              "restart"))  # fmt: skip
        index = chosen.randrange(len(services))
        if kind == "load":
            self.loads[services[index].ref] = self._load()
        elif kind == "edit":
            self.edits += 1
            edited = replace(
                services[index], spec=self._spec(), generation=services[index].generation + 1
            )
            self.fleet.service, *self.fleet.others = (
                edited if service.ref == edited.ref else service for service in services
            )
        elif kind == "pod" and (present := sorted(self.fleet.pods.keys() - self.fleet.stopping)):
            del self.fleet.pods[chosen.choice(present)]
        elif kind == "node":
            position = chosen.randrange(len(self.fleet.nodes))
            node = self.fleet.nodes[position]
            self.fleet.nodes[position] = replace(node, schedulable=not node.schedulable)
        elif kind == "price":
            self.prices[chosen.choice(self.pools)] = chosen.choice(("0.50", "2.00", "9.00"))
            self.fleet.pools = self._pools()
        elif kind == "budget":
            budgets = chosen.choice(((), (a_budget(amount="9000.00", window="Month"),)))
            self.fleet.fields["budgets"] = budgets
        elif kind == "restart":
            self.fleet.memory = PlanMemory()
        return kind

    # What is read of it

    def _decide(self, config: Any, snapshot: Snapshot, memory: PlanMemory) -> Any:
        decided = plan(config, snapshot, memory)
        self.last = snapshot, decided
        return decided

    def play(self, cycles: int = 40) -> Mapping[Kind, list[Any]]:
        """Return what each cycle of the sequence shows, by its kind."""
        for cycle in range(cycles):
            what = self._change() if cycle and self.random.random() < 0.3 else ""
            self._read(cycle)
            before = {service.ref: service.status for service in self._services()}
            self.fleet.cycle(self.random.choice((5, 15, 60, 60)))
            self._record(cycle, what, before)
        return self.record

    def _record(self, cycle: int, what: str, before: Mapping[Ref, InferenceServiceStatus]) -> None:
        assert self.last is not None
        snapshot, decided = self.last
        after = {service.ref: service.status for service in self._services()}
        self.record["statuses"].append(
            {"after": what, **{str(ref): _status_json(after[ref]) for ref in after}}
        )
        self.record["events"].append(
            {
                str(ref): [
                    dataclasses.asdict(note) for note in event_notes(before[ref], after[ref])
                ]
                for ref in after
            }
        )
        outcome = ReconcileOutcome(
            snapshot=snapshot, plan=decided, bill=Bill(), problems={}, writes=0, cpu_seconds=0
        )
        self.telemetry.record_reconcile(outcome, 0.0)
        if cycle % 4 == 3:
            text = self.telemetry.exposition().decode()
            self.record["series"].append(
                sorted(line for line in text.splitlines() if "tessera_service_" in line)
            )
            self.record["explanations"].append(
                {
                    str(ref): [dataclasses.asdict(each) for each in explain(snapshot, decided, ref)]
                    for ref in after
                }
            )


def _status_json(status: InferenceServiceStatus) -> Any:
    return status.model_dump(mode="json", by_alias=True, exclude_none=True)


def as_json(record: Any) -> str:
    """Return a part of a record in one form."""
    return json.dumps(record, indent=1, sort_keys=True, default=str)


def fleet_text(seed: int) -> str:
    """Return what a sequence shows as text: each status and Event, every other explanation and
    page of series, without the help of these."""
    record: Any = MeasuredFleet(seed).play()
    series = (
        dict(line.rsplit(" ", 1) for line in page if line[0] != "#")
        for page in record["series"][1::2]
    )
    steps = {**record, "explanations": record["explanations"][1::2], "series": series}
    return text_of({kind: step_lines(steps[kind]) for kind in KINDS})
