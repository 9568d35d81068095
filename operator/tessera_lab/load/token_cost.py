"""What tokens cost: prices of a million, tokens for a unit of money, the run itself."""

from dataclasses import dataclass
from decimal import Decimal

from tessera.domain.money import Money, per_million_tokens

_HOUR = 3600
_MILLION = 10**6


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenCost:
    """Each price says which tokens it divides by; None where there were none."""

    per_million_output: Money | None
    per_million_total: Money | None
    """Prompt and answer alike."""
    per_million_weighted: Money | None
    """Of an output token when an input token is sold for a fixed part of that."""
    output_tokens_per_unit: float | None
    """For one dollar, or whatever the currency is."""
    total_tokens_per_unit: float | None
    run: Money


@dataclass(frozen=True, slots=True, kw_only=True)
class HourlyPrice:
    """What an hour of everything that serves costs, and how tokens are sold."""

    per_hour: Money
    output_input_ratio: Decimal
    """How many times the price of an input token an output token is sold for."""


def token_cost(
    price: HourlyPrice, input_tokens: int, output_tokens: int, seconds: float
) -> TokenCost:
    """Of tokens that took `seconds`."""
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
    """Tokens for one unit of money (F04); None when the hour costs nothing."""
    if not per_hour.nanos:
        return None
    return tokens_per_second * _HOUR / float(per_hour.rounded(9))


def run_cost(per_hour: Money, seconds: float) -> Money:
    """What a span costs (F03)."""
    return per_hour.times(Decimal(repr(seconds)) / _HOUR)
