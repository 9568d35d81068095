"""What gateways report of the requests that wait for a service or are in its engines."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from tessera.api.ref import Ref

# Gateways report each second; after this silence what one said is not known any more.
MAX_REPORT_AGE = timedelta(seconds=5)


@dataclass(frozen=True, slots=True, kw_only=True)
class GatewayDemand:
    """The requests of one service."""

    arrived: int = 0
    """Since the report before."""
    queued: int = 0
    """Waiting at the gateway, for a replica or for their turn."""
    in_flight: int = 0
    """In engines."""
    predicted_seconds: float = 0.0
    """Predicted time that an engine needs for all of them."""


NO_DEMAND = GatewayDemand()


@dataclass(frozen=True, slots=True, kw_only=True)
class GatewayReport:
    """The last report of one gateway."""

    at: datetime
    """When it was received."""
    demand: Mapping[Ref, GatewayDemand] = field(default_factory=dict)
    """Of every service that it offers; a service without requests may be absent."""


def fleet_demand(
    reports: Iterable[GatewayReport], at: datetime
) -> Mapping[Ref, GatewayDemand] | None:
    """Return the sum of the reports by service; None while no gateway reports."""
    current = [report for report in reports if abs(at - report.at) <= MAX_REPORT_AGE]
    if not current:
        return None
    total: dict[Ref, GatewayDemand] = {}
    for report in current:
        for ref, demand in report.demand.items():
            total[ref] = _sum(total.get(ref, NO_DEMAND), demand)
    return total


def _sum(first: GatewayDemand, second: GatewayDemand) -> GatewayDemand:
    return GatewayDemand(
        arrived=first.arrived + second.arrived,
        queued=first.queued + second.queued,
        in_flight=first.in_flight + second.in_flight,
        predicted_seconds=first.predicted_seconds + second.predicted_seconds,
    )
