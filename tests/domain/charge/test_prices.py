"""What requests to providers cost by all that a bill has."""

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tessera.api.model_provider import ModelCost
from tessera.domain.charge.prices import BilledExtras, OutsidePrice, charge_of, most_charge
from tessera.domain.gateway.outside import outside_cost
from tessera.domain.money import NANO

LONG = {"aboveInputTokens": 272_000, "input": "5", "output": "22.50"}
WRITES = {"cacheWrite": "3.75", "longCacheWrite": "6"}


def a_price(**cost: Any) -> OutsidePrice:
    spec = ModelCost.model_validate({"input": "2.50", "output": "15", **cost})
    return outside_cost("acme", "USD", spec)


def usd(price: OutsidePrice, input_tokens: int, output: int, **extras: int) -> float:
    billed = BilledExtras(**extras)
    nanos = charge_of(
        price, input_tokens=input_tokens, cached=0, output=output, reasoning=0, extras=billed
    )
    return nanos / NANO


@pytest.mark.parametrize(("prompt", "bill"), [(300_000, 1.51125), (272_000, 0.6875)])
def test_all_tokens_of_a_long_prompt_have_the_prices_of_its_step(prompt: int, bill: float) -> None:
    assert usd(a_price(steps=[LONG]), prompt, 500) == bill


def test_of_several_steps_the_last_that_a_prompt_exceeds_applies() -> None:
    further = LONG | {"aboveInputTokens": 500_000, "input": "8"}
    assert usd(a_price(steps=[LONG, further]), 500_001, 0) == 4.000008


@pytest.mark.parametrize(
    ("extras", "bill"),
    [
        ({"cache_writes": 10**6}, 2.5 + 3.75),
        ({"long_cache_writes": 10**6}, 2.5 + 6),
        ({"searches": 3}, 5 + 0.03),
        ({"searches": 6}, 5 + 0.05),
        ({"cache_writes": 2 * 10**6 + 1}, 2 * 3.75),
    ],
)
def test_what_a_bill_has_beside_tokens_has_its_own_price(
    extras: dict[str, int], bill: float
) -> None:
    price = a_price(**WRITES, search="0.01", maxSearches=5)
    assert usd(price, 2 * 10**6, 0, **extras) == bill


def test_writes_without_a_price_cost_as_input_and_long_ones_as_short_ones() -> None:
    assert usd(a_price(), 10**6, 0, cache_writes=10**6) == 2.5
    assert usd(a_price(cacheWrite="3"), 10**6, 0, long_cache_writes=10**6) == 3


def test_tokens_that_no_count_explains_cost_as_the_dearest_output() -> None:
    assert usd(a_price(reasoning="20"), 0, 10**6, unexplained=10**5) == 0.9 * 15 + 0.1 * 20


NANOS = st.integers(0, 10**11)
TOKENS = st.integers(0, 1000)


def prices(**fields: Any) -> st.SearchStrategy[OutsidePrice]:
    names = ("input", "cached_input", "cache_write", "long_cache_write", "output", "reasoning")
    each = dict.fromkeys((*names, "search", "per_request"), NANOS)
    fixed = {"price_list": st.just("acme@0"), "currency": st.just("USD")}
    return st.builds(OutsidePrice, **fixed, **each, max_searches=st.integers(0, 5), **fields)


STEPS = st.lists(prices(above_input_tokens=TOKENS), max_size=3).map(
    lambda steps: tuple(sorted(steps, key=lambda step: step.above_input_tokens))
)


@given(st.data(), prices(steps=STEPS), TOKENS, TOKENS)
def test_no_bill_is_below_nothing_or_above_what_was_reserved(
    data: st.DataObject, price: OutsidePrice, most_input: int, most_output: int
) -> None:
    # Searches and the price of a request are those of the model, whatever the step.
    shared = {name: getattr(price, name) for name in ("search", "max_searches", "per_request")}
    price = replace(price, steps=tuple(replace(step, **shared) for step in price.steps))
    input_tokens, output = (data.draw(st.integers(0, most)) for most in (most_input, most_output))
    charge = charge_of(
        price,
        input_tokens=input_tokens,
        cached=data.draw(st.integers(0, input_tokens)),
        output=output,
        reasoning=data.draw(st.integers(0, output)),
        extras=BilledExtras(
            cache_writes=data.draw(TOKENS),
            long_cache_writes=data.draw(TOKENS),
            searches=data.draw(TOKENS),
            unexplained=data.draw(TOKENS),
        ),
    )
    assert 0 <= charge <= most_charge(price, input_tokens=most_input, output=most_output)
