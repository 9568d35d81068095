"""The metrics of objectives."""

from prometheus_client.parser import text_string_to_metric_families

from tessera.domain.cost.bill import Bill
from tessera.domain.observed.latency import ServiceLatency
from tessera.domain.observed.snapshot import Ref
from tessera.reconcile.cycle import ReconcileOutcome
from tessera.telemetry.telemetry import Telemetry
from tests.builders import NOW, a_pod, a_service, a_snapshot, a_workload, plan_of, readings_of
from tests.domain.slo.latencies import engine_latency, gateway_latency, of_engines

CHAT = Ref("team-a", "chat")
PODS = (a_pod("chat-0"),)


def series(latency: ServiceLatency | None) -> dict[str, float]:
    """Return the values by name and the labels beside those of the service."""
    latencies = {} if latency is None else {CHAT: latency}
    readings = readings_of(PODS, latencies=latencies, latencies_at=NOW)
    snapshot = a_snapshot(a_service(), pods=PODS, workloads=(a_workload(1),), readings=readings)
    telemetry = Telemetry()
    telemetry.record_reconcile(
        ReconcileOutcome(
            snapshot=snapshot,
            plan=plan_of(snapshot),
            bill=Bill(),
            problems={},
            writes=0,
            cpu_seconds=0,
        ),
        0.1,
    )
    values = {}
    for family in text_string_to_metric_families(telemetry.exposition().decode()):
        for sample in family.samples:
            if sample.name.startswith("tessera_service_slo_"):
                labels = {**sample.labels}
                assert (labels.pop("namespace"), labels.pop("service")) == CHAT
                name = sample.name.removeprefix("tessera_service_slo_")
                order = ("objective", "source", "bound", "le")
                values[" ".join([name, *(labels[key] for key in order if key in labels)])] = (
                    sample.value
                )
    return values


def test_targets_shares_and_the_edges_of_engines_are_exported() -> None:
    values = series(of_engines(ttft=0.97, fast=0.4, slow=0.99))
    assert values == {
        "target_seconds ttft": 1.0,
        "target_seconds itl": 0.033,
        "attained_ratio ttft lower": 0.97,
        "attained_ratio ttft upper": 0.97,
        "attained_ratio itl lower": 0.4,
        "attained_ratio itl upper": 0.99,
        "overdue_requests": 0,
        # In the spelling of the engines' own label, to which rules compare it.
        "edge_info ttft Engine lower 1.0": 1,
        "edge_info ttft Engine upper 1.0": 1,
        "edge_info itl Engine lower 0.025": 1,
        "edge_info itl Engine upper 0.05": 1,
    }


def test_what_gateways_counted_has_the_target_as_its_edge() -> None:
    latency = ServiceLatency(engines=(engine_latency(),), gateway=gateway_latency(overdue=4))
    values = series(latency)
    assert values["overdue_requests"] == 4
    assert values["edge_info itl Gateway lower 0.033"] == 1
    assert values["edge_info itl Gateway upper 0.033"] == 1
    assert "edge_info itl Engine lower 0.025" not in values


def test_a_service_without_series_has_its_targets_alone() -> None:
    values = series(None)
    assert values["target_seconds itl"] == 0.033
    assert "edge_info ttft Engine upper 1.0" in values
    assert not [name for name in values if name.startswith(("attained", "overdue"))]
