"""Under the policy `Capacity`, faults and the hands of people fail no stream."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Collection, Iterator
from dataclasses import dataclass, field
from datetime import timedelta

import aiohttp
import pytest

from demo.cluster import Json
from scenarios.actions import ScenarioNamespace
from scenarios.gateway import Gateway, answered
from scenarios.kills import kill_operator
from scenarios.replay import Answer, Target, failures, poisson_trace, replay
from scenarios.scaling import (
    OUTPUT_TOKENS,
    PROMPT_TOKENS,
    REPLICA_RATE,
    Sample,
    ScalingRecorder,
    apply_scaled_service,
    recording,
    write_fleet,
)
from scenarios.streams import kubectl_scale, wait_for_replicas
from scenarios.test_scale_down import without_exporter
from tessera.adapters.clock import now
from tessera.resources.api_resources import PODS
from world import World, start
from world.testing import PATIENCE_SECONDS, eventually, is_ready

_FLOOR, _PEAK, _MOST = 2, 3, 6
# Arrivals in multiples of what a replica carries; the peak needs three of them or four.
_LOW, _HIGH = 0.6, 2.8
_SCALING = {"maxReplicas": _MOST, "scaleDown": {"stabilizationWindow": "30s"}}
# The window, or three times the start-up; the arrivals of a minute; and the drain.
_DOWN_SECONDS = 240
_UP_SECONDS = 150
# After so long the signals that are left decide.
_MISSING_SECONDS = 300


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with start(fleet=write_fleet(tmp_path_factory.mktemp("fleet"))) as world:
        yield world


@dataclass(slots=True)
class Load:
    """Clients whose rate can be changed."""

    target: Target
    recorder: ScalingRecorder
    namespace: ScenarioNamespace
    answers: list[Answer] = field(default_factory=list)
    _task: asyncio.Task[list[Answer]] | None = None
    _draining: list[asyncio.Task[list[Answer]]] = field(default_factory=list)
    _ended: asyncio.Event = field(default_factory=asyncio.Event)

    async def play(self, rate: float, rounds: int = 200) -> None:
        """Send requests at this rate until told otherwise, in traces of ten seconds."""
        for number in range(rounds):
            if self._ended.is_set():
                return
            trace = poisson_trace(
                lambda _: rate * REPLICA_RATE,
                10,
                prompt_tokens=PROMPT_TOKENS,
                output_tokens=OUTPUT_TOKENS,
                seed=number,
            )
            self._draining.append(asyncio.create_task(replay(self.target, trace)))
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._ended.wait(), 10)

    @property
    def sample(self) -> Sample:
        """The latest one."""
        return self.recorder.samples["chat"][-1]

    @contextlib.asynccontextmanager
    async def at(self, rate: float) -> AsyncIterator[None]:
        """Keep a rate for the time of the block, and wait for the answers."""
        self._ended.clear()
        task = asyncio.create_task(self.play(rate))
        try:
            yield
        finally:
            self._ended.set()
            await task
            for answers in await asyncio.gather(*self._draining):
                self.answers += answers
            self._draining.clear()

    async def reach(self, count: int, within: float) -> float:
        """Wait until so many replicas serve and no others are there; return the seconds."""
        begin = self.recorder.second
        await wait_for_replicas(self.namespace, count, within=within)
        return self.recorder.second - begin

    async def reach_at_least(self, count: int, within: float) -> float:
        begin = self.recorder.second

        async def are_ready() -> None:
            status = await self.namespace.service_status()
            assert status.get("readyReplicas", 0) >= count, status

        await eventually(are_ready, within=within)
        return self.recorder.second - begin

    async def wait_for_desired(self, counts: Collection[int], within: float) -> None:
        """Wait until one of these numbers is desired."""

        async def is_desired() -> None:
            assert self.sample.desired in counts, self.sample

        await eventually(is_desired, within=within)

    async def wait_for_reason(self, reason: str, within: float) -> None:
        async def is_said() -> None:
            assert self.sample.reason == reason, self.sample

        await eventually(is_said, within=within)


@pytest.fixture
async def load(gateway: Gateway) -> AsyncIterator[Load]:
    """A service at its floor, and its clients; at the end none of their streams has failed."""
    namespace = gateway.namespace
    await apply_scaled_service(namespace, "chat", "Capacity", **_SCALING)
    target = Target(
        base=gateway.base, model="chat", headers={"Authorization": f"Bearer {gateway.key}"}
    )
    await wait_for_replicas(namespace, _FLOOR)
    await answered(gateway)
    async with recording(namespace, "chat") as recorder:
        load = Load(target, recorder, namespace)
        await recorder.look("chat")
        yield load
        namespace.cluster.say(recorder.report("chat"))
        failed = failures(load.answers)
        namespace.cluster.say(f"{len(load.answers)} streams, {len(failed)} failed: {failed[:5]}")


async def _engines(namespace: ScenarioNamespace) -> list[Json]:
    return [
        pod
        for pod in await namespace.list_objects(PODS)
        if pod["metadata"]["labels"].get("tessera.dev/service") == "chat"
        and "podIP" in pod.get("status", {})
    ]


@pytest.mark.full
async def test_without_the_dcgm_exporter_replicas_rise_and_fall(load: Load) -> None:
    async with without_exporter(load.namespace):
        async with load.at(_HIGH):
            await load.reach_at_least(_PEAK, _UP_SECONDS)
        async with load.at(_LOW):
            await load.reach(_FLOOR, _DOWN_SECONDS)
    assert not failures(load.answers)


@pytest.mark.full
async def test_without_prometheus_replicas_rise_and_after_five_minutes_fall_by_the_gateway(
    load: Load,
) -> None:
    world = load.namespace.cluster.world
    async with load.at(_LOW):
        await asyncio.sleep(60)  # until the lengths of requests are measured
        world.end_program("prometheus")
        lost_at = load.recorder.second
        await asyncio.sleep(40)  # until the last reading is too old
    try:
        async with load.at(_HIGH):
            await load.reach_at_least(_PEAK, _UP_SECONDS)
        async with load.at(_LOW):
            await load.wait_for_desired([_FLOOR], _MISSING_SECONDS + _DOWN_SECONDS)
            fell = load.recorder.changes("chat")[-1].second - lost_at
    finally:
        world.start_program("prometheus")
    load.namespace.cluster.say(f"the floor was decided {fell:.0f} s after Prometheus was lost")
    downs = [
        change.second - lost_at
        for before, change in zip(
            [load.recorder.samples["chat"][0], *load.recorder.changes("chat")],
            load.recorder.changes("chat"),
            strict=False,
        )
        if change.desired < before.desired
    ]
    assert min(downs) >= _MISSING_SECONDS - 10
    assert not failures(load.answers)


@pytest.mark.full
async def test_an_engine_that_shows_nan_stops_reductions_for_five_minutes(load: Load) -> None:
    async with load.at(_HIGH):
        await load.reach_at_least(_PEAK, _UP_SECONDS)
    (engine, *_) = await _engines(load.namespace)
    url = f"http://{engine['status']['podIP']}:8000/sim/nan"
    async with aiohttp.ClientSession() as session:
        (await session.post(url)).raise_for_status()
        begin = load.recorder.second
        async with load.at(_LOW):
            await load.wait_for_reason("FailedGetMetrics", _DOWN_SECONDS)
            await load.wait_for_desired(range(_PEAK), _MISSING_SECONDS + _DOWN_SECONDS)
            seconds = load.recorder.second - begin
            with contextlib.suppress(aiohttp.ClientError):  # it may be the one that left
                await session.delete(url)
            await load.reach(_FLOOR, _DOWN_SECONDS)
    load.namespace.cluster.say(
        f"the first replica was removed {seconds:.0f} s after the last number"
    )
    assert seconds >= _MISSING_SECONDS - 10
    assert not failures(load.answers)


@pytest.mark.full
async def test_a_vanished_node_fails_its_own_streams_alone(load: Load) -> None:
    async with load.at(_HIGH):
        await load.reach_at_least(_PEAK, _UP_SECONDS)
        by_node: dict[str, list[str]] = {}
        for pod in await _engines(load.namespace):
            by_node.setdefault(pod["spec"]["nodeName"], []).append(pod["metadata"]["name"])
        node, lost = min(by_node.items(), key=lambda item: len(item[1]))

        async def lost_are_not_ready() -> None:
            engines = await _engines(load.namespace)
            ready = {pod["metadata"]["name"] for pod in engines if is_ready(pod)}
            assert ready & set(lost) == set()
            status = await load.namespace.service_status()
            assert status.get("readyReplicas", 0) <= len(ready)

        begin = load.recorder.second
        load.namespace.cluster.world.end_node(node)
        try:
            await asyncio.sleep(30)  # the fault itself, not a wait for a state
            await eventually(lost_are_not_ready)
            await load.reach_at_least(_PEAK, _UP_SECONDS)
            seconds = load.recorder.second - begin
        finally:
            load.namespace.cluster.world.wake(node)
    load.namespace.cluster.say(
        f"{len(lost)} of {sum(map(len, by_node.values()))} replicas lost, replaced after "
        f"{seconds:.0f} s"
    )
    others = [
        answer
        for answer in load.answers
        if answer.failure
        and answer.replica not in lost
        and not any(name in answer.failure for name in lost)
    ]
    assert others == []


@pytest.mark.full
async def test_a_scale_up_goes_on_after_the_operator_was_killed(load: Load) -> None:
    async with load.at(_HIGH):
        await load.wait_for_desired(range(_FLOOR + 1, _MOST + 1), _UP_SECONDS)
        await kill_operator(load.namespace.cluster)
        seconds = await load.reach_at_least(_PEAK, _UP_SECONDS)
    load.namespace.cluster.say(f"{_PEAK} replicas {seconds:.0f} s after the kill")
    async with load.at(_LOW):
        await load.reach(_FLOOR, _DOWN_SECONDS)
    assert not failures(load.answers)


@pytest.mark.full
async def test_a_pause_keeps_the_replicas_until_it_ends(load: Load) -> None:
    cluster, ref = load.namespace.cluster, load.namespace.ref("chat")
    async with load.at(_HIGH):
        await load.reach_at_least(_PEAK, _UP_SECONDS)
    peak = load.sample.desired
    async with load.at(_LOW):
        await cluster.patch(ref, {"scaling": {"paused": {"by": "test: an incident"}}})
        await load.wait_for_reason("Paused", PATIENCE_SECONDS)
        await asyncio.sleep(150)  # longer than the hold and the minute of arrivals
        assert (load.sample.desired, load.sample.reason) == (peak, "Paused")
        await cluster.patch(ref, {"scaling": {"paused": None}})
        await load.reach(_FLOOR, _DOWN_SECONDS)
    assert not failures(load.answers)


@pytest.mark.full
async def test_a_manual_number_holds_until_it_is_given_back(load: Load) -> None:
    cluster, ref = load.namespace.cluster, load.namespace.ref("chat")
    async with load.at(_LOW):
        await kubectl_scale(cluster, ref, _PEAK + 1)
        await load.reach(_PEAK + 1, _UP_SECONDS)
        await asyncio.sleep(120)  # longer than the hold
        assert (load.sample.desired, load.sample.reason) == (_PEAK + 1, "SetByUser")
        await cluster.run(
            *("kubectl", "--namespace", ref.namespace, "patch", f"tsvc/{ref.name}"),
            *("--type=json", '--patch=[{"op": "remove", "path": "/spec/replicas"}]'),
        )
        await load.reach(_FLOOR, _DOWN_SECONDS)
    assert not failures(load.answers)


@pytest.mark.full
async def test_a_schedule_that_crosses_its_minute_adds_replicas_and_gives_them_back(
    load: Load,
) -> None:
    begin = now()

    def bounds(minutes: int, min_replicas: int) -> Json:
        at = begin + timedelta(minutes=minutes)
        return {"cron": f"{at.minute} {at.hour} * * *", "minReplicas": min_replicas}

    schedules = [bounds(-1, _FLOOR), bounds(2, _PEAK), bounds(4, _FLOOR)]
    async with load.at(_LOW):
        await load.namespace.cluster.patch(
            load.namespace.ref("chat"), {"scaling": {"schedules": schedules}}
        )
        await load.reach(_PEAK, 120 + _UP_SECONDS)
        (change,) = load.recorder.changes("chat")
        assert change.reason == "BoundsChanged"
        assert "spec.scaling.schedules[1]" in change.message
        await load.reach(_FLOOR, 180 + _DOWN_SECONDS)
    assert not failures(load.answers)
