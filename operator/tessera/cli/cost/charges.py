"""What requests were charged: beside the cost of the nodes, or alone."""

import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any, TypeAlias

from tessera.api.text import counted
from tessera.cli.output import Output
from tessera.cli.text import cell, column_head, format_time, table
from tessera.domain.money import Money
from tessera.domain.routes.savings import less_text, saved_share
from tessera.domain.usage.report import target_shares
from tessera.domain.usage.statement import CLOSING_SECONDS, WASTE

NO_BUDGET = "(no budget)"
# Words for the groupings of cost: a service's charges are those of all requests to it. Models of
# providers, which are no services, have rows of their own.
_QUERIES = {"service": "service", "tenant": "owner", "tenant,service": "owner,service"}
_PROVIDER, _COST_NANOS, _PROVIDER_COST = "provider", "costNanos", "providerCost"
_COUNTS = ("requests", "inputTokens", "cachedTokens", "outputTokens", "reasoningTokens")
_TABLE_DIGITS, _FULL_DIGITS = 4, 9
_HOUR = timedelta(hours=1)
# Rows by target have a share among those that differ in the target alone.
_TARGET, _SHARE, _PER_MILLION = "target", "share", "perMillionTokens"
_MILLION = 10**6

# Returns the answer of a gateway to a path and a query; raises CommandError.
ReadGateway: TypeAlias = Callable[[str, Mapping[str, str]], Mapping[str, Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class ChargeTable:
    """The answer of a gateway, with the question."""

    by: tuple[str, ...]
    since: datetime
    until: datetime
    rows: Sequence[Mapping[str, Any]]
    """With `chargeNanos` and `currency`, which is None where no price was known, and `costNanos`
    where providers bill something."""
    is_truncated: bool = False
    closed_until: datetime | None = None
    """Before it no row changes any more."""
    is_month: bool = False
    """One whole month is asked for."""
    last_targets: Mapping[str, str] = field(default_factory=dict)
    """Name of the last target by route, of routes that exist now."""

    @property
    def digest(self) -> str | None:
        """Return the SHA-256 of all rows of a closed month; None where they may change."""
        is_closed = self.closed_until is not None and self.until <= self.closed_until
        if not self.is_month or not is_closed or self.is_truncated:
            return None
        # A month without providers has the digest that it had before there were any.
        rows = [{k: v for k, v in row.items() if v or k != _PROVIDER} for row in self.rows]
        lines = sorted(json.dumps(row, sort_keys=True) for row in rows)
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
    provider_cost: int | None = None
    """What providers bill for them."""

    @property
    def margin(self) -> int | None:
        """Return the charge less the cost; below 0 it is a loss. None where one is not known."""
        return None if self.cost is None or self.charge is None else self.charge - self.cost


@dataclass(frozen=True, slots=True, kw_only=True)
class RouteSaving:
    """What a route's requests were charged in one currency, beside its last target for all."""

    route: str
    currency: str
    charge: int
    """Nano-units, with those of targets that did not answer."""
    last: str | None
    """Its last target now; None of a route that does not exist any more."""
    saved: float | None
    """Share of what all tokens of the route would be charged at the mean price of the last target;
    None where that is not known."""

    @property
    def sentence(self) -> str:
        """Return it for the terminal."""
        charged = f"Route {self.route} was charged {_amount(self.charge, _TABLE_DIGITS)}"
        charged = f"{charged} {self.currency}"
        if self.saved is not None:
            return (
                f"{charged}: {less_text(self.saved)} than all its tokens at the mean price of "
                f"{self.last}, its last target."
            )
        cause = f"its last target {self.last} was charged nothing"
        if self.last is None:
            cause = "it does not exist any more"
        return f"{charged}; what it saved is not known, since {cause}."


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
        rows=[{k: v for k, v in row.items() if v or k != _COST_NANOS} for row in answer["rows"]],
        is_truncated=answer["truncated"],
        closed_until=datetime.fromisoformat(closed) if closed is not None else None,
        is_month=is_month,
        # Gateways of the version before do not say it.
        last_targets=answer.get("lastTargets", {}),
    )


def charge_query(group_by: str) -> tuple[str, ...] | None:
    """Return by what charges are asked for beside a grouping of cost; None for one of nodes."""
    query = _QUERIES.get(group_by)
    return None if query is None else (*query.split(","), _PROVIDER)


def provider_costs(charges: ChargeTable | None) -> Mapping[tuple[str, str], int]:
    """Return what each model of a provider costs by its row and its currency, in nano-units."""
    rows = charges.rows if charges is not None else ()
    sums = Counter[tuple[str, str]]()
    for row in rows:
        if row[_PROVIDER] and row["currency"] is not None:
            sums[_provider_name(row[_PROVIDER]), row["currency"]] += row.get(_COST_NANOS, 0)
    return sums


def margins(
    costs: Iterable[tuple[str, str, int]], charges: ChargeTable, paid: ChargeTable | None = None
) -> list[MarginRow]:
    """Return a row for each name and currency of costs and charges, the largest loss first."""
    cost = {(name, currency): nanos for name, currency, nanos in costs}
    charged, by_sender, provided = _sums(charges), {}, {}
    if paid is not None:
        by_sender, provided = _sums(paid), _sums(paid, _COST_NANOS)
    rows = [
        MarginRow(
            name=name,
            currency=currency,
            cost=cost.get((name, currency)),
            charge=charged.get((name, currency)),
            paid=by_sender.get((name, currency)),
            provider_cost=provided.get((name, currency)) or None,
        )
        for name, currency in {**cost, **charged, **by_sender}
    ]
    return sorted(
        rows, key=lambda row: (row.currency, row.margin is None, row.margin or 0, row.name)
    )


def _sums(charges: ChargeTable, amount: str = "chargeNanos") -> dict[tuple[str, str], int]:
    sums: dict[tuple[str, str], int] = defaultdict(int)
    for row in charges.rows:
        if row["currency"] is not None:
            sums[_name(charges, row), row["currency"]] += row.get(amount, 0)
    return dict(sums)


def _name(charges: ChargeTable, row: Mapping[str, Any]) -> str:
    if provider := row.get(_PROVIDER):
        return _provider_name(provider)
    # Only the owner of a service may be missing.
    return " ".join(row[name] or NO_BUDGET for name in charges.by if name != _PROVIDER)


def _provider_name(provider: str) -> str:
    return f"(provider {provider})"


def margin_table(group_by: str, rows: Sequence[MarginRow]) -> Iterator[str]:
    """Yield cost and charge beside each other, and what is between them."""
    fields = [margin_fields(row, _TABLE_DIGITS) for row in rows]
    columns = ["cost", "charge", "margin"]
    columns += [name for name in ("paid", _PROVIDER_COST) if any(each[name] for each in fields)]
    body = [
        [row.name, *(each[column] or "-" for column in columns), row.currency]
        for row, each in zip(rows, fields, strict=True)
    ]
    heads = (group_by, *columns, "currency")
    yield from table([column_head(key) for key in heads], body, str.rjust)


def margin_fields(row: MarginRow, digits: int = _FULL_DIGITS) -> dict[str, str | None]:
    """Return the amounts of a row in units."""
    amounts = {"cost": row.cost, "charge": row.charge, "margin": row.margin, "paid": row.paid}
    amounts[_PROVIDER_COST] = row.provider_cost
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


def route_savings(charges: ChargeTable) -> list[RouteSaving]:
    """Return what routes saved whose targets are rows, beside what their last target is charged."""
    targets: dict[tuple[str, str], dict[str, tuple[int, int]]] = defaultdict(dict)
    are_all = _TARGET in charges.by and not charges.is_truncated
    for row in charges.rows if are_all else ():
        if row[_TARGET] and row["currency"] is not None and row.get("class") != WASTE:
            of_route = targets[row["route"], row["currency"]]
            nanos, tokens = of_route.get(row[_TARGET], (0, 0))
            of_route[row[_TARGET]] = nanos + row["chargeNanos"], tokens + _tokens(row)
    savings = []
    for (route, currency), of_route in sorted(targets.items()):
        charge, tokens = map(sum, zip(*of_route.values(), strict=True))
        last = charges.last_targets.get(route)
        last_nanos, last_tokens = of_route.get(last or "", (0, 0))
        saved = saved_share(charge, last_nanos / last_tokens * tokens) if last_tokens else None
        savings.append(
            RouteSaving(route=route, currency=currency, charge=charge, last=last, saved=saved)
        )
    return savings


def _tokens(row: Mapping[str, Any]) -> int:
    tokens: int = row["inputTokens"] + row["outputTokens"]
    return tokens


def _with_shares(charges: ChargeTable) -> Iterator[Mapping[str, Any]]:
    """Yield the rows; of targets with their share of requests, and the price of their tokens.

    The share is None where some rows are left out.
    """
    if _TARGET not in charges.by:
        yield from charges.rows
        return
    for row, share in zip(charges.rows, target_shares(charges.by, charges.rows), strict=True):
        is_known = row["currency"] is not None and _tokens(row)
        nanos = row["chargeNanos"] * _MILLION // _tokens(row) if is_known else None
        yield {
            **row,
            _SHARE: None if charges.is_truncated else share,
            _PER_MILLION: _amount(nanos, _TABLE_DIGITS),
        }


def charges_output(charges: ChargeTable, form: str) -> Output:
    """Return charges alone as table, JSON or CSV."""
    return Output.of(form, _lines(charges), partial(_body, charges), partial(_csv, charges))


def _lines(charges: ChargeTable) -> Iterator[str]:
    counts = [
        name for name in _COUNTS if name == "requests" or any(row[name] for row in charges.rows)
    ]
    of_targets = [_SHARE, _PER_MILLION] if _TARGET in charges.by else []
    of_providers = _provider_columns(charges)
    body = [
        [
            *(row[name] or "-" for name in charges.by),
            *(str(row[name]) for name in counts),
            *([cell(row[_SHARE], "{:.1%}"), row[_PER_MILLION] or "-"] if of_targets else []),
            _charge(row, _TABLE_DIGITS) or "no price",
            *(each or "-" for each in _provider_fields(of_providers, row, _TABLE_DIGITS).values()),
            row["currency"] or "-",
        ]
        for row in _with_shares(charges)
    ]
    heads = (*charges.by, *counts, *of_targets, "charge", *of_providers, "currency")
    yield from table([column_head(key) for key in heads], body, str.rjust, len(charges.by))
    yield from ("", *charge_notes(charges))
    yield from (saving.sentence for saving in route_savings(charges))
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
        "rows": list(_fields(charges)),
        **_savings_body(charges),
    }


