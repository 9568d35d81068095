"""The metrics of the bill, of budgets and of the process."""

import logging
from dataclasses import replace
from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from tessera.api.service_status import StartStatus
from tessera.domain.cost.bill import Bill
from tessera.domain.cost.device_use import CostLine, CostState
from tessera.reconcile.cycle import ReconcileOutcome
from tessera.telemetry.telemetry import Telemetry
from tests.builders import NOW, a_budget, a_service, a_snapshot, a_spec, at, dollars, plan_of
from tests.domain.service.test_variants import fleet, resized

CHAT = CostLine(
    currency="USD",
    pool="a100",
    profile="1g.10gb",
    namespace="team-a",
    service="chat",
    state=CostState.SERVING,
)
COLD = CostLine(currency="USD", pool="a100", profile="1g.10gb", state=CostState.COLD_IDLE)


def scrape(telemetry: Telemetry) -> dict[str, dict[tuple[str, ...], float]]:
    """Return the values of the bill by metric and by tenant, service and state."""
    series: dict[str, dict[tuple[str, ...], float]] = {}
    text = telemetry.exposition().decode()
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if sample.name.startswith("tessera_cost"):
                key = tuple(sample.labels.get(name, "") for name in ("tenant", "service", "state"))
                series.setdefault(sample.name, {})[key] = sample.value
    return series


def test_without_a_bill_there_are_no_series() -> None:
    assert scrape(Telemetry()) == {}


def test_the_bill_is_exported_with_its_time() -> None:
    telemetry = Telemetry()
    lines = {CHAT: dollars("1.5"), COLD: dollars("0.000000001")}
    telemetry.record_bill(Bill(since=NOW, as_of=at(5.000137), lines=lines), {"team-a": "acme"})
    assert scrape(telemetry) == {
        "tessera_cost_nanos_total": {
            ("acme", "chat", "serving"): 1_500_000_000,
            ("", "", "coldIdle"): 1,
        },
        "tessera_cost_total": {("acme", "chat", "serving"): 1.5, ("", "", "coldIdle"): 1e-9},
        "tessera_cost_as_of_timestamp_seconds": {("", "", ""): at(5.000137).timestamp()},
        "tessera_cost_since_timestamp_seconds": {("", "", ""): NOW.timestamp()},
    }


def test_what_is_recommended_is_exported_where_another_autoscaler_decides() -> None:
    specs = {"chat": a_spec(replicas=3, scaling={"mode": "HPA"}), "code": a_spec(replicas=3)}
    snapshot = a_snapshot(*(a_service(name, spec) for name, spec in specs.items()))
    telemetry = Telemetry()
    outcome = ReconcileOutcome(
        snapshot=snapshot, plan=plan_of(snapshot), bill=Bill(), problems={}, writes=0, cpu_seconds=0
    )
    telemetry.record_reconcile(outcome, 0.1)
    lines = telemetry.exposition().decode().splitlines()
    assert [line for line in lines if line.startswith("tessera_service_recommended")] == [
        'tessera_service_recommended_replicas{namespace="team-a",service="chat"} 3.0'
    ]


def test_the_last_start_of_a_service_is_exported_by_phase() -> None:
    service = a_service()
    start = StartStatus(
        pod="chat-0", variant="a100", created_at=NOW, seconds=42, schedule_seconds=2,
        image_seconds=40,
    )  # fmt: skip
    snapshot = a_snapshot(
        replace(service, status=service.status.model_copy(update={"start": start}))
    )
    telemetry = Telemetry()
    outcome = ReconcileOutcome(
        snapshot=snapshot, plan=plan_of(snapshot), bill=Bill(), problems={}, writes=0, cpu_seconds=0
    )
    telemetry.record_reconcile(outcome, 0.1)
    lines = telemetry.exposition().decode().splitlines()
    chat = 'namespace="team-a",phase="%s",service="chat"'
    assert sorted(line for line in lines if line.startswith("tessera_service_start")) == [
        f"tessera_service_start_seconds{{{chat % 'image'}}} 40.0",
        f"tessera_service_start_seconds{{{chat % 'schedule'}}} 2.0",
    ]


