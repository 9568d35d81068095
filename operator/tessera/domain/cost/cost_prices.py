"""Prices by cost: what a million tokens of models cost on the last day that has ended."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from fractions import Fraction

from tessera.api.price_list import (
    ANY_MODEL,
    MAX_MEASURED_PRICES,
    EntryStatus,
    MeasuredPrice,
    PriceEntry,
    PriceListStatus,
)
from tessera.api.ref import Ref
from tessera.domain.cost.statement import CostStatement
from tessera.domain.gateway.name_rights import NameRights
from tessera.domain.money import from_nanos, to_nanos
from tessera.domain.observed.price_lists import ObservedPriceList
from tessera.domain.observed.snapshot import ObservedService

# With fewer tokens a cost says nothing, and the last one stays.
MIN_TOKENS = 10**6
# Factor by which the cost in a price moves in a day at most, whatever was measured. It rises so
# from what `atLeast` stands for, also on the first day.
MAX_CHANGE = 2
DAY = timedelta(days=1)
# So much of a day may lack a bill, as around restarts of the operator.
_MAX_UNBILLED = timedelta(minutes=15)


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceDay:
    """What one service cost on a day."""

    namespace: str
    models: frozenset[str]
    """The names under which its requests are charged; none where the service is gone."""
    costs: Mapping[str, int]
    """Nano-units by currency."""
    tokens: int
    """Those of input and output that gateways recorded."""


def day_begin(day: date) -> datetime:
    """Return when a day begins in UTC."""
    return datetime.combine(day, time(), UTC)


def service_days(
    day: date,
    statement: CostStatement | None,
    tokens: Mapping[Ref, int] | None,
    services: Iterable[ObservedService],
) -> tuple[ServiceDay, ...]:
    """Return what each service cost on a day; none where cost or tokens of a part are not known.

    `tokens` are those of each service, as gateways recorded them: its engines may count any number.
    """
    if statement is None or tokens is None or _unbilled(day, statement) > _MAX_UNBILLED:
        return ()
    costs = defaultdict[Ref, Counter[str]](Counter)
    for (_, line), nanos in statement.amounts.items():
        if line.service:
            costs[Ref(line.namespace, line.service)][line.currency] += nanos
    models = {service.ref: _charged_names(service) for service in services}
    return tuple(
        ServiceDay(
            namespace=service.namespace,
            models=models.get(service, frozenset()),
            costs=cost,
            tokens=tokens.get(service, 0),
        )
        for service, cost in sorted(costs.items())
    )


def _unbilled(day: date, statement: CostStatement) -> timedelta:
    begin = day_begin(day)
    bounds = [(begin, statement.begin), *statement.gaps, (statement.end, begin + DAY)]
    return sum((max(timedelta(), end - start) for start, end in bounds), timedelta())


def _charged_names(service: ObservedService) -> frozenset[str]:
    if service.spec is None:
        return frozenset()
    model = service.spec.model
    names = model.served_name or service.ref.name, *(each.name for each in model.adapters)
    return frozenset(map(str.lower, names))


def lacks_price(price_list: ObservedPriceList, today: date) -> bool:
    """Return whether an entry with `fromCost` has no price of tomorrow yet."""
    entries = price_list.spec.entries if price_list.spec is not None else ()
    return any(_is_due(entry, price_list.status, today) for entry in entries)


def next_status(
    price_list: ObservedPriceList, today: date, days: Iterable[ServiceDay], rights: NameRights
) -> PriceListStatus:
    """Return the status with the prices of tomorrow, by what services cost yesterday.

    Only services count whose tenant has the name for those who pay by it, so that no tenant changes
    what others pay by a service of the same name.

    A price that exists stays, whatever is known later. An entry of which no cost was ever measured
    has none.
    """
    spec, days = price_list.spec, tuple(days)
    if spec is None:
        return price_list.status
    entries = []
    for entry in spec.entries:
        prices = price_list.status.prices_of(entry)
        if _is_due(entry, price_list.status, today):
            last = prices[-1] if prices else None
            cost = _cost_of(entry, spec.currency, days, rights)
            prices += _next_price(entry, last, today, cost)
        if entry.from_cost is not None and prices:
            status = EntryStatus(
                from_=entry.from_,
                models=entry.models,
                tenants=entry.tenants,
                prices=prices[-MAX_MEASURED_PRICES:],
            )
            entries.append(status)
    return PriceListStatus(entries=tuple(entries))


def _is_due(entry: PriceEntry, status: PriceListStatus, today: date) -> bool:
    """Return whether tomorrow lacks its price; that of a later day was written by another clock."""
    if entry.from_cost is None or entry.from_ > today + DAY:
        return False
    prices = status.prices_of(entry)
    return not prices or prices[-1].day <= today


def _cost_of(
    entry: PriceEntry, currency: str, days: Iterable[ServiceDay], rights: NameRights
) -> int | None:
    """Return the nano-units of a million tokens; None where there were fewer.

    A service that has a part of its cost in another currency does not count.
    """
    cost = tokens = 0
    for day in days:
        names = day.models if ANY_MODEL in entry.models else day.models.intersection(entry.models)
        is_priced = any(rights.grants(name, day.namespace, entry.tenants) for name in names)
        if is_priced and day.costs.keys() == {currency}:
            cost += day.costs[currency]
            tokens += day.tokens
    # A fraction is rounded half to even.
    return round(Fraction(cost * 10**6, tokens)) if tokens >= MIN_TOKENS else None


def _next_price(
    entry: PriceEntry, last: MeasuredPrice | None, today: date, cost: int | None
) -> tuple[MeasuredPrice, ...]:
    terms, measured_on = entry.from_cost, today - DAY
    if terms is None or (cost is None and last is None):
        return ()
    before = to_nanos(last.cost) if last is not None else 0
    # Where the cost is less, and before one is known, `atLeast` is paid.
    least = to_nanos(terms.at_least) / Fraction(terms.factor) if terms.factor else Fraction()
    if cost is None and last is not None:
        cost, measured_on = before, last.measured_on
    assert cost is not None  # noqa: S101
    if most := MAX_CHANGE * max(before, int(least)):
        cost = min(max(cost, -(-before // MAX_CHANGE)), most)
    price = from_nanos(round(cost * Fraction(terms.factor)))
    if terms.at_most is not None:
        price = min(price, terms.at_most)
    price = max(price, terms.at_least)
    return (
        MeasuredPrice(
            day=today + DAY,
            per_million_tokens=price,
            cost=from_nanos(cost),
            measured_on=measured_on,
        ),
    )
