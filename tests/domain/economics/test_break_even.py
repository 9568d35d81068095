"""Own GPUs against an API: golden values, break-evens, peaks, falling prices."""

from dataclasses import replace
from decimal import Decimal

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from tessera.domain.economics.api_prices import TokenPrices, TokenUse
from tessera.domain.economics.break_even import (
    DailyPeak,
    HostingComparison,
    OwnGpus,
    break_even_rate,
    break_even_tokens,
)
from tessera.domain.money import Money, money, per_million_tokens

DAY_SECONDS = 86_400


def usd(amount: float | str) -> Money:
    return money(Decimal(str(amount)), "USD")


def own_gpus(hourly: str = "3.50", monthly: float = 0, capacity: float | None = None) -> OwnGpus:
    return OwnGpus(hourly=usd(hourly), monthly=usd(monthly), capacity=capacity)


def comparison(
    price: str = "0.90", own: OwnGpus | None = None, peak: DailyPeak | None = None
) -> HostingComparison:
    """Return a comparison of requests of 1,000 tokens."""
    return HostingComparison(
        request=TokenUse(input_tokens=800, output_tokens=200),
        prices=TokenPrices(input=usd(price), cached_input=usd(price), output=usd(price)),
        own=own or own_gpus(),
        peak=peak or DailyPeak(),
    )


def test_a_gpu_at_3_50_costs_2520_a_month_and_breaks_even_at_2_8_billion_tokens() -> None:
    """The well-known example says 2.8 million, which is off by a factor of 1,000."""
    month = own_gpus("3.50").month(1)
    assert month == usd(2520)
    assert break_even_tokens(month, usd("0.90")) == pytest.approx(2.8e9, rel=1e-12)
    break_even = comparison().break_even()
    assert break_even is not None
    assert break_even.tokens_per_month == pytest.approx(2.8e9, rel=1e-9)
    assert break_even.tokens_per_second == pytest.approx(1080.2469, rel=1e-6)


@pytest.mark.parametrize(
    ("tokens", "api", "saving"),
    [(50e6, "45", "-2475"), (2.8e9, "2520", "0"), (100e9, "90000", "87480")],
)
def test_an_api_costs_by_the_token_and_a_gpu_by_the_hour(
    tokens: float, api: str, saving: str
) -> None:
    costs = comparison().at(tokens / 1000 / 30)
    assert costs.tokens_per_month == pytest.approx(tokens)
    assert costs.api.rounded(4) == Decimal(api)
    assert (costs.api.nanos - costs.own.nanos) / 1e9 == pytest.approx(float(saving), abs=1e-4)


@pytest.mark.parametrize(
    ("hourly", "price", "rate"),
    [
        ("3.50", "1.00", 972.2222),
        ("7.00", "1.00", 1944.444),
        # 833 thousand tokens an hour, which are no 833 tokens a second.
        ("3.50", "4.20", 231.4815),
        ("3.50", "0.90", 1080.2469),
    ],
)
def test_the_break_even_rate_earns_the_hour(hourly: str, price: str, rate: float) -> None:
    assert break_even_rate(usd(hourly), usd(price)) == pytest.approx(rate, rel=1e-6)


@given(st.integers(1, 10**5), st.integers(1, 10**5))
def test_the_break_even_rate_of_what_tokens_cost_is_their_rate(cents: int, rate: int) -> None:
    hourly = usd("0.01").times(cents)
    per_million = per_million_tokens(hourly, rate)
    assume(per_million.nanos > 0)
    assert break_even_rate(hourly, per_million) == pytest.approx(rate, rel=1e-3)


def test_operation_moves_the_break_even() -> None:
    break_even = comparison(own=own_gpus(monthly=2520)).break_even()
    assert break_even is not None
    assert break_even.tokens_per_month == pytest.approx(5.6e9)


def test_the_utilization_needed_is_a_share_of_the_full_load() -> None:
    """A GPU of 12 requests a second has to be used for 9 % to earn 2,520 USD."""
    break_even = comparison(own=own_gpus(capacity=12.0)).break_even()
    assert break_even is not None
    assert break_even.replicas == 1
    assert break_even.utilization == pytest.approx(1080.2469 / 12_000, rel=1e-6)
    assert break_even.output_tokens_per_second == pytest.approx(216.0494, rel=1e-6)


def test_a_gpu_that_is_too_slow_never_pays() -> None:
    assert comparison(own=own_gpus(capacity=1.08)).break_even() is None
    assert comparison(own=own_gpus(capacity=1.09)).break_even() is not None


