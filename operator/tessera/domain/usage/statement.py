"""Statements: what requests were charged, summed over hours of UTC."""

import hashlib
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from typing import Annotated

from pydantic import Field

from tessera.api.meta import Wire
from tessera.domain.charge.scopes import OTHER_MONTH, is_outside
from tessera.domain.gateway.reasons import RequestReason
from tessera.domain.gateway.usage_record import HASHED, RecordDimension, UsageRecord

HOUR_SECONDS = 3600
# A month that ended so long ago never changes.
CLOSING_SECONDS = 24 * HOUR_SECONDS
# Sums of a month that ended so long ago, 13 months of 31 days, are deleted.
_RETENTION_SECONDS = 403 * 24 * HOUR_SECONDS
# Of one tenant in a month; the charges of the others are one row.
MAX_TAGS = 64
# The class of what engines computed for requests of all tenants and no sender pays: rows of the
# services' owner, which only statements by class have.
WASTE = "Waste"
# What records of corrections begin with, and the gateway that makes them by their ids.
CORRECTIONS = "correction"
MAX_CORRECTION = 2**53
# What the record of a correction has of the corrected one.
_CORRECTED = ("request_id", "path", "phase", "status", "tags", *HASHED)


class ChargeFlag(StrEnum):
    """Why a row of a statement is not simply what requests of its time were charged."""

    CORRECTION = "Correction"
    """A person wrote it."""
    LATE = "Late"
    """It is of a month that was closed before."""
    KILLED = "Killed"
    """As far as a gateway knew that was killed."""
    RESERVED = "Reserved"
    """What a gateway had reserved whose volume was lost with its records."""
    RESTORED = "Restored"
    """What requests were charged whose records are lost: the store is of an older backup."""


# Their hours are not those in which requests were charged.
OTHER_WINDOWS = tuple(flag for flag in ChargeFlag if flag is not ChargeFlag.KILLED)


@dataclass(frozen=True, slots=True, kw_only=True)
class ChargeQuery:
    """Which hours are summed, and by what; Unix seconds of whole hours."""

    by: tuple[RecordDimension, ...]
    since: int
    until: int
    tenant: str | None = None
    """Only this tenant's; None for all."""
    limit: int = 10_000
    """Rows at most, those with the largest charges and bills of providers first."""


class ChargeCorrection(Wire):
    """What a person adds to the charge of a request, or takes off it; what providers bill stays."""

    id: Annotated[str, Field(min_length=1, max_length=512)]
    """Of the record, `recordId` of the access log."""
    amount_nanos: Annotated[int, Field(ge=-MAX_CORRECTION, le=MAX_CORRECTION)]
    """Below 0 it is taken off."""
    reason: Annotated[str, Field(min_length=1, max_length=256)]


class ChargeRow(Wire):
    """The requests of one group in one currency, and what they were charged."""

    group: tuple[str | None, ...]
    """One value for each dimension of the query; None where requests have none."""
    currency: str | None
    """None where no price was known."""
    requests: int
    input_tokens: int
    cached_tokens: int
    """Part of the input tokens."""
    output_tokens: int
    reasoning_tokens: int
    """Part of the output tokens."""
    charge_nanos: int
    cost_nanos: int
    """What providers bill."""


@dataclass(frozen=True, slots=True)
class ChargeReport:
    """The answer to a query."""

    rows: tuple[ChargeRow, ...]
    is_truncated: bool
    """There are more groups than the query's limit."""
    closed_until: int
    """Unix seconds before which no row changes any more."""


def month_of(seconds: float) -> int:
    """Return when the month of UTC of a moment began; both in Unix seconds."""
    first = datetime.fromtimestamp(seconds, UTC).replace(
        day=1, hour=0, minute=0, second=0, microsecond=0
    )
    return int(first.timestamp())


def closed_month(now: float) -> int:
    """Return the end of the last month that is to be closed, in Unix seconds."""
    return month_of(now - CLOSING_SECONDS)


def retained_since(now: float) -> int:
    """Return the start of the first month of which the sums stay, in Unix seconds."""
    return month_of(now - _RETENTION_SECONDS)


def hour_of(started_at: int, now: float, closed_until: int) -> tuple[int, bool]:
    """Return the hour in which a request counts, and whether it came late: Unix seconds.

    A clock ahead of the database's makes no hour of the future.
    """
    present = int(now) // HOUR_SECONDS * HOUR_SECONDS
    hour = min(started_at // HOUR_SECONDS * HOUR_SECONDS, present)
    return (present, True) if hour < closed_until else (hour, False)


def flag_of(gateway: str, reason: str, *, is_late: bool) -> ChargeFlag | None:
    """Return the flag of the row in which a record counts."""
    if gateway == CORRECTIONS:
        return ChargeFlag.CORRECTION
    if is_late:
        return ChargeFlag.LATE
    return ChargeFlag.KILLED if reason == RequestReason.GATEWAY_KILLED else None


def corrected(record: UsageRecord, correction: ChargeCorrection, now_ns: int) -> UsageRecord:
    """Return the record of a correction, which counts in the month of `now_ns`.

    The same correction of a record has the same id. What is taken off may be spent again in the
    last windows that paid for it, while these are open.
    """
    digest = hashlib.sha256(correction.model_dump_json().encode()).hexdigest()[:16]
    windows = {
        scope: start
        for scope, start, _ in sorted(record.charges)
        if scope != OTHER_MONTH and not is_outside(scope)
    }
    corrected_fields = {name: getattr(record, name) for name in _CORRECTED}
    return UsageRecord(
        record_id=f"{CORRECTIONS}-{digest}",
        started_at_ns=now_ns,
        reason=correction.reason,
        total_ns=0,
        requests=0,
        charge_nanos=correction.amount_nanos,
        charges=tuple((scope, start, correction.amount_nanos) for scope, start in windows.items()),
        **corrected_fields,
    )
