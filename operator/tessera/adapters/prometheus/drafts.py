"""The Prometheus query for drafted tokens by temperature, as commands read them from gateways."""

from collections import defaultdict
from collections.abc import Mapping, Sequence

from tessera.adapters.prometheus.queries import (
    BoundedQuery,
    Bounds,
    Queries,
    each_gateway,
)
from tessera.adapters.prometheus.rows import QueryRow, gateway_key, sample_value
from tessera.domain.observed.drafts import DraftCounts, TemperatureClass
from tessera.domain.observed.snapshot import Ref

_COUNTS = ("drafts", "drafted_tokens", "accepted_tokens")
_LABELS = ("tenant", "service", "temperature")
_BOUNDS = Bounds(("service", "temperature"), 1e12)


def draft_queries(target: str) -> Queries:
    """Return the queries; `target` selects the series of gateways and none of tenants."""
    return {
        name: BoundedQuery(
            f"sum by (service, temperature) ({each_gateway(series, target, *_LABELS)})", _BOUNDS
        )
        for name in _COUNTS
        for series in (f"increase(tessera_gateway_speculation_{name}_total{{%s}}[10m])",)
    }


def drafts_of(
    rows_by_query: Mapping[str, Sequence[QueryRow]],
) -> Mapping[Ref, tuple[DraftCounts, ...]]:
    """Return what was drafted for each service, in the order of the temperature classes."""
    counts: dict[Ref, dict[str, dict[str, int]]] = defaultdict(lambda: defaultdict(dict))
    for name in _COUNTS:
        for row in rows_by_query.get(name, ()):
            by_temperature = counts[gateway_key(row)]
            by_temperature[row["metric"]["temperature"]][name] = round(sample_value(row))
    return {
        service: tuple(
            DraftCounts(temperature=temperature, **by_temperature[temperature])
            for temperature in TemperatureClass
            if len(by_temperature[temperature]) == len(_COUNTS)
        )
        for service, by_temperature in sorted(counts.items())
        if service.name
    }