def test_what_a_month_costs_besides_may_need_several_replicas_to_pay() -> None:
    """Full replicas earn 2,146 USD a month beyond their price; 5,000 USD need 3 of them."""
    own = own_gpus(monthly=5000, capacity=2.0)
    break_even = comparison(own=own).break_even()
    assert break_even is not None
    assert break_even.replicas == 3
    assert break_even.requests_per_day * 30 * 1000 == pytest.approx((3 * 2520 + 5000) / 0.9e-6)
    assert break_even.always_from > break_even.requests_per_day


@given(
    capacity=st.floats(0.5, 20.0),
    monthly=st.integers(0, 20_000),
    ratio=st.floats(1.0, 5.0),
    share=st.floats(1e-3, 0.999),
)
def test_the_break_even_is_where_own_gpus_begin_to_cost_less(
    capacity: float, monthly: int, ratio: float, share: float
) -> None:
    choice = comparison(
        own=own_gpus(monthly=monthly, capacity=capacity), peak=DailyPeak(ratio=ratio, hours=4)
    )
    break_even = choice.break_even()
    lower = choice.at(share * (1e7 if break_even is None else break_even.requests_per_day))
    assert lower.own.nanos >= lower.api.nanos
    if break_even is not None:
        exact = choice.at(break_even.requests_per_day)
        assert exact.api.nanos == pytest.approx(exact.own.nanos, rel=1e-6)
        assert exact.replicas == break_even.replicas
        higher = choice.at(break_even.always_from / share)
        assert higher.own.nanos <= higher.api.nanos


@given(capacity=st.floats(0.5, 20.0), ratio=st.floats(1.0, 5.0), requests_per_day=st.floats(1, 1e7))
def test_the_cheapest_mix_costs_no_more_than_either_alone(
    capacity: float, ratio: float, requests_per_day: float
) -> None:
    choice = comparison(own=own_gpus(capacity=capacity), peak=DailyPeak(ratio=ratio, hours=4))
    costs = choice.at(requests_per_day)
    assert costs.mixed.nanos <= min(costs.api.nanos, costs.own.nanos) + 1
    for count in range(min(costs.replicas, 6) + 1):
        assert costs.mixed.nanos <= choice._mixed(requests_per_day, count).nanos


def test_a_peak_needs_replicas_that_the_api_replaces() -> None:
    """A mean of 2 full replicas with 3 times as many for 4 hours needs 6, or 2 and the API."""
    own = own_gpus(capacity=4.0)
    peak = DailyPeak(ratio=3.0, hours=4.0)
    costs = comparison(own=own, peak=peak).at(8.0 * DAY_SECONDS)
    assert (costs.replicas, costs.own) == (6, usd(6 * 2520))
    assert costs.spike_premium == usd(4 * 2520)
    assert costs.utilization == pytest.approx(1 / 3)
    # The base needs 1.2 replicas. The API answers for the other 4 in 4 of 24 hours.
    assert costs.mixed_replicas == 2
    overflow = 4 * 4.0 * DAY_SECONDS / 6 * 30 * 1000 * 0.9e-6
    assert costs.mixed.nanos / 1e9 == pytest.approx(2 * 2520 + overflow)


def test_without_a_peak_no_replica_is_for_spikes() -> None:
    costs = comparison(own=own_gpus(capacity=2.0)).at(4.0 * DAY_SECONDS)
    assert (costs.replicas, costs.spike_premium, costs.mixed) == (2, usd(0), costs.own)
    assert costs.utilization == pytest.approx(1.0)


def test_falling_prices_end_what_own_gpus_save() -> None:
    """At 5.04 USD of API use for each 2.52 of own GPUs, 80 % a year halve it in 5.2 months."""
    choice = comparison()
    months = list(choice.months(5.6e9 / 1000 / 30, 0.8, 12))
    assert [costs.own for costs in months] == [usd(2520)] * 12
    assert months[0].api == usd(5040)
    paying = [costs.api.nanos > costs.own.nanos for costs in months]
    assert paying.index(False) == 6
    assert months[11].api.nanos / 1e9 == pytest.approx(5040 * 0.2 ** (11 / 12), rel=1e-6)


def test_cached_input_moves_the_break_even_and_more_output_moves_it_back() -> None:
    dear = TokenPrices(input=usd(2), cached_input=usd("0.2"), output=usd(10))
    choice = replace(comparison(), prices=dear)
    volumes = []
    for request in (
        choice.request,
        replace(choice.request, cached_tokens=800),
        replace(choice.request, output_tokens=400),
    ):
        break_even = replace(choice, request=request).break_even()
        assert break_even is not None
        volumes.append(break_even.requests_per_day)
    plain, cached, longer = volumes
    assert cached > plain > longer
    assert plain == pytest.approx(2520 / 30 / (800 * 2e-6 + 200 * 10e-6))
