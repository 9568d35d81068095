"""The Prometheus query for the requests at gateways, as commands read them.

The operator has the reports of gateways themselves, each second.
"""

from collections.abc import Mapping, Sequence

from tessera.adapters.prometheus.queries import (
    GATEWAY_LABELS,
    BoundedQuery,
    Bounds,
    Queries,
    each_gateway,
)
from tessera.adapters.prometheus.rows import QueryRow, gateway_key, values_by
from tessera.domain.observed.demand import GatewayDemand
from tessera.domain.observed.snapshot import Ref

_RATE_SECONDS = 60
_BOUNDS = Bounds(GATEWAY_LABELS, 1e6)


def demand_queries(target: str) -> Queries:
    """Return the queries; `target` selects the series of gateways and none of tenants."""
    queued, in_flight = "tessera_gateway_requests_queued", "tessera_gateway_requests_in_flight"
    present = f'{{__name__=~"{queued}|{in_flight}",%s}}'
    ended = f"rate(tessera_gateway_requests_total{{%s}}[{_RATE_SECONDS}s])"
    sums = {
        "queued": each_gateway(f"{queued}{{%s}}", target, "service"),
        "in_flight": each_gateway(f"{in_flight}{{%s}}", target, "service"),
        "before": each_gateway(f"{present} offset {_RATE_SECONDS}s", target, "__name__", "service"),
        "ended": each_gateway(ended, target, "tenant", "service", "code", "reason"),
    }
    reporting = f"max(tessera_gateway_demand_failing_seconds{{{target}}} == 0)"
    return {"reporting": BoundedQuery(reporting, Bounds((), 1e6))} | {
        name: BoundedQuery(f"sum by (service) ({series})", _BOUNDS) for name, series in sums.items()
    }


def demand_of(
    rows_by_query: Mapping[str, Sequence[QueryRow]],
) -> Mapping[Ref, GatewayDemand] | None:
    """Return the requests of each service; None while the operator takes reports of no gateway.

    Arrivals are what ended, and what there is more than a minute ago.
    """
    if not rows_by_query["reporting"]:
        return None
    queued, in_flight, before, ended = (
        values_by(rows_by_query[name], gateway_key)
        for name in ("queued", "in_flight", "before", "ended")
    )
    demand = {}
    # Gateways show no load of a service that has no request at that moment.
    for service in queued.keys() | in_flight.keys() | ended.keys():
        if not service.name:
            # What has no series of its own has no service.
            continue
        present = queued.get(service, 0.0) + in_flight.get(service, 0.0)
        growth = (present - before.get(service, 0.0)) / _RATE_SECONDS
        demand[service] = GatewayDemand(
            queued=round(queued.get(service, 0.0)),
            in_flight=round(in_flight.get(service, 0.0)),
            arrivals_per_second=max(0.0, ended.get(service, 0.0) + growth),
        )
    return demand
