"""Under the policy `Capacity` a service keeps its SLO through a burst, and gives back replicas."""

import asyncio
import contextlib
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import pytest

from scenarios.actions import ScenarioNamespace
from scenarios.gateway import Gateway, answered
from scenarios.replay import (
    Answer,
    Target,
    failures,
    poisson_trace,
    replay,
    share_within,
    shares_by_window,
    stream_until,
)
from scenarios.scaling import (
    OUTPUT_TOKENS,
    PROMPT_TOKENS,
    REPLICA_RATE,
    ScalingRecorder,
    apply_scaled_service,
    recording,
    start_up_seconds,
    status_writes,
    write_fleet,
)
from world import World, start
from world.testing import eventually

_TTFT_SECONDS, _GOAL = 1.0, 0.95
_FLOOR = 2
# Arrivals in multiples of what a replica carries.
_BASE, _BURST, _STEADY = 1.0, 3.0, 2.4
_BURST_BEGIN, _BURST_END = 100.0, 340.0
_STEADY_SECONDS, _WATCHED_SECONDS = 700.0, 600.0
_WINDOW_SECONDS, _STEP_SECONDS = 60.0, 10.0
_REACTION_SECONDS = 60.0
_FLOOR_SECONDS = 15 * 60
# In two minutes, although all gauges move each second.
_MAX_STATUS_WRITES = 4


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with start(fleet=write_fleet(tmp_path_factory.mktemp("fleet"))) as world:
        yield world


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What the clients of one service saw."""

    answers: Sequence[Answer]

    def burst(self) -> float:
        burst = [each for each in self.answers if _BURST_BEGIN <= each.second < _BURST_END]
        return share_within(burst, _TTFT_SECONDS)

    def windows(self, since: float) -> list[tuple[float, float, int]]:
        """Return the windows outside the time in which a burst cannot be served yet."""
        return [
            window
            for window in shares_by_window(
                self.answers, _TTFT_SECONDS, span=_WINDOW_SECONDS, step=_STEP_SECONDS
            )
            if window[0] + _WINDOW_SECONDS <= _BURST_BEGIN or window[0] >= since
        ]

    def report(self) -> str:
        windows = shares_by_window(
            self.answers, _TTFT_SECONDS, span=_WINDOW_SECONDS, step=_WINDOW_SECONDS / 2
        )
        shown = ", ".join(f"{begin:.0f} s {share:.1%}" for begin, share, _ in windows)
        return f"{len(self.answers)} requests, burst {self.burst():.1%}; by minute: {shown}"


def _burst_rate(second: float) -> float:
    return REPLICA_RATE * (_BURST if _BURST_BEGIN <= second < _BURST_END else _BASE)


async def _play(namespace: ScenarioNamespace, targets: dict[str, Target]) -> ScalingRecorder:
    """Play the same burst at two policies, and a steady load beside; check what is promised."""
    say = namespace.cluster.say
    lengths = {"prompt_tokens": PROMPT_TOKENS, "output_tokens": OUTPUT_TOKENS}
    burst = poisson_trace(_burst_rate, _BURST_END, **lengths, seed=7)
    steady = poisson_trace(lambda _: REPLICA_RATE * _STEADY, _STEADY_SECONDS, **lengths, seed=8)
    ended = asyncio.Event()
    async with recording(namespace, *targets) as recorder, asyncio.TaskGroup() as group:
        keep = replace(targets["capacity"], keeps_connections=True)
        streams = [group.create_task(stream_until(keep, ended, 400)) for _ in range(2)]
        steady_load = group.create_task(replay(targets["steady"], steady))
        by_capacity = group.create_task(replay(targets["capacity"], burst))
        by_queue = group.create_task(replay(targets["queue"], burst))
        capacity = Outcome(answers=await by_capacity)
        queue = Outcome(answers=await by_queue)
        lead = await start_up_seconds(namespace, "capacity")
        left_at = recorder.second
        say(f"start-up {lead:.0f} s; capacity: {capacity.report()}")
        say(f"queue: {queue.report()}")

        async def floor_is_desired() -> None:
            assert recorder.samples["capacity"][-1].desired == _FLOOR

        await eventually(floor_is_desired, within=_FLOOR_SECONDS)
        await wait_for_replicas_of(namespace, "capacity", _FLOOR)
        say(f"back at the floor {recorder.second - left_at:.0f} s after the load left")
        watched = Outcome(answers=await steady_load)
        ended.set()
    for name in targets:
        say(recorder.report(name))
    since = time.time() - _WATCHED_SECONDS
    writes = [
        at - since
        for at in status_writes(namespace.cluster.world, namespace.name, "steady")
        if at >= since
    ]
    most = max(sum(first <= at < first + 120 for at in writes) for first in (0.0, *writes))
    say(f"steady: {len(writes)} status writes, at most {most} in two minutes")
    steady_share = share_within(
        [a for a in watched.answers if a.second >= _STEADY_SECONDS - _WATCHED_SECONDS],
        _TTFT_SECONDS,
    )
    changes = recorder.changes("steady", since=_STEADY_SECONDS - _WATCHED_SECONDS)
    say(f"steady: {len(changes)} changes in the last {_WATCHED_SECONDS:.0f} s, {steady_share:.1%}")
    long = [answer for stream in streams for answer in stream.result()]
    failed = failures([*capacity.answers, *watched.answers, *long])
    say(
        f"{len(long)} long streams; {len(failed)} failures: {failed[:3]}, and "
        f"{len(failures(queue.answers))} of the other policy: {failures(queue.answers)[:1]}"
    )
    judged = capacity.windows(_BURST_BEGIN + lead + _REACTION_SECONDS)
    low = [window for window in judged if window[1] < _GOAL]
    late = [window for window in low if recorder.is_late(window[0], window[0] + _WINDOW_SECONDS)]
    say(f"{len(low)} of {len(judged)} windows below the goal, {len(late)} on a late machine: {low}")
    assert not failed
    assert [window for window in low if window not in late] == []
    assert capacity.burst() > queue.burst()
    assert len(changes) <= 1
    # One for each five minutes of the SLO, and a few for another reason or another speed.
    assert most <= _MAX_STATUS_WRITES
    return recorder


async def wait_for_replicas_of(namespace: ScenarioNamespace, name: str, count: int) -> None:
    async def are_ready() -> None:
        status = await namespace.service_status(name)
        assert (status.get("replicas"), status.get("readyReplicas")) == (count, count), status

    await eventually(are_ready)


async def _serve(namespace: ScenarioNamespace) -> None:
    for name, policy in (
        ("capacity", "Capacity"),
        ("queue", "QueueAndActivity"),
        ("steady", "Capacity"),
    ):
        await apply_scaled_service(namespace, name, policy)
    for name in ("capacity", "queue", "steady"):
        await wait_for_replicas_of(namespace, name, _FLOOR)


@pytest.mark.full
async def test_a_burst_through_the_gateway_is_served_within_the_slo(gateway: Gateway) -> None:
    namespace = gateway.namespace
    await _serve(namespace)
    headers = {"Authorization": f"Bearer {gateway.key}"}
    targets = {
        name: Target(base=gateway.base, model=name, headers=headers)
        for name in ("capacity", "queue", "steady")
    }
    for name in targets:
        await answered(gateway, name)
    recorder = await _play(namespace, targets)
    # Until the gateway has reported for a while the engines alone show arrivals.
    later = [sample for sample in recorder.samples["steady"] if sample.second >= _REACTION_SECONDS]
    assert "EstimatedArrivals" not in {sample.reason for sample in later}


@pytest.mark.full
async def test_a_burst_without_the_gateway_is_served_by_estimated_arrivals(
    namespace: ScenarioNamespace,
) -> None:
    await _serve(namespace)
    targets = {
        name: Target(base=f"{await namespace.cluster.address(namespace.ref(name))}/v1", model=name)
        for name in ("capacity", "queue", "steady")
    }
    recorder = await _play(namespace, targets)
    assert recorder.reasons("steady")["EstimatedArrivals"]


@pytest.mark.full
async def test_clients_that_keep_their_connection_leave_the_new_replica_idle_and_it_is_said(
    namespace: ScenarioNamespace,
) -> None:
    await apply_scaled_service(namespace, "capacity", "Capacity", minReplicas=1)
    await wait_for_replicas_of(namespace, "capacity", 1)
    base = f"{await namespace.cluster.address(namespace.ref('capacity'))}/v1"
    target = Target(base=base, model="capacity", keeps_connections=True)
    ended = asyncio.Event()
    async with recording(namespace, "capacity") as recorder, asyncio.TaskGroup() as group:

        async def imbalance_is_said() -> None:
            await namespace.check_condition("capacity", "LoadBalanced", "Unbalanced")
            assert recorder.reasons("capacity")["EstimatedArrivals"]

        # More than a replica runs at once.
        streams = [group.create_task(stream_until(target, ended, 200)) for _ in range(45)]
        with contextlib.ExitStack() as stack:
            stack.callback(ended.set)
            await eventually(imbalance_is_said)
    namespace.cluster.say(recorder.report("capacity"))
    assert not failures(answer for stream in streams for answer in stream.result())
