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


@dataclass(frozen=True, slots=True, kw_only=True)
class OutsidePrice(RequestPrice):
    """Prices of one model of a provider, as its bill has them."""

    cache_write: int
    """Of a million tokens of the prompt that the provider writes into its cache."""
    long_cache_write: int
    """The same, for about an hour."""
    search: int = 0
    max_searches: int = 0
    """Searches that a request reserves; more of them are not charged."""
    above_input_tokens: int = 0
    steps: tuple["OutsidePrice", ...] = ()
    """Prices of requests with more tokens than `above_input_tokens`, ascending."""


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


def charge_of(
    price: RequestPrice,
    *,
    input_tokens: int,
    cached: int,
    output: int,
    reasoning: int,
    extras: BilledExtras = NO_EXTRAS,
) -> int:
    """Return the nano-units of a request; `cached` and `reasoning` are parts of the others.

    The sum of tokens times prices a million is rounded once, half to even. Only prices of providers
    have steps and extras; extras beyond the tokens they are part of are not charged.
    """
    more = nanos = 0
    if isinstance(price, OutsidePrice):
        for step in price.steps:
            if input_tokens > step.above_input_tokens:
                price = step
        nanos = min(extras.searches, price.max_searches) * price.search
        long_writes = min(extras.long_cache_writes, input_tokens - cached)
        writes = min(extras.cache_writes, input_tokens - cached - long_writes)
        unexplained = min(extras.unexplained, output - reasoning)
        more = (
            writes * (price.cache_write - price.input)
            + long_writes * (price.long_cache_write - price.input)
            + unexplained * (max(price.output, price.reasoning) - price.output)
        )
    micro_nanos = (
        (input_tokens - cached) * price.input
        + cached * price.cached_input
        + (output - reasoning) * price.output
        + reasoning * price.reasoning
        + more
    )
    whole, rest = divmod(micro_nanos, 10**6)
    is_up = 2 * rest > 10**6 or (2 * rest == 10**6 and whole % 2 == 1)
    return price.per_request + nanos + whole + is_up


def most_charge(price: RequestPrice, *, input_tokens: int, output: int) -> int:
    """Return the most nano-units of a request of so many tokens, whatever they turn out to be."""
    dearest_input = max(price.input, price.cached_input)
    dearest_output = max(price.output, price.reasoning)
    nanos = price.per_request
    if isinstance(price, OutsidePrice):
        nanos += price.max_searches * price.search
        dearest_input = max(dearest_input, price.cache_write, price.long_cache_write)
        for step in price.steps:
            if input_tokens > step.above_input_tokens:
                writes = max(step.cache_write, step.long_cache_write)
                dearest_input = max(dearest_input, step.input, step.cached_input, writes)
                dearest_output = max(dearest_output, step.output, step.reasoning)
    micro_nanos = input_tokens * dearest_input + output * dearest_output
    return nanos - (-micro_nanos // 10**6)
