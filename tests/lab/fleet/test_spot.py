"""Markets for spot nodes: what can be had, and what is taken back."""

import gzip
import json
from pathlib import Path

import pytest

from tessera_lab.fleet.spot import (
    Preemption,
    combined,
    from_time,
    hazard_market,
    read_bamboo_events,
    read_bamboo_group,
    read_skypilot,
    spot_market,
)

TRACES = Path(__file__).parents[4] / "shared/traces"
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


def test_zones_add_up_and_a_run_may_begin_later() -> None:
    assert combined([FALLING, [(0.0, 1), (150.0, 0)]]) == [
        (0.0, 5),
        (100.0, 2),
        (150.0, 1),
        (200.0, 3),
    ]
    assert from_time(FALLING, 120.0) == [(0.0, 1), (30.0, 1), (80.0, 3)]


def test_recorded_formats_are_read(tmp_path: Path) -> None:
    zone = {
        "collected": "aws",
        "zone_type": "us-west-2a_v100_1",
        "nodes": "4-node",
        "metadata": {"gap_seconds": 30},
        "rle": [[4, 2], [1, 3]],
    }
    texts = {
        "zones": json.dumps(zone) + "\n",
        "group": "2021-12-11, 23:59:30, 9\n2021-12-12, 00:00:30, 7\n",
        "events": "0,add,node1\n0,add,node2\n60000,remove,node1\n",
        "late": "480000,add,node1\n",
    }
    for name, text in texts.items():
        (tmp_path / name).write_bytes(gzip.compress(text.encode()))
    zones = read_skypilot(str(tmp_path / "zones"))
    assert zones == {"aws/us-west-2a_v100_1/4-node": [(0, 4), (60, 1)]}
    assert read_bamboo_group(str(tmp_path / "group")) == [(0.0, 9), (60.0, 7)]
    assert read_bamboo_events(str(tmp_path / "events")) == [(0.0, 2), (60.0, 1)]
    assert read_bamboo_events(str(tmp_path / "late")) == [(0.0, 0), (480.0, 1)]


@pytest.mark.skipif(not TRACES.exists(), reason="needs ../shared/traces")
def test_public_spot_traces_are_read() -> None:
    zones = read_skypilot(str(TRACES / "spot_skypilot.jsonl.gz"))
    assert len(zones) == 22
    market = spot_market(zones["aws-08-27-2023/us-west-2a_v100_1/16-node"])
    assert 0 <= min(nodes for _, nodes in market.capacity) < 16
    group = read_bamboo_group(str(TRACES / "spot_bamboo_a100x1-east1b_txt.gz"))
    assert (group[0][1], group[-1][1]) == (55, 64)
    events = read_bamboo_events(str(TRACES / "spot_bamboo_p3-trace_csv.gz"))
    assert events[-1][1] == 10