def _savings_body(charges: ChargeTable) -> dict[str, Any]:
    savings = [
        {
            "route": saving.route,
            "currency": saving.currency,
            "charge": _amount(saving.charge, _FULL_DIGITS),
            "lastTarget": saving.last,
            "saved": None if saving.saved is None else f"{saving.saved:.6f}",
        }
        for saving in route_savings(charges)
    ]
    return {"savings": savings} if _TARGET in charges.by else {}


def _csv(charges: ChargeTable) -> tuple[list[str], list[dict[str, Any]]]:
    """Return rows with the time in each, and of a closed month the digest of all."""
    period = {"from": charges.since.isoformat(), "to": charges.until.isoformat()}
    of_targets = [_SHARE, _PER_MILLION] if _TARGET in charges.by else []
    columns = [*charges.by, *_COUNTS, *of_targets, "charge", *_provider_columns(charges)]
    columns += ["currency", *period, "digest"]
    digest = charges.digest
    return columns, [{**each, **period, "digest": digest} for each in _fields(charges)]


def _fields(charges: ChargeTable) -> Iterator[dict[str, Any]]:
    of_providers = _provider_columns(charges)
    for row in _with_shares(charges):
        yield {
            **{name: row[name] for name in (*charges.by, *_COUNTS)},
            **_target_fields(row),
            "charge": _charge(row, _FULL_DIGITS),
            **_provider_fields(of_providers, row, _FULL_DIGITS),
            "currency": row["currency"],
        }


