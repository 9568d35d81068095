"""The store follows the cluster: through lists, and watches that resume where these ended."""

import asyncio
from typing import Any

import pytest

from tessera.adapters.kube import object_parsing as wire
from tessera.api.api_resource import ApiResource
from tessera.domain.observed.snapshot import Node
from tessera.ports import ObjectList
from tessera.reconcile.observe import Observations
from tessera.reconcile.reflector import Reflector, VersionRollbackError
from tessera.reconcile.store import Store
from tessera.resources.api_resources import KINDS, NODES
from tests.memory_cluster import MemoryCluster
from world.testing import eventually


def a_body(name: str, label: str = "x") -> dict[str, Any]:
    return {"metadata": {"name": name, "labels": {"pool": label}}}


class ReflectorHarness:
    """A reflector with its store, which counts wake-ups."""

    def __init__(self) -> None:
        self.cluster = MemoryCluster()
        self.store = Store(KINDS)
        self.woken = 0
        self.reflector = Reflector(self.cluster, self.store, Observations(), self._wake)

    def _wake(self, _: ApiResource) -> None:
        self.woken += 1

    async def put(self, body: dict[str, Any]) -> None:
        """Write as another client, and read the event."""
        self.cluster.put(NODES, body)
        await self.reflector.watch(NODES)

    async def remove(self, name: str) -> None:
        """Delete as another client; no event is sent yet."""
        (key,) = [key for key in self.cluster.objects if key.name == name]
        await self.cluster.delete(NODES, key)

    def apply_response(self, name: str, version: int, label: str = "x") -> bool:
        """Store the response to an own write; return whether it changed anything."""
        body = a_body(name, label)
        meta = body["metadata"] | {"resourceVersion": str(version)}
        return self.store.put(NODES, wire.parse_object(NODES, body | {"metadata": meta}))

    def names(self) -> list[str]:
        return sorted(key.name for key in self.store.all(NODES))


async def listed_reflector() -> ReflectorHarness:
    harness = ReflectorHarness()
    await harness.reflector.list_all()
    return harness


async def test_nothing_is_complete_before_every_kind_was_listed() -> None:
    harness = ReflectorHarness()
    assert not harness.store.complete
    await harness.reflector.list_all()
    assert harness.store.complete


async def test_an_event_without_changes_wakes_no_cycle_and_keeps_the_identity() -> None:
    harness = await listed_reflector()
    await harness.put(a_body("one"))
    (first,) = harness.store.all(NODES).values()
    heartbeat = {"status": {"conditions": [{"type": "Other", "status": "True"}]}}
    await harness.put(a_body("one") | heartbeat)
    (second,) = harness.store.all(NODES).values()
    assert harness.woken == 1
    assert first.plan_input is second.plan_input


async def test_what_is_older_than_what_is_known_changes_nothing() -> None:
    harness = await listed_reflector()
    assert harness.apply_response("one", 7, "new")
    assert not harness.apply_response("one", 6, "old")
    (node_object,) = harness.store.all(NODES).values()
    assert isinstance(node_object.plan_input, Node)
    assert (node_object.plan_input.labels, node_object.version) == ({"pool": "new"}, 7)


async def test_an_old_answer_does_not_bring_back_what_was_deleted() -> None:
    harness = await listed_reflector()
    await harness.put(a_body("one"))
    await harness.remove("one")
    await harness.reflector.watch(NODES)
    deletion_version = harness.cluster.version
    assert not harness.apply_response("one", deletion_version - 1)
    assert harness.names() == []
    assert harness.apply_response("one", deletion_version + 1)


async def test_a_deletion_is_taken_from_the_watch() -> None:
    harness = await listed_reflector()
    await harness.put(a_body("one"))
    await harness.remove("one")
    await harness.reflector.watch(NODES)
    assert (harness.names(), harness.woken) == ([], 2)


async def test_an_interrupted_watch_resumes_where_it_ended() -> None:
    harness = await listed_reflector()
    await harness.put(a_body("one"))
    await harness.remove("one")
    harness.cluster.put(NODES, a_body("two"))
    await harness.reflector.watch(NODES)
    assert harness.names() == ["two"]
    await harness.reflector.watch(NODES)
    assert harness.woken == 3


async def run_until_named(harness: ReflectorHarness, expected: list[str]) -> None:
    async def are_named() -> None:
        assert harness.names() == expected

    task = asyncio.create_task(harness.reflector.run())
    try:
        await eventually(are_named)
    finally:
        task.cancel()


async def test_a_new_list_forgets_what_vanished_while_the_watch_was_blind() -> None:
    harness = await listed_reflector()
    for name in ("one", "two"):
        await harness.put(a_body(name))
    await harness.remove("two")
    harness.cluster.forgotten = harness.cluster.version
    await run_until_named(harness, ["one"])


async def test_a_listing_does_not_undo_what_events_brought_after_it_was_made() -> None:
    harness = ReflectorHarness()
    harness.apply_response("later", 12)
    early = wire.parse_object(NODES, a_body("early"))
    harness.store.replace(NODES, ObjectList((early,), version=10))
    assert harness.names() == ["early", "later"]


async def test_an_etcd_restored_while_the_connection_was_lost_ends_the_reflector() -> None:
    harness = await listed_reflector()
    for name in ("one", "two", "three"):
        await harness.put(a_body(name))
    harness.cluster.version = 2  # etcd was restored from a snapshot
    harness.cluster.broken_watches = 1
    task = asyncio.create_task(harness.reflector.run())
    await asyncio.wait({task}, timeout=60)
    assert task.done() or not task.cancel(), "the reflector goes on with what it knew"
    error = task.exception()
    assert isinstance(error, ExceptionGroup)
    assert [str(cause) for cause in error.exceptions] == [
        "nodes went back from version 3 to 2: etcd was restored; starting over"
    ]


async def test_what_was_lost_with_the_connection_is_listed_again() -> None:
    harness = await listed_reflector()
    for name in ("one", "two"):
        await harness.put(a_body(name))
    # The restored etcd has passed the last known version, and no event tells of what it lacks.
    await harness.remove("two")
    harness.cluster.forget_the_past()
    harness.cluster.forgotten, harness.cluster.broken_watches = 0, 1
    await run_until_named(harness, ["one"])


async def test_an_api_server_that_went_back_to_an_older_version_ends_the_reflector() -> None:
    harness = await listed_reflector()
    await harness.put(a_body("one"))
    await harness.put(a_body("two"))
    harness.cluster.version = 1  # etcd was restored from a snapshot
    with pytest.raises(VersionRollbackError, match="nodes went back from version 2 to 1"):
        await harness.reflector.list_all()


async def test_a_watch_that_is_stale_again_and_again_pauses_between_lists() -> None:
    harness = await listed_reflector()
    harness.cluster.forgotten = 10**9
    task = asyncio.create_task(harness.reflector.run())
    for _ in range(1000):
        await asyncio.sleep(0)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert harness.woken <= len(KINDS)


async def test_a_malformed_object_is_left_out_and_counted() -> None:
    harness = await listed_reflector()
    await harness.put(a_body("good"))
    await harness.put({"metadata": {"name": "odd", "labels": {"pool": 5}}})
    assert [node.name for node in harness.store.plan_inputs(NODES) if isinstance(node, Node)] == [
        "good"
    ]
    assert harness.store.malformed == {"nodes": 1}
    await harness.put(a_body("odd"))
    assert len(harness.store.plan_inputs(NODES)) == 2
    assert harness.store.malformed == {"nodes": 0}
