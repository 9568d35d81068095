"""What requests were charged: beside the cost of the nodes, or alone."""

import hashlib
import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any, TypeAlias

from tessera.api.text import counted
from tessera.cli.output import Output
from tessera.cli.text import column_head, format_time, table
from tessera.domain.money import Money
from tessera.domain.usage.statement import CLOSING_SECONDS, WASTE

NO_BUDGET = "(no budget)"
# Words for the groupings of cost: a service's charges are those of all requests to it.
_QUERIES = {"service": "service", "tenant": "owner", "tenant,service": "owner,service"}
_COUNTS = ("requests", "inputTokens", "cachedTokens", "outputTokens", "reasoningTokens")
_TABLE_DIGITS, _FULL_DIGITS = 4, 9
_HOUR = timedelta(hours=1)

# Returns the answer of a gateway to a path and a query; raises CommandError.
ReadGateway: TypeAlias = Callable[[str, Mapping[str, str]], Mapping[str, Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class ChargeTable:
    """The answer of a gateway, with the question."""

    by: tuple[str, ...]
    since: datetime
    until: datetime
    rows: Sequence[Mapping[str, Any]]
    """With `chargeNanos` and `currency`, which is None where no price was known."""
    is_truncated: bool = False
    closed_until: datetime | None = None
    """Before it no row changes any more."""
    is_month: bool = False
    """One whole month is asked for."""

    @property
    def digest(self) -> str | None:
        """Return the SHA-256 of all rows of a closed month; None where they may change."""
        is_closed = self.closed_until is not None and self.until <= self.closed_until
        if not self.is_month or not is_closed or self.is_truncated:
            return None
        lines = sorted(json.dumps(row, sort_keys=True) for row in self.rows)
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()


@dataclass(frozen=True, slots=True, kw_only=True)
class MarginRow:
    """Cost and charge of one service or tenant in one currency, in nano-units; never added."""

    name: str
    currency: str
    cost: int | None
    """None where nothing of it ran on a node."""
    charge: int | None
    """From all requests to it; None where it had none with a price in this currency."""
    paid: int | None = None
    """What a tenant's own requests were charged, at whichever service."""

    @property
    def margin(self) -> int | None:
        """Return the charge less the cost; below 0 it is a loss. None where one is not known."""
        return None if self.cost is None or self.charge is None else self.charge - self.cost


def read_charges(
    read: ReadGateway, by: Sequence[str], begin: datetime, end: datetime, *, is_month: bool
) -> ChargeTable:
    """Return what requests were charged in the whole hours around a time, or in a whole month."""
    since = begin.astimezone(UTC).replace(minute=0, second=0, microsecond=0)
    until = end.astimezone(UTC).replace(minute=0, second=0, microsecond=0)
    until = until if until == end else until + _HOUR
    if is_month:
        until = (since + timedelta(days=31)).replace(day=1)
    query = {"by": ",".join(by), "since": since.isoformat(), "until": until.isoformat()}
    answer = read("/charges", query)
    closed: str | None = answer["closedUntil"]
    return ChargeTable(
        by=tuple(by),
        since=since,
        until=until,
        rows=answer["rows"],
        is_truncated=answer["truncated"],
        closed_until=datetime.fromisoformat(closed) if closed is not None else None,
        is_month=is_month,
    )


def charge_query(group_by: str) -> tuple[str, ...] | None:
    """Return by what charges are asked for beside a grouping of cost; None for one of nodes."""
    return tuple(query.split(",")) if (query := _QUERIES.get(group_by)) is not None else None


def margins(
    costs: Iterable[tuple[str, str, int]], charges: ChargeTable, paid: ChargeTable | None = None
) -> list[MarginRow]:
    """Return a row for each name and currency of costs and charges, the largest loss first."""
    cost = {(name, currency): nanos for name, currency, nanos in costs}
    charged, by_sender = _sums(charges), _sums(paid) if paid is not None else {}
    rows = [
        MarginRow(
            name=name,
            currency=currency,
            cost=cost.get((name, currency)),
            charge=charged.get((name, currency)),
            paid=by_sender.get((name, currency)),
        )
        for name, currency in {**cost, **charged, **by_sender}
    ]
    return sorted(
        rows, key=lambda row: (row.currency, row.margin is None, row.margin or 0, row.name)
    )


def _sums(charges: ChargeTable) -> dict[tuple[str, str], int]:
    sums: dict[tuple[str, str], int] = defaultdict(int)
    for row in charges.rows:
        if row["currency"] is not None:
            # Only the owner of a service may be missing.
            name = " ".join(row[name] or NO_BUDGET for name in charges.by)
            sums[name, row["currency"]] += row["chargeNanos"]
    return dict(sums)


def margin_table(group_by: str, rows: Sequence[MarginRow]) -> Iterator[str]:
    """Yield cost and charge beside each other, and what is between them."""
    fields = [margin_fields(row, _TABLE_DIGITS) for row in rows]
    columns = ["cost", "charge", "margin"]
    if any(row.paid is not None for row in rows):
        columns.append("paid")
    body = [
        [row.name, *(each[column] or "-" for column in columns), row.currency]
        for row, each in zip(rows, fields, strict=True)
    ]
    heads = (group_by, *columns, "currency")
    yield from table([column_head(key) for key in heads], body, str.rjust)


def margin_fields(row: MarginRow, digits: int = _FULL_DIGITS) -> dict[str, str | None]:
    """Return the amounts of a row in units."""
    amounts = {"cost": row.cost, "charge": row.charge, "margin": row.margin, "paid": row.paid}
    return {name: _amount(nanos, digits) for name, nanos in amounts.items()}


def charge_notes(charges: ChargeTable) -> Iterator[str]:
    """Yield the time of the charges, what has no price, and whether a month may change."""
    yield f"Charges from {format_time(charges.since)} to {format_time(charges.until)} UTC."
    unpriced = sum(row["requests"] for row in charges.rows if row["currency"] is None)
    if unpriced:
        yield f"{counted(unpriced, 'request')} had no price and cost nothing."
    if charges.is_truncated:
        yield "Only the rows with the largest charges: ask for fewer fields."
    elif charges.digest is not None:
        yield f"The month is closed. SHA-256 of its rows: {charges.digest}."
    elif charges.is_month:
        closes = charges.until + timedelta(seconds=CLOSING_SECONDS)
        yield f"The month closes at {format_time(closes)} UTC: until then its rows may change."


def charges_output(charges: ChargeTable, form: str) -> Output:
    """Return charges alone as table, JSON or CSV."""
    return Output.of(form, _lines(charges), partial(_body, charges), partial(_csv, charges))


def _lines(charges: ChargeTable) -> Iterator[str]:
    counts = [
        name for name in _COUNTS if name == "requests" or any(row[name] for row in charges.rows)
    ]
    body = [
        [
            *(row[name] or "-" for name in charges.by),
            *(str(row[name]) for name in counts),
            _charge(row, _TABLE_DIGITS) or "no price",
            row["currency"] or "-",
        ]
        for row in charges.rows
    ]
    heads = (*charges.by, *counts, "charge", "currency")
    yield from table([column_head(key) for key in heads], body, str.rjust, len(charges.by))
    yield from ("", *charge_notes(charges))
    if any(row.get("class") == WASTE for row in charges.rows):
        yield (
            f"{WASTE}: what engines computed again, or for requests that they failed, at its price;"
            " no sender pays it."
        )
    yield (
        "Charges alone: nodes are shared by services and know no "
        f"{' and no '.join(charges.by)}; --by tenant,service has their cost beside the charges."
    )


def _body(charges: ChargeTable) -> dict[str, Any]:
    return {
        "groupBy": list(charges.by),
        "from": charges.since.isoformat(),
        "to": charges.until.isoformat(),
        "digest": charges.digest,
        "truncated": charges.is_truncated,
        "rows": [_fields(charges, row) for row in charges.rows],
    }


def _csv(charges: ChargeTable) -> tuple[list[str], list[dict[str, Any]]]:
    """Return rows with the time in each, and of a closed month the digest of all."""
    period = {"from": charges.since.isoformat(), "to": charges.until.isoformat()}
    columns = [*charges.by, *_COUNTS, "charge", "currency", *period, "digest"]
    digest = charges.digest
    return columns, [{**_fields(charges, row), **period, "digest": digest} for row in charges.rows]


def _fields(charges: ChargeTable, row: Mapping[str, Any]) -> dict[str, Any]:
    return {
        **{name: row[name] for name in (*charges.by, *_COUNTS)},
        "charge": _charge(row, _FULL_DIGITS),
        "currency": row["currency"],
    }


def _charge(row: Mapping[str, Any], digits: int) -> str | None:
    return _amount(row["chargeNanos"] if row["currency"] is not None else None, digits)


def _amount(nanos: int | None, digits: int) -> str | None:
    return None if nanos is None else f"{Money(nanos, '').rounded(digits):f}"
