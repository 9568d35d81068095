import pytest

from tessera_lab.claims.formulas import (
    missing_saving,
    monthly_requests,
    partition_gain,
    reduction,
    requests_per_second,
    saving_as_ratio,
    stacked_saving,
    usd_per_request,
)


@pytest.mark.parametrize(
    ("savings", "total"),
    [((0.3, 0.4, 0.2), 0.664), ((0.4, 0.5, 0.3), 0.79), ((0.5, 0.6, 0.4), 0.88), ((), 0.0)],
)
def test_residual_costs_of_stacked_levers_multiply(
    savings: tuple[float, ...], total: float
) -> None:
    assert stacked_saving(savings) == pytest.approx(total, rel=1e-9)


def test_a_startup_at_110_of_800_thousand_needs_68_percent_of_routing() -> None:
    assert stacked_saving((0.34, 0.35)) == pytest.approx(1 - 0.429)
    assert missing_saving(110 / 800, (0.34, 0.35)) == pytest.approx(0.6795, abs=5e-5)
    assert saving_as_ratio(1 - 110 / 800) == pytest.approx(7.27, abs=5e-3)


def test_low_ends_of_six_levers_exceed_the_total_that_their_table_claims() -> None:
    low_ends = (0.5, 0.3, 0.4, 0.2, 0.5, 0.1)
    assert stacked_saving(low_ends) == pytest.approx(0.9244)
    assert stacked_saving(low_ends) > 0.90


def test_four_instances_of_800_give_3_2_times_one_of_1000() -> None:
    assert partition_gain([800.0] * 4, 1000.0) == pytest.approx(3.2)


def test_ten_thousand_requests_a_minute_are_432_million_a_month() -> None:
    assert monthly_requests(10_000) == 432e6
    assert usd_per_request(500_000, 10_000) == pytest.approx(0.001157, abs=5e-7)


def test_73_percent_less_is_3_7_times_and_50_million_a_day_579_a_second() -> None:
    assert requests_per_second(50e6) == pytest.approx(578.7, abs=0.05)
    assert saving_as_ratio(0.73) == pytest.approx(3.70, abs=5e-3)
    assert reduction(3, 1) == pytest.approx(0.667, abs=5e-4)


def test_latencies_fall_by_57_and_86_percent() -> None:
    assert reduction(4.2, 1.8) == pytest.approx(0.571, abs=5e-4)
    assert reduction(2.8, 0.38) == pytest.approx(0.864, abs=5e-4)
