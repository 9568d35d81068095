"""A burst needs the replicas that would have read its prompts in time."""

from datetime import timedelta

import pytest

from tessera.domain.scaling.policies.capacity.bursts import replicas_for_bursts

SECOND = timedelta(seconds=1)


@pytest.mark.parametrize(
    ("arrivals", "replicas"),
    [
        ((), 1),
        ((19,), 1),
        # Even: each second is read before the next.
        ((10,) * 60, 1),
        # 30 in one second: 20 of them are left after it, and the next 10 seconds read those.
        ((0,) * 20 + (30,) + (0,) * 39, 1),
        ((0,) * 20 + (31,) + (0,) * 39, 2),
        # As many in the second before are still there.
        ((0,) * 20 + (30, 30) + (0,) * 38, 2),
        # 3 % of the arrivals may be late.
        ((31, *(0,) * 9, *(10,) * 90), 2),
        ((31, *(0,) * 9, *(10,) * 110), 1),
    ],
)
def test_the_fewest_replicas_are_found(arrivals: tuple[int, ...], replicas: int) -> None:
    assert replicas_for_bursts(arrivals, 10.0, SECOND, least=1, most=8) == replicas


def test_the_bounds_hold() -> None:
    flood = (1000,) * 60
    assert replicas_for_bursts(flood, 10.0, SECOND, least=1, most=8) == 8
    assert replicas_for_bursts((10,) * 60, 10.0, SECOND, least=5, most=8) == 5
    assert replicas_for_bursts(flood, 10.0, SECOND, least=9, most=8) == 9
    # Where a prompt alone takes as long as the objective no replica helps.
    assert replicas_for_bursts(flood, 10.0, timedelta(), least=1, most=8) == 1
