"""The question of `tessera breakeven`, from its command-line options."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import date
from decimal import Decimal
from types import SimpleNamespace

from tessera.cli.breakeven.inputs import MeasuredMonth, OwnReplica
from tessera.cli.errors import CommandError
from tessera.cli.files import read_text
from tessera.cli.numbers import bounded
from tessera.domain.economics.api_prices import (
    MAX_PRICE_AGE,
    ApiPrice,
    TokenPrices,
    TokenUse,
    api_price_on,
    list_api_prices,
    parse_api_prices,
)
from tessera.domain.economics.break_even import (
    MONTH_DAYS,
    DailyPeak,
    HostingComparison,
    OwnGpus,
)
from tessera.domain.money import Money, money
from tessera.domain.price_files import PriceError

_MAX_AMOUNT = 1e9
_MAX_TOKENS = 10**8
_MAX_REQUESTS = 1e12
_MAX_MONTHS = 120
# Options that size a model, which is named then.
_SIZING = ("gpu", "precision", "slo", "gpu_prices")
_DEMANDS = ("requests_per_day", "tokens", "gateway", "prometheus")


@dataclass(frozen=True, slots=True, kw_only=True)
class BreakEvenRequest:
    """A comparison with the demand to compute, and where its figures are from."""

    comparison: HostingComparison
    api: str
    replica: OwnReplica
    requests_per_day: float | None
    measured: tuple[MeasuredMonth, ...]
    yearly_decline: float | None
    months: int
    warnings: tuple[str, ...]


def break_even_request(
    arguments: SimpleNamespace, day: date, measured: Sequence[MeasuredMonth] = ()
) -> BreakEvenRequest:
    """Return the question that the options ask; CommandError where they are invalid."""
    _check_options(arguments)
    request = _request_tokens(arguments, measured)
    prices, api, warnings = requested_prices(arguments, day)
    replica = _replica(arguments, request, prices.output.currency, day)
    if replica.hourly.currency != prices.output.currency:
        raise CommandError(
            f"the API is paid in {prices.output.currency} and GPUs in {replica.hourly.currency}: "
            "write --hourly or --api-price in the currency of the other"
        )
    if replica.is_assumed:
        warnings.append(
            f"the price of GPUs is assumed, a list price of {replica.seller}: write your own "
            "with --hourly or --gpu-prices"
        )
    rate = replica.output_rate
    own = OwnGpus(
        hourly=replica.hourly,
        monthly=_monthly(arguments, prices.output.currency),
        capacity=None if rate is None else rate / request.output_tokens,
    )
    return BreakEvenRequest(
        comparison=HostingComparison(
            request=request, prices=prices, own=own, peak=_peak(arguments)
        ),
        api=api,
        replica=replica,
        requests_per_day=_requests_per_day(arguments, request, measured),
        measured=tuple(measured),
        yearly_decline=_yearly_decline(arguments),
        months=int(bounded("--months", arguments.months, 1, _MAX_MONTHS)),
        warnings=tuple(warnings),
    )


def _check_options(arguments: SimpleNamespace) -> None:
    if len(named := [name for name in _DEMANDS if getattr(arguments, name) is not None]) > 1:
        raise CommandError(f"{_option(named[0])} and {_option(named[1])}: write only one of them")
    if (arguments.api is None) == (arguments.api_price is None):
        raise CommandError(
            "no price of an API, or two: write either --api with a name of the list "
            f"({', '.join(sorted({entry.name for entry in list_api_prices()}))}) or --api-price"
        )
    for name in ("api_input_price", "api_cached_price"):
        if arguments.api_price is None and getattr(arguments, name) is not None:
            raise CommandError(f"{_option(name)} belongs to --api-price: write that too")
    if (arguments.engineer_hours is None) != (arguments.engineer_rate is None):
        raise CommandError("--engineer-hours and --engineer-rate: write both or none")
    if arguments.model is None:
        for name in _SIZING:
            if getattr(arguments, name) is not None:
                raise CommandError(
                    f"{_option(name)} is for sizing a model: name one, such as tessera breakeven "
                    "meta-llama/Llama-3.1-8B-Instruct"
                )
    if arguments.price_decline is not None and all(
        getattr(arguments, name) is None for name in _DEMANDS
    ):
        raise CommandError(
            "--price-decline is about a demand: write --requests-per-day or --tokens, or read it "
            "with --gateway or --prometheus"
        )


def _option(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _request_tokens(arguments: SimpleNamespace, measured: Sequence[MeasuredMonth]) -> TokenUse:
    """Return the tokens of the mean request that was measured, or of the options."""
    if requests := sum(month.requests for month in measured):
        uses = [month.use for month in measured]
        return TokenUse(
            input_tokens=sum(use.input_tokens for use in uses),
            output_tokens=sum(use.output_tokens for use in uses),
            cached_tokens=sum(use.cached_tokens for use in uses),
        ).times(1 / requests)
    bounded("--input-tokens", arguments.input_tokens, 0, _MAX_TOKENS)
    bounded("--output-tokens", arguments.output_tokens, 1, _MAX_TOKENS)
    bounded("--cached-tokens", arguments.cached_tokens, 0, arguments.input_tokens)
    return TokenUse(
        input_tokens=arguments.input_tokens,
        output_tokens=arguments.output_tokens,
        cached_tokens=arguments.cached_tokens,
    )


def _requests_per_day(
    arguments: SimpleNamespace, request: TokenUse, measured: Sequence[MeasuredMonth]
) -> float | None:
    if measured:
        return sum(month.requests for month in measured) / sum(month.days for month in measured)
    if arguments.requests_per_day is not None:
        return bounded("--requests-per-day", arguments.requests_per_day, 1e-3, _MAX_REQUESTS)
    if arguments.tokens is not None:
        tokens = bounded("--tokens", arguments.tokens, 1, _MAX_REQUESTS * 1e3)
        return tokens / request.total / MONTH_DAYS
    return None


def requested_prices(arguments: SimpleNamespace, day: date) -> tuple[TokenPrices, str, list[str]]:
    """Return the API's prices, what they are of, and warnings."""
    if arguments.api is None:
        output = _amount("--api-price", arguments.api_price, "USD", 1e-6)
        of_input = cached = output
        if arguments.api_input_price is not None:
            of_input = cached = _amount("--api-input-price", arguments.api_input_price, "USD")
        if arguments.api_cached_price is not None:
            most = float(of_input.rounded(9))
            cached = _amount("--api-cached-price", arguments.api_cached_price, "USD", most=most)
        prices = TokenPrices(input=of_input, cached_input=cached, output=output)
        return prices, "--api-price", []
    source = arguments.prices or "the shipped list"
    try:
        entry = api_price_on(_price_list(arguments.prices), arguments.api, day)
    except PriceError as error:
        raise CommandError(f"--api {arguments.api}: in {source} {error}") from None
    address = f", {entry.source}" if entry.source else ""
    warnings = []
    if entry.is_old(day):
        warnings.append(
            f"the price of {entry.name} is {(day - entry.from_).days} days old, more than "
            f"{MAX_PRICE_AGE.days}: look it up again, and write it with --prices or --api-price"
        )
    return entry.token_prices, f"{entry.name} of {entry.from_}{address}", warnings


