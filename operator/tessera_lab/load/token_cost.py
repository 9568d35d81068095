"""Cost of tokens: per million, per unit of money, and of the whole run."""

from dataclasses import dataclass
from decimal import Decimal

from tessera.domain.money import Money, per_million_tokens

_HOUR = 3600


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenCost:
    """Prices of one load; None where there were no such tokens."""

    per_million_output: Money | None
    per_million_total: Money | None
    """Price of a million tokens, prompt and output alike."""
    per_million_weighted: Money | None
    """Price of a million output tokens when an input token costs a fixed fraction of one."""
    output_tokens_per_unit: float | None
    """Output tokens per unit of the currency."""
    total_tokens_per_unit: float | None
    run: Money


@dataclass(frozen=True, slots=True, kw_only=True)
class HourlyPrice:
    """Price of an hour of everything that serves, and the price ratio of tokens."""

    per_hour: Money
    output_input_ratio: Decimal
    """Price of an output token over that of an input token."""


def token_cost(
    price: HourlyPrice, input_tokens: int, output_tokens: int, seconds: float
) -> TokenCost:
    """Return the cost of tokens that took `seconds`."""
    rates = [
        output_tokens / seconds,
        (input_tokens + output_tokens) / seconds,
        (output_tokens + input_tokens / float(price.output_input_ratio)) / seconds,
    ]
    prices = [per_million_tokens(price.per_hour, rate) if rate else None for rate in rates]
    return TokenCost(
        per_million_output=prices[0],
        per_million_total=prices[1],
        per_million_weighted=prices[2],
        output_tokens_per_unit=tokens_per_unit(price.per_hour, rates[0]),
        total_tokens_per_unit=tokens_per_unit(price.per_hour, rates[1]),
        run=run_cost(price.per_hour, seconds),
    )


def tokens_per_unit(per_hour: Money, tokens_per_second: float) -> float | None:
    """Return tokens per unit of money; None when the hour is free."""
    if not per_hour.nanos:
        return None
    return tokens_per_second * _HOUR / float(per_hour.rounded(9))


def run_cost(per_hour: Money, seconds: float) -> Money:
    """Return the cost of a time span."""
    return per_hour.times(Decimal(repr(seconds)) / _HOUR)
