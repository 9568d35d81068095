"""What a gateway sends to the operator each second: the requests that wait and run."""

from typing import Annotated

from pydantic import Field, StringConstraints

from tessera.api.meta import DnsLabel, Wire

# Audience of the ServiceAccount tokens that the operator takes; they open nothing else.
DEMAND_AUDIENCE = "tessera-operator"
DEMAND_PATH = "/demand"
MAX_REPORT_BYTES = 1024 * 1024
_Count = Annotated[int, Field(ge=0, le=1_000_000)]


class ReportedDemand(Wire):
    """Requests of one InferenceService at one gateway."""

    namespace: DnsLabel
    """Namespace of the service."""

    name: DnsLabel
    """Name of the service."""

    arrived: _Count = 0
    """Requests that came since the report before."""

    queued: _Count = 0
    """Requests that wait, for a replica or for their turn."""

    in_flight: _Count = 0
    """Requests in engines."""

    predicted_seconds: Annotated[float, Field(ge=0, le=1e9, allow_inf_nan=False)] = 0.0
    """Predicted time that an engine needs for all that waits or runs."""


class DemandReport(Wire):
    """Report of one gateway. A service that it does not name has no requests there."""

    gateway: Annotated[str, StringConstraints(pattern=r"^[-a-z0-9.]{1,253}$")]
    """Name of the gateway's pod."""

    services: Annotated[tuple[ReportedDemand, ...], Field(max_length=5000)] = ()
    """Services with requests."""
