"""The Prometheus query for what routes did in the last hour, by the counters of gateways."""

from collections import defaultdict
from collections.abc import Mapping, Sequence

from tessera.adapters.prometheus.queries import (
    BoundedQuery,
    Bounds,
    Queries,
    each_gateway,
)
from tessera.adapters.prometheus.rows import QueryRow, sample_value
from tessera.domain.routes.reasons import RouteReason
from tessera.domain.routes.savings import RouteUse

SPAN = "1h"
_TARGET = ("route", "target")
_COUNTERS = {
    "requests": ("requests", "reason", 1e12),
    "tokens": ("tokens", "currency", 1e15),
    "charges": ("charge_nanos", "currency", 1e18),
    "at_last": ("last_target_nanos", "currency", 1e18),
    "failed": ("failed_nanos", "currency", 1e18),
}


def route_queries(target: str) -> Queries:
    """Return the queries; `target` selects the series of gateways and none of tenants."""
    return {
        name: BoundedQuery(
            f"sum by ({', '.join(_TARGET)}, {label}) "
            f"({each_gateway(series, target, 'tenant', *_TARGET, label)})",
            Bounds((*_TARGET, label), high),
        )
        for name, (counter, label, high) in _COUNTERS.items()
        for series in (f"increase(tessera_gateway_route_{counter}_total{{%s}}[{SPAN}])",)
    }


def routes_of(
    rows_by_query: Mapping[str, Sequence[QueryRow]],
) -> Mapping[str, tuple[RouteUse, ...]]:
    """Return what each route did, by namespace and name: one for each currency, at least one."""
    requests = defaultdict[str, defaultdict[str, float]](lambda: defaultdict(float))
    fallbacks = defaultdict[str, float](float)
    money = defaultdict[tuple[str, str], dict[str, dict[str, float]]](lambda: defaultdict(dict))
    for name, rows in rows_by_query.items():
        for row in rows:
            labels, value = row["metric"], sample_value(row)
            route, target = labels["route"], labels["target"]
            if name == "requests":
                requests[route][target] += value
                fallbacks[route] += value * (labels["reason"] == RouteReason.FALLBACK)
            else:
                money[route, labels["currency"]][name][target] = value
    currencies = {route: [key[1] for key in sorted(money) if key[0] == route] for route in requests}
    return {
        route: tuple(
            RouteUse(
                requests=requests[route],
                fallbacks=fallbacks[route],
                currency=currency,
                tokens=(figures := money[route, currency or ""])["tokens"],
                charges=figures["charges"],
                at_last=sum(figures["at_last"].values()),
                failed=sum(figures["failed"].values()),
            )
            for currency in currencies[route] or (None,)
        )
        for route in sorted(requests)
    }
