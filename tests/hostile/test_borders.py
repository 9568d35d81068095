"""What a tenant's engines show, and how they answer, counts for nobody else."""

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from typing_extensions import override

from tessera.adapters.prometheus.access import PrometheusAccess
from tessera.adapters.prometheus.latency import latency_queries
from tessera.adapters.prometheus.metrics import PrometheusMetrics
from tessera.adapters.prometheus.queries import SERVICE, VARIANT, short_groups, union_query
from tessera.adapters.prometheus.rows import QueryRow, well_formed_rows
from tessera.adapters.prometheus.speeds import SPEEDS
from tessera.domain.kinds.kinds import BATCH_INFERENCES, INFERENCE_SERVICES
from tessera.domain.observed.snapshot import Readings
from tessera.domain.slo.measurement import LatencyEdges
from tessera.reconcile.observe import RestoredHistory
from tessera.resources.api_resources import CLAIMS
from tessera.resources.manifest import ObjectKey
from tests.builders import NOW, SMALL
from tests.hostile.twin import HOSTILE, Fleet, Twins
from tests.memory_operator import CHAT
from tests.memory_operator import VARIANT as A100_SLICE

OWN_TARGET = 'job="tessera-system/tessera-operator",namespace="tessera-system"'
EDGES = LatencyEdges(frozenset({1.0}), frozenset({0.025, 0.05}))
SPEED_GROUPS = tuple(short_groups(SPEEDS))
LATENCIES = union_query(latency_queries(EDGES, PrometheusAccess().gateway_target))
Row = dict[str, Any]


class ScrapedMetrics(PrometheusMetrics):
    """Prometheus with the pages of a fleet's engines, and with rows of the hostile tenant."""

    def __init__(self, fleet: "ScrapedFleet") -> None:
        super().__init__("http://prometheus", lambda: fleet.at)
        self._fleet = fleet

    @override
    async def _execute(self, seconds: float, function: Any, *arguments: Any) -> list[QueryRow]:
        query: str = arguments[0]
        foreign = [] if OWN_TARGET in query else self._fleet.foreign_rows
        rows_by_query = {union_query(group): self._fleet.speed_rows for group in SPEED_GROUPS}
        rows_by_query[LATENCIES] = self._fleet.latency_rows
        own = rows_by_query.get(query, self._fleet.load_rows)
        rows = [*own(), *foreign] if "tessera_question" in query else foreign
        return well_formed_rows(rows, self._rejected)


class ScrapedFleet(Fleet):
    """A fleet whose readings come through the adapter; an error there ends the process."""

    def __init__(self) -> None:
        super().__init__()
        self.metrics = ScrapedMetrics(self)
        self.foreign_rows: list[Row] = []
        self.ended = 0
        self._scraped: Readings | None = None

    def load_rows(self) -> list[Row]:
        return [
            self.row(name, value, key.namespace, pod=key.name)
            for namespace in ("team-a", HOSTILE)
            for key in self.pods_of(namespace, "chat")
            for name, value in (("waiting", 3), ("running", 5), ("activity", 0.9))
        ]

    def speed_rows(self) -> list[Row]:
        values = {"requests": 300, "tokens": 500, "steps": 100, "gaps": 500, "gap_seconds": 10}
        return [
            self.row(name, value, namespace, **{VARIANT: A100_SLICE})
            for namespace in ("team-a", HOSTILE)
            for name, value in values.items()
        ]

    def latency_rows(self) -> list[Row]:
        counts = {("ttft", "1.0"): 290, ("itl", "0.025"): 8_000, ("itl", "0.05"): 9_900}
        totals = {("ttft", "+Inf"): 300, ("itl", "+Inf"): 10_000}
        return [
            self.row(name, value, namespace, le=le, **{VARIANT: A100_SLICE})
            for namespace in ("team-a", HOSTILE)
            for (name, le), value in {**counts, **totals}.items()
        ]

    def row(self, name: str, value: object, namespace: str, **labels: str) -> Row:
        identity = {"namespace": namespace, SERVICE: "chat", "tessera_question": name}
        return {"metric": identity | labels, "value": [self.at.timestamp(), str(value)]}

    @override
    async def cycle(self) -> None:
        try:
            self._scraped = await self.metrics.read(EDGES)
            if self.outcome is None:
                await self.restore_bill()
        except Exception:  # noqa: BLE001 - the process ends, and its pod starts anew
            self.ended += 1
            self.restart()
        await super().cycle()

    async def restore_bill(self) -> None:
        """Continue the bill, as a new leader does."""
        billed_until = await self.metrics.billed_until()
        self.observations.history = RestoredHistory(billed_until=billed_until)

    @override
    def _readings(self) -> Readings | None:
        return self._scraped


def add_two_tenants(fleet: Fleet) -> None:
    fleet.add_pool("a100")
    fleet.add_node("a100-0", "a100", {"1g.10gb": 7})
    for namespace in ("team-a", HOSTILE):
        fleet.add_budget(namespace, "100")
        fleet.serve("chat", namespace, scaling={"minReplicas": 1, "maxReplicas": 3})


def scraped_twins() -> tuple[Twins, ScrapedFleet]:
    twins = Twins(add_two_tenants)
    twins.hostile, twins.peaceful = hostile, peaceful = ScrapedFleet(), ScrapedFleet()
    for fleet in (hostile, peaceful):
        add_two_tenants(fleet)
    return twins, hostile


