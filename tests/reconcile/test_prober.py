"""Which processes the operator probes, and under which address."""

import asyncio
from dataclasses import replace
from datetime import datetime
from functools import partial

import pytest
from typing_extensions import override

from tessera.api.model_files import PoolingTask
from tessera.domain.health.stall import EngineProgress
from tessera.domain.observed.model_reports import FetchProgress
from tessera.domain.observed.runner_reports import RunnerProgress
from tessera.domain.observed.snapshot import (
    EngineReading,
    InFlight,
    Readings,
    Ref,
    Snapshot,
)
from tessera.domain.planning.plan import Plan, PlanMemory
from tessera.reconcile.observe import ProbeAnswers
from tessera.reconcile.prober import Prober
from tests.batch_builders import NIGHT, on_attempt, plan_batch
from tests.builders import NOW, a_pod, a_service, a_snapshot, a_workload, at, plan_of


class RecordingEngines:
    """Records the addresses that are probed."""

    def __init__(self) -> None:
        self.addresses: list[str] = []

    async def probe(self, base: str, model: str, task: PoolingTask | None = None) -> str | None:
        raise AssertionError(base, model, task)

    async def in_flight(self, address: str) -> int | None:
        raise AssertionError(address)

    async def fetch_progress(self, address: str) -> FetchProgress | None:
        del address
        return None

    async def progress(self, address: str) -> RunnerProgress | None:
        self.addresses.append(address)
        return RunnerProgress(attempt=1, done=5)


def _clock() -> datetime:
    return NOW


@pytest.mark.parametrize(
    ("address", "queried"), [("10.0.0.9", "10.0.0.9:8001"), ("fd00::9", "[fd00::9]:8001")]
)
async def test_the_answer_of_a_runner_is_stored_under_the_uid_of_its_batch(
    address: str, queried: str
) -> None:
    engines, answers, answered = RecordingEngines(), ProbeAnswers(), asyncio.Event()
    prober = Prober(engines, answers, _clock, answered.set)
    plan = Plan(batches={NIGHT: plan_batch(on_attempt(pod={"address": address}))})
    prober.start(Snapshot(at=NOW), plan)
    async with asyncio.timeout(60):
        await answered.wait()
    assert engines.addresses == [queried]
    assert answers.runner_answers["uid-night"].progress.done == 5
    prober.start(Snapshot(at=NOW), Plan())
    assert answers.runner_answers == {}
    await prober.stop()


class SilentEngines(RecordingEngines):
    """Engines of which none answers."""

    @override
    async def progress(self, address: str) -> RunnerProgress | None:
        await super().progress(address)
        return None


async def test_a_silent_runner_is_remembered_since_it_was_first_asked() -> None:
    answers, plan = ProbeAnswers(), Plan(batches={NIGHT: plan_batch(on_attempt())})
    for engines, seconds in ((SilentEngines(), 0), (SilentEngines(), 60), (RecordingEngines(), 90)):
        prober = Prober(engines, answers, partial(at, seconds), lambda: None)
        assert answers.silent_runners == ({"uid-night": NOW} if seconds else {})
        prober.start(Snapshot(at=NOW), plan)
        async with asyncio.timeout(60):
            await asyncio.wait([task for task in asyncio.all_tasks() if _is_probe(task)])
    assert answers.silent_runners == {}


class StalledEngines:
    """Engines with a number of requests in flight, which answer or hang."""

    def __init__(self, requests: int | None) -> None:
        self._requests = requests
        self.counted_addresses: list[str] = []
        self.probes: list[tuple[str, str]] = []
        self.tasks: list[PoolingTask | None] = []

    async def probe(self, base: str, model: str, task: PoolingTask | None = None) -> str | None:
        self.probes.append((base, model))
        self.tasks.append(task)
        return None

    async def in_flight(self, address: str) -> int | None:
        self.counted_addresses.append(address)
        return self._requests

    async def progress(self, address: str) -> RunnerProgress | None:
        raise AssertionError(address)

    async def fetch_progress(self, address: str) -> FetchProgress | None:
        raise AssertionError(address)


@pytest.mark.parametrize(
    ("requests", "known", "probes"),
    [(3, 3, [("http://127.10.0.5:8000", "chat")]), (0, 0, []), (None, None, [])],
    ids=["busy", "idle", "silent"],
)
async def test_a_stalled_engine_is_counted_and_if_busy_asked_for_a_token(
    requests: int | None, known: int | None, probes: list[tuple[str, str]]
) -> None:
    stalled, moving = a_pod("chat-0"), a_pod("chat-1", address="127.10.0.6")
    snapshot = a_snapshot(
        a_service(),
        pods=(stalled, moving),
        workloads=(a_workload(2),),
        readings=Readings(
            at=NOW,
            engines={
                pod.ref: EngineReading(steps=9.0, scraped_at=at(-1)) for pod in (stalled, moving)
            },
        ),
    )
    memory = PlanMemory(
        engine_progress={
            stalled.ref: EngineProgress(steps=9.0, since=at(-60)),
            moving.ref: EngineProgress(steps=8.0, since=at(-60)),
        }
    )
    engines, answers = StalledEngines(requests), ProbeAnswers()
    prober = Prober(engines, answers, _clock, lambda: None)
    prober.start(snapshot, plan_of(snapshot, memory=memory))
    async with asyncio.timeout(60):
        while tasks := [task for task in asyncio.all_tasks() if _is_probe(task)]:
            await asyncio.wait(tasks)
    assert engines.counted_addresses == ["127.10.0.5:8000"]
    assert engines.probes == probes
    in_flight = answers.in_flight.get(stalled.ref)
    assert in_flight == (None if known is None else InFlight(NOW, known))


def _is_probe(task: "asyncio.Task[object]") -> bool:
    return task.get_name().startswith(("batch ", "pod ", "token "))


class HangingEngines(RecordingEngines):
    """Engines at one address never answer; all others do."""

    hanging = 0

    @override
    async def probe(self, base: str, model: str, task: PoolingTask | None = None) -> str | None:
        del model, task
        if "10.0.0.66" in base:
            self.hanging += 1
            await asyncio.Event().wait()
        return None


async def test_engines_that_hang_delay_no_probe_of_another_namespace() -> None:
    chat = a_service()
    hanging = [a_service(f"x-{index}", ref=Ref("evil", f"x-{index}")) for index in range(100)]
    addresses = {service.ref: "10.0.0.66" for service in hanging} | {chat.ref: "10.0.0.9"}
    snapshot = a_snapshot(*hanging, chat, addresses=addresses)
    plan = replace(plan_of(snapshot), services_to_probe=frozenset(addresses))
    engines, answers, answered = HangingEngines(), ProbeAnswers(), asyncio.Event()
    prober = Prober(engines, answers, _clock, answered.set)
    prober.start(snapshot, plan)
    async with asyncio.timeout(60):
        await answered.wait()
    assert answers.probe_results.keys() == {chat.ref}
    assert engines.hanging == 16
    await prober.stop()
