"""Whole cycles of a service that speculates, against an in-memory cluster."""

from typing import Any

import pytest

from tessera.domain.observed.snapshot import Readings, Ref, SpeedReading
from tessera.domain.perf.speculation import expected_tokens
from tests.builders import at
from tests.memory_operator import CHAT, VARIANT, MemoryOperator, add_pool_and_node

SERVICE = Ref("team-a", "chat")
N_GRAMS = {"speculation": {"method": "NGram", "tokens": 5}}
MINUTE, HOUR = 60, 3600
BUSY, QUIET = 200.0, 1.0


@pytest.fixture
def operator() -> MemoryOperator:
    memory_operator = MemoryOperator()
    add_pool_and_node(memory_operator)
    memory_operator.serve(engine=N_GRAMS, replicas=1)
    return memory_operator


def measured(running: float, **fields: Any) -> SpeedReading:
    """Five minutes in which each sequence of a step drafted 5 tokens, at an acceptance of 0.7."""
    accepted = 60_000 * (expected_tokens(0.7, 5) - 1)
    return SpeedReading(
        **{
            "variant": VARIANT,
            "median_running": running,
            "drafts": 60_000.0,
            "drafted_tokens": 300_000.0,
            "accepted_tokens": accepted,
            "tokens_per_second": (60_000 + accepted) / 300,
            # Short requests: long ones gain more, since reading their cache takes the time.
            "running": running,
            "kv_usage": running * 100 / 1e5,
            "kv_tokens": 100_000,
            **fields,
        }
    )


async def cycle(operator: MemoryOperator, seconds: float, reading: SpeedReading) -> dict[str, Any]:
    """Run a cycle with a reading of this moment, and return the status that it writes."""
    operator.at = at(seconds)
    operator.observations.readings = Readings(
        at=operator.at, speeds={SERVICE: (reading,)}, speeds_at=operator.at
    )
    await operator.reconcile()
    status: dict[str, Any] = operator.body(CHAT)["status"]
    return status


def speculates(operator: MemoryOperator) -> bool:
    (engine,) = operator.newest_deployment()["spec"]["template"]["spec"]["containers"]
    return any(each.startswith("--speculative-config=") for each in engine["args"])


def condition(status: dict[str, Any]) -> dict[str, Any]:
    (speculating,) = [each for each in status["conditions"] if each["type"] == "Speculating"]
    return dict(speculating)


async def test_under_load_speculation_is_switched_off_by_a_rollout_and_stays_off(
    operator: MemoryOperator,
) -> None:
    status = await cycle(operator, 0, measured(QUIET))
    assert speculates(operator)
    assert condition(status)["reason"] == "FasterDecoding"
    for minute in range(5, 35, 5):
        status = await cycle(operator, minute * MINUTE, measured(BUSY))
    assert not speculates(operator)
    speculation = status["speculation"]
    assert (speculation["enabled"], speculation["reason"]) == (False, "HighConcurrency")
    assert condition(status)["status"] == "False"
    assert "it is on again after 24 hours" in condition(status)["message"]
    for minute in range(35, 600, 45):
        await cycle(operator, minute * MINUTE, SpeedReading(variant=VARIANT, median_running=QUIET))
    assert not speculates(operator)


async def test_a_new_leader_leaves_it_off_and_a_quiet_day_later_it_is_on(
    operator: MemoryOperator,
) -> None:
    for minute in range(0, 25, 5):
        await cycle(operator, minute * MINUTE, measured(BUSY))
    operator.restart()
    quiet = SpeedReading(variant=VARIANT, median_running=QUIET)
    await cycle(operator, HOUR, quiet)
    assert not speculates(operator)
    await cycle(operator, 25 * HOUR, quiet)
    await cycle(operator, 25 * HOUR + MINUTE, quiet)
    assert speculates(operator)


async def test_an_edit_switches_it_on_again(operator: MemoryOperator) -> None:
    for minute in range(0, 25, 5):
        await cycle(operator, minute * MINUTE, measured(BUSY))
    assert not speculates(operator)
    operator.body(CHAT)["spec"]["engine"]["speculation"]["tokens"] = 2
    operator.cluster.touch(CHAT)
    status = await cycle(operator, HOUR, SpeedReading(variant=VARIANT, median_running=BUSY))
    assert speculates(operator)
    assert condition(status)["reason"] == "AcceptanceAssumed"


async def test_without_the_field_there_is_neither_status_nor_condition(
    operator: MemoryOperator,
) -> None:
    status = await cycle(operator, 0, measured(QUIET))
    assert "speculation" in status
    del operator.body(CHAT)["spec"]["engine"]
    operator.cluster.touch(CHAT)
    status = await cycle(operator, MINUTE, measured(QUIET))
    assert status.get("speculation") is None
    assert "Speculating" not in [each["type"] for each in status["conditions"]]
    assert not speculates(operator)
