"""Whom the operator asks, and under which address."""

import asyncio
from datetime import datetime

import pytest

from tessera.domain.health.stall import EngineProgress
from tessera.domain.observed.model_reports import FetchProgress
from tessera.domain.observed.runner_reports import RunnerProgress
from tessera.domain.observed.snapshot import (
    EngineReading,
    InFlight,
    Readings,
    Snapshot,
)
from tessera.domain.plan import Plan, PlanMemory
from tessera.reconcile.observe import Observations
from tessera.reconcile.prober import Prober
from tests.batch_builders import NIGHT, decided, on_attempt
from tests.builders import NOW, a_pod, a_service, a_snapshot, a_workload, at, plan_of


class Engines:
    """Remember under which address they were asked."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    async def probe(self, base: str, model: str) -> str | None:
        raise AssertionError(base, model)

    async def in_flight(self, address: str) -> int | None:
        raise AssertionError(address)

    async def fetch_progress(self, address: str) -> FetchProgress | None:
        del address
        return None

    async def progress(self, address: str) -> RunnerProgress | None:
        self.asked.append(address)
        return RunnerProgress(attempt=1, done=5)


def _clock() -> datetime:
    return NOW


@pytest.mark.parametrize(
    ("address", "asked"), [("10.0.0.9", "10.0.0.9:8001"), ("fd00::9", "[fd00::9]:8001")]
)
async def test_the_answer_of_a_runner_is_kept_under_the_uid_of_its_batch(
    address: str, asked: str
) -> None:
    engines, senses, answered = Engines(), Observations(), asyncio.Event()
    asker = Prober(engines, senses, _clock, answered.set)
    running = Plan(batches={NIGHT: decided(on_attempt(pod={"address": address}))})
    asker.start(Snapshot(at=NOW), running)
    async with asyncio.timeout(5):
        await answered.wait()
    assert engines.asked == [asked]
    assert senses.runner_answers["uid-night"].progress.done == 5
    asker.start(Snapshot(at=NOW), Plan())
    assert senses.runner_answers == {}
    await asker.stop()


class Suspects:
    """Engines that hold so many requests, and take tokens or hang."""

    def __init__(self, requests: int | None) -> None:
        self._requests = requests
        self.counted: list[str] = []
        self.asked: list[tuple[str, str]] = []

    async def probe(self, base: str, model: str) -> str | None:
        self.asked.append((base, model))
        return None

    async def in_flight(self, address: str) -> int | None:
        self.counted.append(address)
        return self._requests

    async def progress(self, address: str) -> RunnerProgress | None:
        raise AssertionError(address)

    async def fetch_progress(self, address: str) -> FetchProgress | None:
        raise AssertionError(address)


@pytest.mark.parametrize(
    ("requests", "known", "asked"),
    [(3, 3, [("http://127.10.0.5:8000", "chat")]), (0, 0, []), (None, None, [])],
    ids=["busy", "idle", "silent"],
)
async def test_an_engine_that_stands_still_is_counted_and_if_busy_asked_for_a_token(
    requests: int | None, known: int | None, asked: list[tuple[str, str]]
) -> None:
    still, moving = a_pod("chat-0"), a_pod("chat-1", address="127.10.0.6")
    snapshot = a_snapshot(
        a_service(),
        pods=(still, moving),
        workloads=(a_workload(2),),
        readings=Readings(
            at=NOW,
            engines={
                pod.ref: EngineReading(steps=9.0, scraped_at=at(-1)) for pod in (still, moving)
            },
        ),
    )
    memory = PlanMemory(
        engine_progress={
            still.ref: EngineProgress(steps=9.0, since=at(-60)),
            moving.ref: EngineProgress(steps=8.0, since=at(-60)),
        }
    )
    engines, senses = Suspects(requests), Observations()
    asker = Prober(engines, senses, _clock, lambda: None)
    asker.start(snapshot, plan_of(snapshot, memory=memory))
    async with asyncio.timeout(5):
        while questions := [task for task in asyncio.all_tasks() if _is_question(task)]:
            await asyncio.wait(questions)
    assert engines.counted == ["127.10.0.5:8000"]
    assert engines.asked == asked
    found = senses.in_flight.get(still.ref)
    assert found == (None if known is None else InFlight(NOW, known))


def _is_question(task: "asyncio.Task[object]") -> bool:
    return task.get_name().startswith(("pod ", "token "))
