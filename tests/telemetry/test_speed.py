"""The metrics of speeds."""

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tessera.domain.aspects import speed
from tessera.domain.cost.bill import Bill
from tessera.domain.observed.snapshot import Ref, SpeedReading
from tessera.reconcile.cycle import ReconcileOutcome
from tessera.telemetry.telemetry import Telemetry
from tests.builders import (
    a_pod,
    a_service,
    a_snapshot,
    a_speed_reading,
    a_workload,
    at,
    plan_of,
    readings_of,
)

PODS = (a_pod("chat-0"), a_pod("chat-1"))
CHAT = Ref("team-a", "chat")


def outcome(*readings: SpeedReading, when: float = 0) -> ReconcileOutcome:
    observed_readings = readings_of(PODS, speeds={CHAT: readings}, speeds_at=at(when))
    snapshot = a_snapshot(
        a_service(), pods=PODS, workloads=(a_workload(2),), readings=observed_readings
    )
    return ReconcileOutcome(
        snapshot=snapshot, plan=plan_of(snapshot), bill=Bill(), problems={}, writes=0, cpu_seconds=0
    )


def scrape(telemetry: Telemetry) -> dict[str, float]:
    """Return the values of the service's speeds by `metric` or `metric kind`."""
    values = {}
    for family in text_string_to_metric_families(telemetry.exposition().decode()):
        for sample in family.samples:
            name = sample.name.removeprefix("tessera_service_")
            values[f"{name} {sample.labels.get('kind', '')}".strip()] = sample.value
    return values


def test_a_service_whose_speed_raises_has_no_series_and_the_page_has_all_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(*_: object) -> None:
        raise OverflowError("cannot convert float infinity to integer")

    monkeypatch.setattr(speed, "observed_speed", fail)
    telemetry = Telemetry()
    telemetry.record_reconcile(outcome(a_speed_reading()), 0.1)
    values = scrape(telemetry)
    assert values["desired_replicas"] == 2
    assert not any(name.startswith("output_tokens") for name in values)


def test_both_speeds_prices_and_caches_are_exported_side_by_side() -> None:
    telemetry = Telemetry()
    measured = a_speed_reading(
        tokens_per_second=360.0, flops_per_second=4.0444e12, median_itl_seconds=0.015
    )
    telemetry.record_reconcile(outcome(measured), 0.1)
    values = scrape(telemetry)
    assert values["output_tokens_per_second measured"] == 360
    assert values["output_tokens_per_second predicted"] > 360
    assert values["itl_seconds measured"] == 0.012
    assert 0 < values["itl_seconds predicted"] < 0.033
    assert values["itl_median_seconds measured"] == 0.015
    assert (
        values["cost_per_million_tokens measured"] > values["cost_per_million_tokens predicted"] > 0
    )
    assert round(values["mfu"], 2) == 0.1
    assert values["kv_cache_usage_ratio"] == 0.02
    assert values["kv_cache_tokens measured"] == 120_000
    assert (
        values["kv_cache_tokens_error_ratio"] == 120_000 / values["kv_cache_tokens predicted"] - 1
    )
    assert 0 < values["peak_bytes_per_second"] < values["peak_flops"]


def test_without_readings_only_predictions_are_exported() -> None:
    telemetry = Telemetry()
    telemetry.record_reconcile(outcome(), 0.1)
    values = scrape(telemetry)
    assert "output_tokens_per_second predicted" in values
    assert "peak_flops" in values
    assert not any(name.endswith(" measured") for name in values)
    assert "mfu" not in values


def test_a_later_reading_is_exported_though_nothing_is_decided_by_it() -> None:
    telemetry = Telemetry()
    telemetry.record_reconcile(outcome(a_speed_reading(tokens_per_second=100.0)), 0.1)
    assert scrape(telemetry)["output_tokens_per_second measured"] == 100
    telemetry.record_reconcile(outcome(a_speed_reading(tokens_per_second=101.0), when=30), 0.1)
    assert scrape(telemetry)["output_tokens_per_second measured"] == 101


def test_before_the_first_cycle_nothing_is_exported_of_services() -> None:
    assert not any(name.startswith("mfu") for name in scrape(Telemetry()))
