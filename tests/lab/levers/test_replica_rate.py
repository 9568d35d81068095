"""What one replica carries of a load, and the load that it gets."""

from dataclasses import replace

import pytest

from tessera_lab.engine.mixes import CHAT
from tessera_lab.engine.setup import EngineSetup, KvCache
from tessera_lab.levers.replica_rate import (
    MOST_USE,
    LatencyObjectives,
    LoadSample,
    replica_rate,
)
from tests.lab.levers.cases import CASE

LOAD = LoadSample(name="chat", requests=CHAT.draw(400, 1.0))
RECORDED = replace(LOAD, rate=1.0, sessions=tuple(number // 2 for number in range(400)))
CONTINUOUS = EngineSetup(shape=CASE.shape, hardware=CASE.baseline)
STATIC = replace(CONTINUOUS, static_batch=8, kv_cache=KvCache.CONTIGUOUS)
EASY, HARD = LatencyObjectives(ttft=60.0, tpot=1.0), LatencyObjectives(ttft=60.0, tpot=0.013)


def test_a_replica_that_keeps_its_slo_is_loaded_as_far_as_any() -> None:
    rate = replica_rate(CONTINUOUS, LOAD, EASY)
    assert rate.rate == pytest.approx(MOST_USE * rate.saturated)
    assert rate.keeps_up


def test_a_tight_slo_lowers_the_load() -> None:
    easy, hard = replica_rate(CONTINUOUS, LOAD, EASY), replica_rate(CONTINUOUS, LOAD, HARD)
    assert hard.keeps_slo
    assert not hard.keeps_up
    assert hard.rate < easy.rate / 2
    assert hard.tpot <= HARD.tpot


def test_an_slo_that_no_load_keeps_is_missed_at_the_usual_load() -> None:
    rate = replica_rate(CONTINUOUS, LOAD, LatencyObjectives(ttft=60.0, tpot=0.001))
    assert not rate.keeps_slo
    assert rate.rate == pytest.approx(MOST_USE * rate.saturated)


def test_users_of_static_batches_wait() -> None:
    rate = replica_rate(STATIC, LOAD, LatencyObjectives(ttft=1.0, tpot=1.0))
    assert not rate.keeps_slo
    assert rate.rate == pytest.approx(MOST_USE * rate.saturated)
    assert rate.ttft > 5


def test_independent_requests_come_at_longer_gaps() -> None:
    part = LOAD.at(0.5)
    assert len(part) == len(LOAD.requests)
    assert part[-1].at == pytest.approx(2 * LOAD.requests[-1].at)


def test_a_replica_gets_whole_sessions_of_a_recorded_load_at_their_times() -> None:
    part = RECORDED.at(0.25)
    assert len(part) == pytest.approx(100, abs=2)
    assert {each.at for each in part} <= {each.at for each in RECORDED.requests}
    assert all(each.request.id % 2 == 0 for each in part[::2])


def test_a_recorded_load_that_is_too_small_for_a_replica_comes_faster() -> None:
    part = RECORDED.at(4.0)
    assert len(part) == 400
    assert part[-1].at == pytest.approx(RECORDED.requests[-1].at / 4)
