"""What a gateway sends to the operator each second: the requests that wait and run."""

from typing import Annotated, Any

from pydantic import Field, StringConstraints, ValidationError

from tessera.api.meta import DnsLabel, Wire

# Audience of the ServiceAccount tokens that the operator takes; they open nothing else.
DEMAND_AUDIENCE = "tessera-operator"
DEMAND_PATH = "/demand"
MAX_REPORT_BYTES = 1024 * 1024
_MAX_SERVICES = 5000
_MAX_FAULT_LENGTH = 200
_GatewayName = Annotated[str, StringConstraints(pattern=r"^[-a-z0-9.]{1,253}$")]
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

    gateway: _GatewayName
    """Name of the gateway's pod."""

    services: Annotated[tuple[ReportedDemand, ...], Field(max_length=_MAX_SERVICES)] = ()
    """Services with requests."""


class _UnreadReport(Wire):
    """A report whose rows are not judged yet."""

    gateway: _GatewayName
    services: Annotated[tuple[Any, ...], Field(max_length=_MAX_SERVICES)] = ()


def read_report(body: bytes) -> tuple[DemandReport, tuple[str, ...]]:
    """Return a report without its invalid rows, and what is wrong with each of these.

    Raises ValidationError where the whole is no report.
    """
    unread = _UnreadReport.model_validate_json(body)
    rows, faults = [], []
    for row in unread.services:
        try:
            rows.append(ReportedDemand.model_validate(row))
        except ValidationError as error:
            faults.append(fault_of(error))
    return DemandReport(gateway=unread.gateway, services=tuple(rows)), tuple(faults)


def fault_of(error: ValidationError) -> str:
    """Return the first fault in a few words, without the value that has it."""
    fault = error.errors(include_input=False, include_url=False)[0]
    return f"{fault['loc']}: {fault['msg']}"[:_MAX_FAULT_LENGTH]