def _provider_columns(charges: ChargeTable) -> Sequence[str]:
    """Return the columns of what providers bill, where they bill something."""
    if not any(row.get(_COST_NANOS) for row in charges.rows):
        return ()
    return (_PROVIDER_COST, "margin") if _PROVIDER in charges.by else (_PROVIDER_COST,)


def _provider_fields(
    columns: Iterable[str], row: Mapping[str, Any], digits: int
) -> Mapping[str, str | None]:
    """Return what a provider bills, and what the charge has above it; None of services."""
    cost = row.get(_COST_NANOS)
    margin = None if cost is None else row["chargeNanos"] - cost
    amounts = {_PROVIDER_COST: cost, "margin": margin}
    return {name: _amount(amounts[name], digits) for name in columns}


def _target_fields(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return what rows by target have besides."""
    if _SHARE not in row:
        return {}
    share = row[_SHARE]
    return {
        _SHARE: None if share is None else f"{share:.6f}",
        _PER_MILLION: row[_PER_MILLION],
    }


def _charge(row: Mapping[str, Any], digits: int) -> str | None:
    return _amount(row["chargeNanos"] if row["currency"] is not None else None, digits)


def _amount(nanos: int | None, digits: int) -> str | None:
    return None if nanos is None else f"{Money(nanos, '').rounded(digits):f}"
