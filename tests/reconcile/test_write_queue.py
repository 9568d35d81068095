"""How decided work is run, and what a newer plan replaces."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import pytest
from typing_extensions import override

from tessera.ports import ClusterObject
from tessera.reconcile.loop import Backlog
from tessera.reconcile.store import Store
from tessera.reconcile.writing import write_order, write_queue
from tessera.reconcile.writing.write_order import MANY, MAX_CONCURRENCY, Stage, Work, WorkKey
from tessera.reconcile.writing.write_queue import WriteQueue
from tessera.reconcile.writing.writer import NotLeadingError, SupersededError, Writer
from tessera.resources.api_resources import KINDS, NODES
from tessera.resources.manifest import ObjectKey
from tests.memory_cluster import MemoryCluster
from world.testing import eventually


def _key(name: str, stage: Stage = Stage.CHILDREN, namespace: str = "team-a") -> WorkKey:
    return WorkKey(ObjectKey("inferenceservices", namespace, name), stage)


@dataclass
class Harness:
    """A queue, and what its work did."""

    begun: list[str] = field(default_factory=list)
    written: list[str] = field(default_factory=list)
    woken: int = 0
    bursts_ended: int = 0
    queue: WriteQueue = field(init=False)

    def __post_init__(self) -> None:
        self.queue = WriteQueue(self._wake, self._end_burst)

    def _wake(self) -> None:
        self.woken += 1

    def _end_burst(self) -> None:
        self.bursts_ended += 1

    def work(
        self,
        name: str,
        stage: Stage = Stage.CHILDREN,
        *after: WorkKey,
        namespace: str = "team-a",
        until: asyncio.Event | None = None,
        plan: str = "",
    ) -> Work:
        """Return work that notes its name, stage and plan, once `until` is set."""

        async def write() -> None:
            self.begun.append(name)
            if until is not None:
                await until.wait()
            self.written.append(f"{name} {stage.name}{plan}")

        return Work(_key(name, stage, namespace), write, after)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        task = asyncio.create_task(self.queue.run())
        try:
            yield
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def hand_over(self, *works: Work) -> None:
        async with self.queue.paused():
            self.queue.replace(works)

    async def until_begun(self, works: int) -> None:
        async def have_begun() -> None:
            assert len(self.begun) == works

        await eventually(have_begun)

    async def until_written(self, *lines: str) -> None:
        async def are_written() -> None:
            assert self.written == list(lines)

        await eventually(are_written)


async def test_a_burst_ends_when_few_objects_are_left() -> None:
    async def burst_is_over() -> None:
        assert len(harness.written) == len(names)
        assert (harness.queue.backlog, harness.bursts_ended) == (Backlog.NONE, 1)

    harness, go_on = Harness(), asyncio.Event()
    names = [f"{index:03}" for index in range(MANY + 1)]
    async with harness.running():
        await harness.hand_over(*(harness.work(name, until=go_on) for name in names))
        await harness.until_begun(MAX_CONCURRENCY)
        assert (harness.queue.backlog, harness.bursts_ended) == (Backlog.OBJECTS, 0)
        go_on.set()
        await eventually(burst_is_over)


async def test_work_whose_request_a_plan_did_not_wait_for_sends_no_other(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(write_queue, "BURST_SETTLE_SECONDS", 0.01)
    harness, answer, superseded = Harness(), asyncio.Event(), list[bool]()

    async def write() -> None:
        harness.begun.append("old")
        await answer.wait()
        superseded.append(harness.queue.is_superseded())

    async def is_superseded() -> None:
        assert superseded == [True]

    others = [harness.work(str(index), until=answer) for index in range(MANY + MAX_CONCURRENCY)]
    async with harness.running():
        await harness.hand_over(Work(_key("old"), write), *others)
        await harness.until_begun(MAX_CONCURRENCY)
        await harness.hand_over(harness.work("old", plan=" new"))
        assert harness.written == []
        answer.set()
        await eventually(is_superseded)


async def test_few_children_are_no_burst() -> None:
    harness = Harness()
    await harness.hand_over(*(harness.work(str(index)) for index in range(MANY)))
    await harness.queue.drain()
    assert harness.bursts_ended == 0


async def test_what_needs_other_work_waits_while_that_is_in_progress() -> None:
    harness, answer = Harness(), asyncio.Event()
    async with harness.running():
        await harness.hand_over(
            harness.work("budget", Stage.FLEET, until=answer),
            harness.work("a", Stage.CHILDREN, _key("budget", Stage.FLEET)),
            harness.work("b"),
        )
        await harness.until_written("b CHILDREN")
        await asyncio.sleep(0.01)
        assert harness.written == ["b CHILDREN"]
        answer.set()
        await harness.until_written("b CHILDREN", "budget FLEET", "a CHILDREN")


async def test_a_status_is_written_when_its_time_has_come(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(write_order, "STATUS_DELAY_SECONDS", 0.01)
    harness = Harness()
    async with harness.running():
        await harness.hand_over(harness.work("a"), harness.work("a", Stage.STATUS, _key("a")))
        await harness.until_written("a CHILDREN", "a STATUS")


async def test_a_plan_waits_for_requests_on_their_way_and_nothing_is_sent_after_them() -> None:
    """A plan knows each write that was sent before it."""
    sent, answer = asyncio.Event(), asyncio.Event()

    class SlowCluster(MemoryCluster):
        @override
        async def patch_node(
            self,
            node: str,
            labels: Mapping[str, str | None],
            taints: Mapping[str, bool],
            annotations: Mapping[str, str | None] | None = None,
        ) -> ClusterObject:
            sent.set()
            await answer.wait()
            return await super().patch_node(node, labels, taints, annotations)

    cluster, harness = SlowCluster(), Harness()
    cluster.put(NODES, {"metadata": {"name": "a"}})
    store = Store(KINDS)
    writer = Writer(cluster, store, lambda: True, is_superseded=harness.queue.is_superseded)
    stopped = list[bool]()

    async def write() -> None:
        await writer.patch_node("a", {"first": "yes"}, {})
        try:
            await writer.patch_node("a", {"second": "yes"}, {})
        except SupersededError:
            stopped.append(True)
            raise

    async with harness.running():
        await harness.hand_over(Work(_key("a"), write))
        await sent.wait()
        deciding = asyncio.create_task(harness.hand_over(harness.work("b")))
        await asyncio.sleep(0.01)
        assert not deciding.done()
        answer.set()
        await deciding
        assert stopped
        (node,) = store.all(NODES).values()
        await harness.until_written("b CHILDREN")
    assert cluster.objects[node.key]["metadata"]["labels"] == {"first": "yes"}


async def test_a_request_that_hangs_delays_no_plan_but_the_next_one_of_its_owner(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def is_woken() -> None:
        assert (harness.woken, harness.written) == (1, ["b CHILDREN", "hangs CHILDREN"])

    monkeypatch.setattr(write_queue, "SETTLE_SECONDS", 0.01)
    harness, answer = Harness(), asyncio.Event()
    async with harness.running():
        await harness.hand_over(harness.work("hangs", until=answer))
        await harness.until_begun(1)
        await harness.hand_over(
            harness.work("hangs", plan=" new"),
            harness.work("hangs", Stage.STATUS, _key("hangs")),
            harness.work("b"),
        )
        await harness.until_written("b CHILDREN")
        assert harness.woken == 0
        answer.set()
        await eventually(is_woken)


async def test_no_plan_is_decided_while_what_all_rely_on_is_in_progress(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(write_queue, "SETTLE_SECONDS", 0.01)
    harness, answer = Harness(), asyncio.Event()
    async with harness.running():
        await harness.hand_over(harness.work("pools", Stage.FLEET, until=answer))
        await harness.until_begun(1)
        deciding = asyncio.create_task(harness.hand_over())
        await asyncio.sleep(0.05)
        assert not deciding.done()
        answer.set()
        await deciding


async def _fail() -> None:
    raise KeyError("a")


async def test_an_error_of_work_costs_its_object_alone_and_is_told_until_it_ends_well() -> None:
    harness = Harness()
    fails = Work(_key("fails"), _fail)
    await harness.hand_over(fails, harness.work("fails", Stage.STATUS, fails.key))
    await harness.hand_over(fails, harness.work("b"))
    await harness.queue.drain()
    assert harness.written == ["b CHILDREN"]
    assert [type(defect) for defect in harness.queue.defects.take()] == [KeyError]
    assert "KeyError" in harness.queue.defects.texts(fails.key.owner)[0]
    await harness.hand_over(harness.work("fails"))
    await harness.queue.drain()
    assert harness.queue.defects.texts(fails.key.owner) == []
    assert harness.queue.defects.take() == []


async def test_a_process_that_leads_no_more_writes_nothing_that_is_left() -> None:
    harness = Harness()

    async def fail() -> None:
        raise NotLeadingError

    await harness.hand_over(Work(_key("a"), fail), *(harness.work(f"b-{i}") for i in range(40)))
    await harness.queue.drain()
    assert len(harness.written) < MAX_CONCURRENCY
    with pytest.raises(NotLeadingError):
        await harness.hand_over()
