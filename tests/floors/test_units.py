"""Scenes in which an operator without memory reads what was counted in tokens per second."""

from typing import Any

import pytest

from tests.floors.fleet import FloorFleet, add_gpus, add_h100
from tests.floors.kube import PodTimes

MINUTE = 60.0


@pytest.mark.parametrize("settled", [False, True], ids=["rolling", "settled"])
@pytest.mark.parametrize(
    ("fields", "reasons"),
    [
        ({"engine": {"extraArgs": ["--no-such-flag"]}}, ("Accepted", "InvalidFlag")),
        ({"placement": {"pools": ["nowhere"]}}, ("Accepted", "PoolNotFound")),
    ],
    ids=["flag", "pool"],
)
async def test_a_bad_spec_in_a_rollout_is_named_by_an_operator_that_restarted(
    fields: dict[str, Any], reasons: tuple[str, str], *, settled: bool
) -> None:
    fleet = FloorFleet.begin(1, PodTimes(start=(10, 30)))
    try:
        add_gpus(fleet, "a100", 2)
        add_h100(fleet, "h100", 3)
        fleet.serve("chat", 4)
        await fleet.settle()
        assert sorted(fleet.counts("chat").values()) == [2, 2], fleet.describe()
        fleet.edit_template("chat", "two")
        await fleet.run(30 * MINUTE if settled else 30)
        fleet.edit("chat", **fields)
        await fleet.restart_operator()
        await fleet.run(2 * MINUTE)
        condition, reason = reasons
        assert fleet.condition("chat", condition)["reason"] == reason, fleet.describe()
        assert fleet.healthy("chat") >= 3
        fleet.edit("chat", engine=None, placement=None)
        await fleet.run(15 * MINUTE)
        assert fleet.healthy("chat") == 4
        assert fleet.condition("chat", "Progressing")["reason"] == "RolloutComplete"
        assert not fleet.judge.findings
    finally:
        await fleet.close()
