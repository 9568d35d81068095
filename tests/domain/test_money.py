"""Prices, weights and the price of a million tokens."""

from datetime import date
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from tessera.api.accelerator_pool import Price
from tessera.domain.hardware.device import slice_hardware, whole_gpu_hardware
from tessera.domain.hardware.gpu_catalog import products
from tessera.domain.hardware.weights import billing_weight, selection_weight
from tessera.domain.money import Money, from_nanos, money, per_million_tokens, price_on
from tests.builders import A100


def price(day: str, amount: str) -> Price:
    return Price.model_validate({"from": day, "perGPUHour": amount})


@pytest.mark.parametrize(
    ("day", "expected"),
    [("2025-12-31", None), ("2026-01-01", "2.16"), ("2026-06-30", "2.16"), ("2026-07-01", "1.98")],
)
def test_the_last_price_whose_day_has_come_holds(day: str, expected: str | None) -> None:
    prices = (price("2026-07-01", "1.98"), price("2026-01-01", "2.16"))
    found_price = price_on(prices, date.fromisoformat(day))
    assert (None if found_price is None else str(found_price.per_gpu_hour)) == expected


@pytest.mark.parametrize(
    "amount", ["1e999", "NaN", "Infinity", "-1", "1000000000", "0.0000000001", "0e-999999"]
)
def test_a_price_beyond_any_currency_is_refused(amount: str) -> None:
    with pytest.raises(ValidationError):
        price("2026-01-01", amount)


def test_a_sum_beyond_any_currency_is_the_largest_amount_of_a_status() -> None:
    sums = (from_nanos(10**40), from_nanos(10**24), from_nanos(10**24 - 1), from_nanos(5))
    largest = Decimal("999999999999999.999999999")
    assert sums == (largest, largest, largest, Decimal("0.000000005"))


@pytest.mark.parametrize(
    ("profile", "weight"),
    [
        ("1g.10gb", 0.134),
        ("1g.20gb", 0.196),
        ("2g.20gb", 0.268),
        ("3g.40gb", 0.464),
        ("7g.80gb", 1),
    ],
)
def test_a_slice_is_billed_by_the_mean_of_its_shares(profile: str, weight: float) -> None:
    hardware = slice_hardware(products()[A100], profile)
    assert hardware is not None
    assert float(billing_weight(hardware)) == pytest.approx(weight, abs=5e-4)


def test_whole_gpus_are_billed_one_each() -> None:
    assert billing_weight(whole_gpu_hardware(products()[A100], 4)) == 4


def test_what_a_layout_strands_is_paid_by_its_slices_when_choosing() -> None:
    hardware = slice_hardware(products()[A100], "3g.40gb")
    assert hardware is not None
    two = 2 * billing_weight(hardware)
    assert selection_weight(hardware, 1, two) == Decimal("0.5")
    assert billing_weight(hardware) < Decimal("0.5")


@pytest.mark.parametrize(
    ("hourly", "gpus", "tokens", "expected"),
    [
        ("3.50", 1, 1000, "0.972222"),
        ("3.50", 1, 833, "1.167133"),
        ("3.50", 2, 1500, "1.296296"),
        ("2.10", 1, 1000, "0.583333"),
    ],
)
def test_the_price_of_a_million_tokens_is_the_hour_over_its_tokens(
    hourly: str, gpus: int, tokens: float, expected: str
) -> None:
    cost = per_million_tokens(money(Decimal(hourly), "USD").times(gpus), tokens)
    assert float(cost.rounded(9)) == pytest.approx(float(expected), rel=1e-6)


@given(st.decimals(0, 10**6, places=9, allow_nan=False, allow_infinity=False))
def test_nano_units_lose_nothing_of_a_written_amount(amount: Decimal) -> None:
    assert money(amount, "USD").rounded(9) == amount


def test_money_is_read_with_its_currency() -> None:
    assert str(Money(2_160_000_000, "EUR")) == "2.16 EUR"
