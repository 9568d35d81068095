"""Markets for spot nodes: what can be had, and what is taken back."""

import pytest

from tessera_lab.fleet.spot import Preemption, hazard_market, spot_market

FALLING = [(0.0, 4), (100.0, 1), (150.0, 1), (200.0, 3)]


def test_nodes_beyond_a_falling_capacity_are_taken_back() -> None:
    market = spot_market(FALLING, notice=30.0)
    assert [market.available(at) for at in (0, 99.9, 100, 199, 200, 1e6)] == [4, 4, 1, 1, 3, 3]
    assert market.preemptions == (Preemption(at=100.0, first=1, nodes=3),)
    assert [market.preemptions[0].lost(nodes) for nodes in range(6)] == [0, 0, 1, 2, 3, 3]
    assert (market.notice, len(market.capacity)) == (30.0, 3)


def test_each_node_is_lost_at_the_hazard_whatever_the_number_held() -> None:
    hours, hazard = 2000, 0.2
    market = hazard_market(10, hazard, hours * 3600, seed=5)
    for nodes in (1, 5, 10):
        losses = sum(preemption.lost(nodes) for preemption in market.preemptions)
        assert losses == pytest.approx(nodes * hazard * hours, rel=0.1)
    assert market.available(3600.0) == 10
    assert market == hazard_market(10, hazard, hours * 3600, seed=5)
    assert hazard_market(10, 0.0, 3600, seed=5).preemptions == ()


def test_a_blackout_takes_every_node_and_ends() -> None:
    hazards = hazard_market(8, 1.0, 7200.0, seed=1)
    market = hazards.without([(1000.0, 4600.0)])
    assert [market.available(at) for at in (999, 1000, 4599, 4600)] == [8, 0, 0, 8]
    (blackout,) = [each for each in market.preemptions if 1000 <= each.at < 4600]
    assert blackout == Preemption(at=1000.0, first=0, nodes=8)
    outside = [each for each in hazards.preemptions if not 1000 <= each.at < 4600]
    assert [each for each in market.preemptions if each is not blackout] == outside


def test_a_fall_within_a_blackout_shows_only_at_its_end() -> None:
    market = spot_market(FALLING).without([(50.0, 120.0)])
    assert [market.available(at) for at in (0, 50, 100, 120, 200)] == [4, 0, 0, 1, 3]
    assert market.preemptions == (Preemption(at=50.0, first=0, nodes=4),)
