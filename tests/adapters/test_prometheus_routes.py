"""Responses of Prometheus about routes become what they answered and saved; no server runs."""

from typing import Any

import pytest

from tessera.adapters.prometheus.routes import route_queries, routes_of
from tessera.gateway.usage.metrics import GatewayMetrics

ASSISTANT = "team-a/assistant"


def row(value: float, target: str, **labels: str) -> dict[str, Any]:
    labels = {"route": ASSISTANT, "target": target, **labels}
    return {"metric": labels, "value": [0, str(value)]}


def test_a_route_has_its_shares_and_its_saving_in_each_currency() -> None:
    dollars, euros = {"currency": "USD"}, {"currency": "EUR"}
    charges = [row(6e9, "small", **dollars), row(4e9, "large", **dollars), row(1, "large", **euros)]
    euro, dollar = routes_of(
        {
            "requests": [
                row(60, "small", reason="RuleMatched"),
                row(30, "large", reason="LastTarget"),
                row(10, "large", reason="Fallback"),
            ],
            "tokens": [row(30e6, "small", **dollars), row(5e6, "large", **dollars)],
            "charges": charges,
            "at_last": [row(24e9, "small", **dollars), row(4e9, "large", **dollars)],
            "failed": [row(2e9, "small", **dollars)],
        }
    )[ASSISTANT]
    assert (dollar.currency, dollar.share_of("small"), dollar.fallbacks) == ("USD", 0.6, 10)
    assert [dollar.price_of(name) for name in ("small", "large")] == pytest.approx([0.2, 0.8])
    assert dollar.per_million == pytest.approx(12 / 35)
    assert dollar.last_per_million == pytest.approx(0.8)
    assert dollar.cost_of_saving == pytest.approx(2 / 18)
    assert dollar.saved == pytest.approx(1 - 12 / 28)
    assert (euro.currency, euro.saved, euro.per_million) == ("EUR", None, None)
    assert euro.cost_of_saving is None


def test_a_route_without_prices_has_its_shares_alone() -> None:
    (use,) = routes_of({"requests": [row(3, "small", reason="Weighted")]})[ASSISTANT]
    assert (use.currency, use.share_of("small"), use.share_of("large")) == (None, 1.0, 0.0)
    assert (use.per_million, use.last_per_million, use.saved) == (None, None, None)
    assert routes_of({"charges": [row(3, "small", currency="USD")]}) == {}


def test_the_queries_read_what_gateways_count() -> None:
    families = {family.name: family for family in GatewayMetrics().families()}
    for query in route_queries('namespace="tessera-system"').values():
        name = query.text.partition("increase(")[2].partition("_total{")[0]
        assert families[name].type == "counter"
        assert 'namespace="tessera-system"' in query.text