def overwhelming_numbers(fleet: ScrapedFleet) -> list[Row]:
    names = ("waiting", "running", "activity", "kv_usage", "gap_seconds", "finished", "steps")
    return [
        fleet.row(name, value, HOSTILE, pod="liar", **{VARIANT: A100_SLICE})
        for name in names
        for value in ("1e308", "-1", "NaN", "1e40", "9" * 5000)
    ]


def unlabeled_rows(fleet: ScrapedFleet) -> list[Row]:
    rows = overwhelming_numbers(fleet)
    return [
        row | {"metric": {"tessera_question": row["metric"]["tessera_question"]}} for row in rows
    ]


def endless_labels(fleet: ScrapedFleet) -> list[Row]:
    labels = {VARIANT: A100_SLICE, "kv_cache_size_tokens": "9" * 1000}
    return [fleet.row("cache", 1, HOSTILE, **labels)]


def contradictory_buckets(fleet: ScrapedFleet) -> list[Row]:
    return [
        fleet.row(name, value, HOSTILE, le=le, **{VARIANT: A100_SLICE})
        for name in ("ttft", "itl")
        for le, value in (("0.025", 9e9), ("+Inf", 1), ("NaN", 5), ("-1", 5), ("x" * 900, 5))
    ]


def forged_bill(fleet: ScrapedFleet) -> list[Row]:
    billed_until = fleet.at + timedelta(minutes=4)
    labels = {"__name__": "tessera_cost_as_of_timestamp_seconds", "namespace": HOSTILE}
    return [{"metric": labels, "value": [fleet.at.timestamp(), str(billed_until.timestamp())]}]


@pytest.mark.parametrize(
    "foreign_rows",
    [
        *(overwhelming_numbers, unlabeled_rows, endless_labels, contradictory_buckets),
        forged_bill,
    ],
)
async def test_what_one_engine_exports_counts_for_nobody_else(
    foreign_rows: Callable[[ScrapedFleet], list[Row]],
) -> None:
    twins, hostile = scraped_twins()

    def act(_: Fleet, cycle: int) -> None:
        hostile.foreign_rows = foreign_rows(hostile)
        if cycle == 12:
            hostile.restart()
            hostile.outcome = None

    def restart_peaceful() -> None:
        twins.peaceful.restart()
        twins.peaceful.outcome = None

    await twins.run(12, act)
    restart_peaceful()
    await twins.run(12, lambda fleet, cycle: act(fleet, cycle + 12))
    assert hostile.ended == 0
    assert twins.hostile.spent("team-a") > 0
    assert any(line.namespace == "team-a" for line in hostile.bill.lines)
    assert hostile.body(CHAT)["status"]["slo"]["attained"] == "~86.0 %"
    twins.assert_equal()


def add_two_tiers(fleet: Fleet) -> None:
    for pool, tier, price in (("a100", "OnDemand", "2"), ("spot", "Spot", "0.8")):
        fleet.add_pool(pool, price, tier=tier)
        fleet.add_node(f"{pool}-0", pool, {"1g.10gb": 7})
    for namespace in ("team-a", HOSTILE):
        fleet.add_budget(namespace, "100")
    fleet.serve("chat", HOSTILE, scaling={"minReplicas": 1, "maxReplicas": 1})


def add_checked_batch(fleet: Fleet) -> None:
    """Add a batch of 20,000 rows that spot capacity finishes in time."""
    claim = {"name": "data", "namespace": "team-a"}
    fleet.cluster.put(CLAIMS, {"metadata": claim, "spec": {"accessModes": ["ReadWriteMany"]}})
    created = f"{fleet.at:%Y-%m-%dT%H:%M:%SZ}"
    spec = {
        **{"claimName": "data", "input": "in.jsonl", "output": "out.jsonl", "deadline": "4h"},
        "model": {"uri": SMALL},
    }
    status = {
        "state": "in_progress",
        "check": {"rows": 20_000, "url": "/v1/completions", "inputTokens": 10**7},
        "progress": {"rows": 20_000, "at": created},
    }
    meta = {"name": "night", "namespace": "team-a", "creationTimestamp": created}
    fleet.cluster.put(BATCH_INFERENCES, {"metadata": meta, "spec": spec, "status": status})


@pytest.mark.parametrize("ratio", ["0.00", "1000"])
async def test_the_speed_that_one_engine_shows_moves_no_batch_of_another(ratio: str) -> None:
    twins = Twins(add_two_tiers)
    chat = ObjectKey("inferenceservices", HOSTILE, "chat")

    def show_speed(fleet: Fleet, _: int) -> None:
        amount = {"predicted": "10", "measured": "10"}
        variant = fleet.body(chat)["status"]["variant"]["name"]
        speed = {
            **{"model": SMALL, "variant": variant, "reason": "SlowerThanPredicted"},
            **{"itlMs": amount, "tokensPerSecond": amount, "ratio": ratio, "requests": 10**12},
            "at": f"{NOW:%Y-%m-%dT%H:%M:%SZ}",
        }
        meta = {"name": chat.name, "namespace": chat.namespace}
        fleet.cluster.put(
            INFERENCE_SERVICES, {"metadata": meta, "status": {"speed": speed}}, "page"
        )

    await twins.run(2)
    for fleet in twins.both:
        add_checked_batch(fleet)
    await twins.run(5, show_speed)
    night = twins.peaceful.body(ObjectKey("batchinferences", "team-a", "night"))
    assert night["status"]["attempt"]["pool"] == "spot"
    twins.assert_equal()
