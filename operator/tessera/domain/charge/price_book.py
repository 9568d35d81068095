"""The prices of all PriceLists as a gateway has seen them."""

import hashlib
import math
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, time
from decimal import Decimal
from typing import NamedTuple

from tessera.api.price_list import ANY_MODEL, PriceEntry, PriceListStatus
from tessera.domain.charge.prices import RequestPrice
from tessera.domain.money import to_nanos
from tessera.domain.observed.price_lists import ObservedPriceList

# So long after it was seen a change counts: until then each gateway has seen it.
SEEN_SECONDS = 60.0


class _PriceKey(NamedTuple):
    """What a price is for."""

    currency: str
    tenant: str | None
    """None: every tenant."""
    model: str


class _DatedPrice(NamedTuple):
    start: int
    """Unix seconds."""
    price: RequestPrice


@dataclass(frozen=True, slots=True, kw_only=True)
class BookVersion:
    """All prices from a moment on."""

    since: float
    """Unix seconds; before all time for what a gateway sees at its start."""
    lists: tuple[ObservedPriceList, ...]
    prices: Mapping[_PriceKey, Sequence[_DatedPrice]]
    """The earliest first."""


@dataclass(frozen=True, slots=True)
class PriceListBook:
    """What prices were, are, and soon will be."""

    versions: tuple[BookVersion, ...] = ()
    """The oldest first."""

    def find(
        self, currency: str, tenant: str, models: Iterable[str], at: float
    ) -> RequestPrice | None:
        """Return the price of the first of some names that has one at a time in Unix seconds.

        The prices of all models come after these names. None where there is none in the currency.
        """
        place = bisect_right(self.versions, at, key=lambda version: version.since)
        if not place:
            return None
        prices = self.versions[place - 1].prices
        for model in (*models, ANY_MODEL):
            for payer in (tenant, None):
                dated = prices.get(_PriceKey(currency, payer, model), ())
                if started := bisect_right(dated, at, key=lambda each: each.start):
                    return dated[started - 1].price
        return None

    def next_price(
        self, currency: str, tenant: str, models: Iterable[str], at: float
    ) -> tuple[RequestPrice, float] | None:
        """Return the first price that `find` has after a time, and from when on in Unix seconds."""
        names, moments = tuple(models), set[float]()
        for version in self.versions:
            moments.add(version.since)
            for model in (*names, ANY_MODEL):
                for payer in (tenant, None):
                    dated = version.prices.get(_PriceKey(currency, payer, model), ())
                    moments.update(float(each.start) for each in dated)
        for moment in sorted(each for each in moments if each > at):
            if (price := self.find(currency, tenant, names, moment)) is not None:
                return price, moment
        return None


def revised_book(
    book: PriceListBook, lists: Iterable[ObservedPriceList], now: float
) -> PriceListBook:
    """Return the book once these lists are seen; the same one where they say what it has.

    The first ones count at once, so that a gateway that starts has prices. Later changes count a
    while after they are seen, all of them together, so that no price is missing in between.
    """
    seen = tuple(sorted(lists, key=lambda each: each.name))
    versions = book.versions
    current = bisect_right(versions, now, key=lambda version: version.since)
    if current > 1:
        # A clock that is set back finds no version before the oldest: that has no begin any more.
        versions = (replace(versions[current - 1], since=-math.inf), *versions[current:])
    changed = not versions or not _same(versions[-1].lists, seen)
    if changed:
        since = now + SEEN_SECONDS if versions else -math.inf
        # A clock that was set back puts no change before an earlier one.
        since = max(since, versions[-1].since) if versions else since
        versions += (BookVersion(since=since, lists=seen, prices=_prices(seen)),)
    return book if len(versions) == len(book.versions) and not changed else PriceListBook(versions)


def _same(lists: tuple[ObservedPriceList, ...], others: tuple[ObservedPriceList, ...]) -> bool:
    """Return whether lists say the same, whichever objects say it."""
    said, of_others = (
        [(each.name, each.spec, each.status) for each in some] for some in (lists, others)
    )
    return said == of_others


def _prices(lists: Iterable[ObservedPriceList]) -> Mapping[_PriceKey, Sequence[_DatedPrice]]:
    by_key = defaultdict[_PriceKey, dict[date, Sequence[_DatedPrice]]](dict)
    for each in lists:
        if each.spec is None:
            continue
        for entry in each.spec.entries:
            # The API server refuses an entry without prices.
            if not (dated := _dated_prices(each.name, each.spec.currency, entry, each.status)):
                continue
            for tenant in entry.tenants or (None,):
                for model in entry.models:
                    key = _PriceKey(each.spec.currency, tenant, model)
                    by_key[key].setdefault(entry.from_, dated)
    return {key: _in_turn(entries) for key, entries in by_key.items()}


def _in_turn(entries: Mapping[date, Sequence[_DatedPrice]]) -> Sequence[_DatedPrice]:
    """Return the prices of entries by first day: each entry's end where the next one's begin."""
    prices: list[_DatedPrice] = []
    for _, dated in sorted(entries.items(), key=lambda item: item[0]):
        prices = [*(price for price in prices if price.start < dated[0].start), *dated]
    return tuple(prices)


def _dated_prices(
    name: str, currency: str, entry: PriceEntry, status: PriceListStatus
) -> Sequence[_DatedPrice]:
    """Return the prices of an entry, the earliest first."""
    per_token: dict[date, tuple[Decimal | None, Decimal | None]] = {}
    if entry.from_cost is None:
        per_token[entry.from_] = entry.input, entry.output
    else:
        per_token[entry.from_] = (entry.from_cost.at_least,) * 2
        for measured in status.prices_of(entry):
            per_token[max(entry.from_, measured.day)] = (measured.per_million_tokens,) * 2
    return tuple(
        _DatedPrice(
            int(datetime.combine(day, time(), tzinfo=UTC).timestamp()),
            _price(name, currency, entry, input_price, output_price),
        )
        for day, (input_price, output_price) in sorted(per_token.items())
        if input_price is not None and output_price is not None
    )


def _price(
    name: str, currency: str, entry: PriceEntry, input_price: Decimal, output_price: Decimal
) -> RequestPrice:
    # An entry with prices of its own has the digest that it had before there were others.
    content = f"{currency}{entry.model_dump_json(by_alias=True, exclude={'from_cost'})}"
    if entry.from_cost is not None:
        content += f"{input_price:f}"
    cached = input_price if entry.cached_input is None else entry.cached_input
    reasoning = output_price if entry.reasoning is None else entry.reasoning
    return RequestPrice(
        price_list=f"{name}@{content_digest(content)}",
        currency=currency,
        input=to_nanos(input_price),
        cached_input=to_nanos(cached),
        output=to_nanos(output_price),
        reasoning=to_nanos(reasoning),
        per_request=to_nanos(entry.per_request),
        per_batch_row=to_nanos(entry.per_batch_row),
        per_cached_answer=to_nanos(entry.per_cached_answer),
    )


def content_digest(content: str) -> str:
    """Return what tells prices apart that have the same name."""
    return hashlib.sha256(content.encode()).hexdigest()[:12]