def test_replicas_on_nodes_are_exported_by_tier() -> None:
    cluster, telemetry = fleet(2, reserved=2, burst=1), Telemetry()

    def replicas() -> list[str]:
        snapshot = cluster.snapshot()
        plan = cluster.decide(cluster.config, snapshot, cluster.memory)
        outcome = ReconcileOutcome(
            snapshot=snapshot, plan=plan, bill=Bill(), problems={}, writes=0, cpu_seconds=0
        )
        telemetry.record_reconcile(outcome, 0.1)
        lines = telemetry.exposition().decode().splitlines()
        return sorted(line for line in lines if line.startswith("tessera_service_tier"))

    chat = 'tessera_service_tier_replicas{namespace="team-a",service="chat",tier="%s"} %s'
    cluster.run(90)
    assert replicas() == [chat % ("Reserved", "2.0")]
    resized(cluster, 4)
    cluster.run(90)
    # One waits for a node, so it costs nothing.
    assert len(cluster.pods) == 4
    assert replicas() == [chat % ("OnDemand", "1.0"), chat % ("Reserved", "2.0")]


@given(st.integers(0, 10**18), st.integers(0, 10**18))
def test_both_counters_of_cost_agree(serving: int, idle: int) -> None:
    telemetry = Telemetry()
    telemetry.record_bill(Bill(since=NOW, as_of=NOW, lines={CHAT: serving, COLD: idle}), {})
    figures = scrape(telemetry)
    nanos, cost = figures["tessera_cost_nanos_total"], figures["tessera_cost_total"]
    assert cost == {key: pytest.approx(value / 1e9) for key, value in nanos.items()}


def test_what_was_spent_stays_with_the_tenant_of_then() -> None:
    telemetry = Telemetry()
    for cycle, (total, tenants) in enumerate(
        [(10, {"team-a": "acme"}), (15, {"team-a": "globex"}), (18, {}), (18, {"team-a": "late"})]
    ):
        bill = Bill(since=NOW, as_of=NOW + cycle * timedelta(seconds=5), lines={CHAT: total})
        telemetry.record_bill(bill, tenants)
    assert scrape(telemetry)["tessera_cost_nanos_total"] == {
        ("acme", "chat", "serving"): 10,
        ("globex", "chat", "serving"): 5,
        ("", "chat", "serving"): 3,
    }


def test_which_limits_of_a_budget_hold_is_exported_with_the_reason() -> None:
    accepted = a_budget()
    mistyped = replace(accepted, spec=None, problem="spec.limits[0].amount: not a number")
    for budget, reason, value in (
        (accepted, "CurrentSpec", 1),
        (mistyped, "NotAccepted", 0),
    ):
        telemetry = Telemetry()
        snapshot = a_snapshot(a_service(), budgets=(budget,))
        outcome = ReconcileOutcome(
            snapshot=snapshot,
            plan=plan_of(snapshot),
            bill=Bill(),
            problems={},
            writes=0,
            cpu_seconds=0,
        )
        telemetry.record_reconcile(outcome, 0.1)
        text = telemetry.exposition().decode()
        line = f'tessera_budget_enforcing{{budget="team-a",reason="{reason}"}} {value:.1f}\n'
        assert line in text


def test_a_process_that_loses_the_leadership_says_so_without_a_cycle() -> None:
    telemetry, leaders = Telemetry(), [True]
    telemetry.process.leader.set_function(lambda: bool(leaders))
    assert "\ntessera_leader 1.0\n" in telemetry.exposition().decode()
    leaders.clear()
    assert "\ntessera_leader 0.0\n" in telemetry.exposition().decode()


def test_gateways_are_counted_where_there_should_be_some() -> None:
    telemetry, gateways = Telemetry(), ["gateway-0"]
    assert "\ntessera_gateways{" not in telemetry.exposition().decode()
    telemetry.process.watch_gateways("tessera-gateway", lambda: len(gateways))
    assert '\ntessera_gateways{account="tessera-gateway"} 1.0\n' in telemetry.exposition().decode()
    gateways.clear()
    assert '\ntessera_gateways{account="tessera-gateway"} 0.0\n' in telemetry.exposition().decode()


def test_each_change_of_a_variant_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "tessera")
    telemetry, cluster = Telemetry(), fleet(2, reserved=2, burst=4)
    for replicas in (2, 4, 4):
        resized(cluster, replicas)
        for _ in range(20):
            service_plan = cluster.cycle()
            fleet_plan = replace(
                plan_of(a_snapshot()), service_plans={service_plan.service.ref: service_plan}
            )
            outcome = ReconcileOutcome(
                snapshot=cluster.snapshot(),
                plan=fleet_plan,
                bill=Bill(),
                problems={},
                writes=0,
                cpu_seconds=0,
            )
            telemetry.record_reconcile(outcome, 0.1)
    lines = [record.getMessage() for record in caplog.records if "CheaperFull" in record.message]
    assert len(lines) == 1
    assert lines[0].startswith("team-a/chat: CheaperFull: no room on reserved-1gpu at less cost")
    last = caplog.records[-1]
    assert vars(last)["variants"] == {"reserved-1gpu": 2, "burst-1gpu": 2}
