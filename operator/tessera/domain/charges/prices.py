"""What the tokens of a request are charged."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestPrice:
    """Prices of one model for one tenant; nano-units of a currency."""

    price_list: str
    """Name of the PriceList and digest of its entry: `standard@0123456789ab`."""
    currency: str
    input: int
    """Of a million tokens of the prompt."""
    cached_input: int
    """Of a million of those that a prefix cache had."""
    output: int
    """Of a million tokens of the answer."""
    reasoning: int
    """Of a million of those that are reasoning."""
    per_request: int = 0
    per_batch_row: int = 0
    per_cached_answer: int = 0


def charge_of(
    price: RequestPrice, *, input_tokens: int, cached: int, output: int, reasoning: int
) -> int:
    """Return the nano-units of a request; `cached` and `reasoning` are parts of the others.

    The sum of tokens times prices a million is rounded once, half to even.
    """
    micro_nanos = (
        (input_tokens - cached) * price.input
        + cached * price.cached_input
        + (output - reasoning) * price.output
        + reasoning * price.reasoning
    )
    whole, rest = divmod(micro_nanos, 10**6)
    is_up = 2 * rest > 10**6 or (2 * rest == 10**6 and whole % 2 == 1)
    return price.per_request + whole + is_up


def most_charge(price: RequestPrice, *, input_tokens: int, output: int) -> int:
    """Return the most nano-units of a request of so many tokens, whatever they turn out to be."""
    dearest_input = max(price.input, price.cached_input)
    dearest_output = max(price.output, price.reasoning)
    micro_nanos = input_tokens * dearest_input + output * dearest_output
    return price.per_request + -(-micro_nanos // 10**6)


@dataclass(frozen=True, slots=True, kw_only=True)
class BilledExtras:
    """What the bill of a provider has beside the tokens of a record, which know none of it."""

    cache_writes: int = 0
    """Tokens of the prompt that it kept for about 5 minutes."""
    long_cache_writes: int = 0
    """The same, for about an hour."""
    searches: int = 0
    unexplained: int = 0
    """Tokens of its total that no count explains: part of the output, at the dearest price."""


NO_EXTRAS = BilledExtras()
