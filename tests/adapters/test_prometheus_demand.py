"""Responses of Prometheus about gateways become the requests of each service; no server runs."""

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from tessera.adapters.prometheus.demand import demand_of, demand_queries
from tessera.adapters.prometheus.queries import union_query
from tessera.adapters.prometheus.rows import QueryRow
from tessera.domain.observed.demand import GatewayDemand
from tessera.domain.observed.snapshot import Ref


def rows(**values: dict[str, float]) -> dict[str, Sequence[QueryRow]]:
    by_query: dict[str, Any] = defaultdict(list)
    for name, by_service in values.items():
        by_query[name] = [
            {"metric": {"service": service}, "value": (0.0, value)}
            for service, value in by_service.items()
        ]
    return by_query


def test_arrivals_are_what_ended_and_what_became_more() -> None:
    demand = demand_of(
        rows(
            reporting={"": 1},
            queued={"team-a/chat": 61, "team-a/code": 0},
            in_flight={"team-a/chat": 44, "team-a/code": 3},
            before={"team-a/chat": 45, "team-a/code": 63},
            ended={"team-a/chat": 4.0, "team-a/code": 0.5, "team-a/idle": 2.0, "(other)": 9.0},
        )
    )
    assert demand == {
        Ref("team-a", "chat"): GatewayDemand(queued=61, in_flight=44, arrivals_per_second=5.0),
        Ref("team-a", "code"): GatewayDemand(queued=0, in_flight=3, arrivals_per_second=0.0),
        Ref("team-a", "idle"): GatewayDemand(arrivals_per_second=2.0),
    }


def test_gateways_that_do_not_reach_the_operator_count_for_nothing() -> None:
    assert demand_of(rows(queued={"team-a/chat": 61})) is None
    assert demand_of(rows(reporting={"": 2})) == {}


def test_the_query_reads_the_series_of_gateways_alone() -> None:
    target = 'namespace="tessera-system"'
    query = union_query(demand_queries(target))
    # Of a pod that has a label, and of one that has none.
    assert query.count(target) == query.count('pod!=""') + query.count('pod=""') + 1 == 9
