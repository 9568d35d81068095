"""Responses of Prometheus about drafted tokens become counts by temperature; no server runs."""

from typing import Any

from tessera.adapters.prometheus.drafts import draft_queries, drafts_of
from tessera.domain.observed.drafts import DraftCounts, TemperatureClass
from tessera.domain.observed.snapshot import Ref
from tessera.gateway.usage.metrics import GatewayMetrics
from tests.gateway.store.builders import a_record
from tests.gateway.usage.test_metrics import PAIR, value


def row(count: float, service: str = "team-a/chat", temperature: str = "Greedy") -> dict[str, Any]:
    return {"metric": {"service": service, "temperature": temperature}, "value": [0, str(count)]}


def test_each_temperature_of_a_service_has_its_counts() -> None:
    counted = drafts_of(
        {
            "drafts": [row(99.6), row(50, temperature="High"), row(1, "(other)")],
            "drafted_tokens": [row(800), row(400, temperature="High"), row(1, "(other)")],
            "accepted_tokens": [row(700), row(8, temperature="High"), row(1, "(other)")],
        }
    )
    greedy, high = TemperatureClass.GREEDY, TemperatureClass.HIGH
    assert counted == {
        Ref("team-a", "chat"): (
            DraftCounts(temperature=greedy, drafts=100, drafted_tokens=800, accepted_tokens=700),
            DraftCounts(temperature=high, drafts=50, drafted_tokens=400, accepted_tokens=8),
        )
    }


def test_temperatures_that_are_not_known_and_half_a_count_are_left_out() -> None:
    half = {"drafts": [row(1)], "drafted_tokens": [row(8), row(8, temperature="Warm")]}
    assert drafts_of(half) == {Ref("team-a", "chat"): ()}


def test_the_queries_read_what_gateways_count() -> None:
    gateway = GatewayMetrics()
    drafts = DraftCounts(
        temperature=TemperatureClass.LOW, drafts=3, drafted_tokens=9, accepted_tokens=4
    )
    gateway.requests.observe(a_record(drafts=drafts))
    gateway.requests.observe(a_record(drafts=drafts))
    seen = {
        name: value(gateway, f"speculation_{name}_total", **PAIR, temperature="Low")
        for name in draft_queries("")
    }
    assert seen == {"drafts": 6, "drafted_tokens": 18, "accepted_tokens": 8}
    assert all(
        f"tessera_gateway_speculation_{name}_total" in query.text
        for name, query in draft_queries("").items()
    )
