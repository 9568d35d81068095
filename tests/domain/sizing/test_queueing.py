"""Waiting times by formulas are those of the processes that they describe."""

import pytest

from tessera.domain.sizing.queueing import share_waiting_longer, waiting_share


@pytest.mark.parametrize(
    ("servers", "busy", "share"), [(1, 0.5, 0.5), (2, 0.5, 1 / 3), (4, 0.8, 0.5964), (8, 0.0, 0.0)]
)
def test_the_share_that_waits_is_that_of_erlang(servers: int, busy: float, share: float) -> None:
    assert waiting_share(servers, busy) == pytest.approx(share, abs=1e-4)
    assert share_waiting_longer(0.0, servers, busy, 1.0) == pytest.approx(share, abs=1e-4)


def test_servers_that_are_always_busy_make_all_wait() -> None:
    assert share_waiting_longer(10.0, 4, 1.0, 1.0) == 1
