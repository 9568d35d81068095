"""What a route costs, by the golden values of the catalogue."""

import pytest

from tessera.domain.routes.savings import SHARES, blends, router_blend, saved_share


@pytest.mark.parametrize(
    ("share", "small", "large", "blend", "times"),
    [
        (0.5, 0.20, 0.80, 0.50, 1.6),
        (0.6, 0.20, 0.80, 0.44, 1.818),
        (0.6, 0.10, 0.80, 0.38, 2.105),
        (0.85, 0.10, 0.80, 0.205, 3.90),
        (0.90, 0.10, 0.80, 0.170, 4.71),
        (0.95, 0.10, 0.80, 0.135, 5.93),
    ],
)
def test_blend_of_a_router(
    share: float, small: float, large: float, blend: float, times: float
) -> None:
    mean = router_blend(share, small, large)
    assert mean == pytest.approx(blend)
    assert large / mean == pytest.approx(times, abs=0.005)
    assert router_blend(share, small, large, router=0.01) == pytest.approx(blend + 0.01)


def test_the_shares_of_the_sources_blend_two_prices() -> None:
    rows = [
        (row.share, round(row.price, 3), round(row.saved or 0, 3)) for row in blends(0.10, 0.80)
    ]
    assert rows == [
        (0.5, 0.45, 0.438),
        (0.6, 0.38, 0.525),
        (0.85, 0.205, 0.744),
        (0.9, 0.17, 0.788),
        (0.95, 0.135, 0.831),
    ]
    assert [row.saved for row in blends(0.0, 0.0)] == [None] * len(SHARES)


def test_a_share_is_saved_or_lost() -> None:
    assert saved_share(0.2, 0.8) == pytest.approx(0.75)
    assert saved_share(1.0, 0.8) == pytest.approx(-0.25)
    assert saved_share(0.0, 0.0) is None
