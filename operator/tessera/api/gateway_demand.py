"""What a gateway sends to the operator each second: requests, and what limits were charged."""

from collections.abc import Iterable
from typing import Annotated, Any, TypeVar

from pydantic import Field, StringConstraints, ValidationError

from tessera.api.meta import DnsLabel, DnsSubdomain, Wire
from tessera.api.text import counted

# Audience of the ServiceAccount tokens that the operator takes; they open nothing else.
DEMAND_AUDIENCE = "tessera-operator"
DEMAND_PATH = "/demand"
MAX_REPORT_BYTES = 1024 * 1024
# Of one part of a report: the longest rows fit into its bytes.
PART_SERVICES = 2200
# Of one gateway, in all parts: what exceeds them is left out, and the rest counts.
MAX_REPORT_SERVICES = 24_000
TOO_MANY_SERVICES = f"more than {counted(MAX_REPORT_SERVICES, 'service')}"
# The same of limits, whose rows may have 2 kB each.
PART_LIMITS = 400
MAX_REPORT_LIMITS = 8 * PART_LIMITS
TOO_MANY_LIMITS = f"more than {counted(MAX_REPORT_LIMITS, 'limit')}"
_MAX_FAULT_LENGTH = 200
_GatewayName = Annotated[str, StringConstraints(pattern=r"^[-a-z0-9.]{1,253}$")]
_Count = Annotated[int, Field(ge=0, le=1_000_000)]
_Tokens = Annotated[int, Field(ge=0, le=10**12)]


class ReportedDemand(Wire):
    """Requests of one InferenceService at one gateway."""

    namespace: DnsLabel
    """Namespace of the service."""

    name: DnsLabel
    """Name of the service."""

    arrived: _Count = 0
    """Requests that came since the report before."""

    sized: _Count = 0
    """Those of them whose lengths the gateway expects by their clients' earlier ones."""

    prompt_tokens: _Tokens = 0
    """Expected tokens of the prompts of these requests."""

    answer_tokens: _Tokens = 0
    """Expected tokens of their answers."""

    squares: Annotated[int, Field(ge=0, le=10**18)] = 0
    """Sum of the squares of the expected tokens of each of their prompts."""

    waited: _Count = 0
    """Requests that began to wait for a place since then, and that no other target may answer."""

    overflowed: _Count = 0
    """Requests that another target of their route got, since there was no place here in time."""

    overflow_nanos: Annotated[int, Field(ge=0, le=10**18)] = 0
    """What these probably cost there, in nano-units of the currency of the service."""

    routed: _Count = 0
    """Requests that came since then, and that another target of their route may answer."""

    late_alone: _Count = 0
    """Requests with known lengths that came since then, and whose prompts the fastest engine reads
    for longer than `spec.slo.ttftP95`."""

    queued: _Count = 0
    """Requests that wait, for a replica or for their turn."""

    in_flight: _Count = 0
    """Requests in engines."""

    predicted_seconds: Annotated[float, Field(ge=0, le=1e9, allow_inf_nan=False)] = 0.0
    """Predicted time that an engine needs for all that waits or runs."""


_Nanos = Annotated[int, Field(ge=0, le=10**30)]


class ReportedAccount(Wire):
    """What requests were charged in one account of a limit, in nano-units."""

    member: Annotated[str, StringConstraints(max_length=255)] = ""
    """The one whose account it is; empty where the limit has one account."""

    settled: _Nanos = 0
    """Charges of all gateways in the window."""

    lent: _Nanos = 0
    """What gateways hold above it."""

    need: _Nanos = 0
    """The least that a request needed lately; of what is lent for outside providers, that of
    those that were refused."""

    generation: Annotated[int, Field(ge=0)] = 0
    """Newest of what is lent for outside providers that the account has, where that is asked."""


class ReportedLimit(Wire):
    """One window of a limit of basis Charge, as far as a gateway knows its accounts."""

    budget: DnsSubdomain
    """Name of the TenantBudget."""

    limit: Annotated[str, StringConstraints(min_length=1, max_length=320)]
    """Name of the limit."""

    start: Annotated[int, Field(ge=0, le=10**11)]
    """Start of the window in Unix seconds."""

    members: _Count = 0
    """Accounts that the gateway knows, of a limit that each member has for itself."""

    accounts: Annotated[tuple[ReportedAccount, ...], Field(max_length=5)] = ()
    """Those nearest to their end."""


class DemandReport(Wire):
    """Report of one gateway. A service that it does not name has no requests there."""

    gateway: _GatewayName
    """Name of the gateway's pod."""

    more_follows: bool = False
    """It is a part of a report that counts once its last part comes. An operator that knows no
    parts refuses it, and takes the last one, which has no such field."""

    services: Annotated[tuple[ReportedDemand, ...], Field(max_length=MAX_REPORT_SERVICES)] = ()
    """Services with requests."""

    limits: Annotated[tuple[ReportedLimit, ...], Field(max_length=MAX_REPORT_LIMITS)] = ()
    """Limits of basis Charge that requests used. They come in parts without services, which an
    operator that does not know them refuses alone."""


class _UnreadReport(Wire):
    """A report whose rows are not judged yet."""

    gateway: _GatewayName
    more_follows: bool = False
    services: tuple[Any, ...] = ()
    limits: tuple[Any, ...] = ()


def read_report(body: bytes) -> tuple[DemandReport, tuple[str, ...]]:
    """Return a report without its invalid rows, and what is wrong with each of these.

    Raises ValidationError where the whole is no report.
    """
    unread = _UnreadReport.model_validate_json(body)
    faults = [TOO_MANY_SERVICES] * (len(unread.services) - MAX_REPORT_SERVICES)
    faults += [TOO_MANY_LIMITS] * (len(unread.limits) - MAX_REPORT_LIMITS)
    services = _valid(ReportedDemand, unread.services[:MAX_REPORT_SERVICES], faults)
    limits = _valid(ReportedLimit, unread.limits[:MAX_REPORT_LIMITS], faults)
    # Each row is validated already.
    report = DemandReport.model_construct(
        gateway=unread.gateway,
        more_follows=unread.more_follows,
        services=services,
        limits=limits,
    )
    return report, tuple(faults)


_Row = TypeVar("_Row", bound=Wire)


def _valid(kind: type[_Row], unread: Iterable[Any], faults: list[str]) -> tuple[_Row, ...]:
    """Return the valid rows; what is wrong with others is added to the faults."""
    rows = []
    for row in unread:
        try:
            rows.append(kind.model_validate(row))
        except ValidationError as error:
            faults.append(fault_of(error))
    return tuple(rows)


def fault_of(error: ValidationError) -> str:
    """Return the first fault in a few words, without the value that has it."""
    fault = error.errors(include_input=False, include_url=False)[0]
    return f"{fault['loc']}: {fault['msg']}"[:_MAX_FAULT_LENGTH]
