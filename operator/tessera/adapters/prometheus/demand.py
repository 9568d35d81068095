"""The Prometheus query for the requests at gateways, as commands read them.

The operator has the reports of gateways themselves, each second.
"""

from collections.abc import Mapping, Sequence

from tessera.adapters.prometheus.queries import union_query
from tessera.adapters.prometheus.rows import Bounds, QueryRow
from tessera.domain.observed.demand import GatewayDemand
from tessera.domain.observed.snapshot import Ref

_RATE_SECONDS = 60
_LABELS = ("service",)
DEMAND_BOUNDS = {
    "reporting": Bounds((), 1e6),
    "queued": Bounds(_LABELS, 1e6),
    "in_flight": Bounds(_LABELS, 1e6),
    "before": Bounds(_LABELS, 1e6),
    "ended": Bounds(_LABELS, 1e6),
}


def demand_query(target: str) -> str:
    """Return the query; `target` selects the series of gateways and none of tenants."""
    present = 'tessera_gateway_requests_queued|tessera_gateway_requests_in_flight"'
    return union_query(
        {
            "reporting": f"count(tessera_gateway_demand_failing_seconds{{{target}}} == 0)",
            "queued": f"sum by (service) (tessera_gateway_requests_queued{{{target}}})",
            "in_flight": f"sum by (service) (tessera_gateway_requests_in_flight{{{target}}})",
            "before": f'sum by (service) ({{__name__=~"{present},{target}}} '
            f"offset {_RATE_SECONDS}s)",
            "ended": "sum by (service) "
            f"(rate(tessera_gateway_requests_total{{{target}}}[{_RATE_SECONDS}s]))",
        }
    )


def demand_of(
    rows_by_query: Mapping[str, Sequence[QueryRow]],
) -> Mapping[Ref, GatewayDemand] | None:
    """Return the requests of each service; None while the operator takes reports of no gateway.

    Arrivals are what ended, and what there is more than a minute ago.
    """
    if not rows_by_query["reporting"]:
        return None
    queued, in_flight, before, ended = (
        {row["metric"]["service"]: float(row["value"][1]) for row in rows_by_query[name]}
        for name in ("queued", "in_flight", "before", "ended")
    )
    demand = {}
    for service in queued.keys() | in_flight.keys():
        namespace, _, name = service.partition("/")
        present = queued.get(service, 0.0) + in_flight.get(service, 0.0)
        growth = (present - before.get(service, 0.0)) / _RATE_SECONDS
        demand[Ref(namespace, name)] = GatewayDemand(
            queued=round(queued.get(service, 0.0)),
            in_flight=round(in_flight.get(service, 0.0)),
            arrivals_per_second=max(0.0, ended.get(service, 0.0) + growth),
        )
    return demand