def _price_list(path: str | None) -> tuple[ApiPrice, ...]:
    if path is None:
        return list_api_prices()
    try:
        return parse_api_prices(read_text("--prices", path))
    except PriceError as error:
        raise CommandError(f"--prices {path}: {error}") from None


def _amount(
    option: str, value: float, currency: str, least: float = 0.0, most: float = _MAX_AMOUNT
) -> Money:
    return money(Decimal(repr(bounded(option, value, least, most))), currency)


def _monthly(arguments: SimpleNamespace, currency: str) -> Money:
    """Return what a month costs besides replicas."""
    engineers = 0
    if arguments.engineer_hours is not None:
        hours = bounded("--engineer-hours", arguments.engineer_hours, 0, 1e5)
        rate = _amount("--engineer-rate", arguments.engineer_rate, currency)
        engineers = rate.times(Decimal(repr(hours))).nanos
    operation = _amount("--ops", arguments.ops, currency).nanos
    penalty = _amount("--sla-penalty", arguments.sla_penalty, currency).nanos
    return Money(operation + engineers + penalty, currency)


def _peak(arguments: SimpleNamespace) -> DailyPeak:
    hours = bounded("--peak-hours", arguments.peak_hours, 0.25, 23.75)
    # With more, the peak would have more requests than the day.
    return DailyPeak(ratio=bounded("--peak", arguments.peak, 1, 24 / hours), hours=hours)


def _yearly_decline(arguments: SimpleNamespace) -> float | None:
    text = arguments.price_decline
    if text is None:
        return None
    match = re.fullmatch(r"(\d?\.?\d{1,6})(/yr)?", text)
    share = float(match[1]) if match else 1.0
    if not share < 1:
        raise CommandError(
            f"--price-decline {text}: write the share by which prices fall in a year, from 0 to "
            "below 1, such as 0.8/yr"
        )
    return share


def _replica(arguments: SimpleNamespace, request: TokenUse, currency: str, day: date) -> OwnReplica:
    """Return a replica as the options say, and otherwise as the model is sized."""
    rate, hourly = arguments.tokens_per_second, None
    if rate is not None:
        bounded("--tokens-per-second", rate, 1e-3, 1e9)
    if arguments.hourly is not None:
        hourly = _amount("--hourly", arguments.hourly, currency, 1e-6)
    if arguments.model is not None:
        # Sizing reads the whole catalog, of which a price and a rate need nothing.
        from tessera.cli.breakeven.sized import sized_replica  # noqa: PLC0415 - see above

        sized = sized_replica(arguments, request, hourly, day)
        return sized if rate is None else replace(sized, output_rate=rate, is_predicted=False)
    if hourly is None:
        raise CommandError(
            "no price of own GPUs: name a model to size, such as tessera breakeven "
            "meta-llama/Llama-3.1-8B-Instruct, or write --hourly"
        )
    return OwnReplica(name="--hourly", hourly=hourly, output_rate=rate)
