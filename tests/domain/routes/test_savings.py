"""What a route costs, by the golden values of the catalogue."""

import pytest

from tessera.domain.routes.savings import cascade_blend, router_blend, saved_share


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


def test_blend_of_a_cascade() -> None:
    assert cascade_blend(0.9, 0.10, 0.80) == pytest.approx(0.18)


def test_a_share_is_saved_or_lost() -> None:
    assert saved_share(0.2, 0.8) == pytest.approx(0.75)
    assert saved_share(1.0, 0.8) == pytest.approx(-0.25)
    assert saved_share(0.0, 0.0) is None
