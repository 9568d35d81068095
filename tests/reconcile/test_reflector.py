"""The store stays true: from lists and from watches that go on where these ended."""

import asyncio
from typing import Any

import pytest

from tessera.adapters import object_parsing as wire
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


class Watching:
    """A mirror with its store, counting wake-ups."""

    def __init__(self) -> None:
        self.cluster = MemoryCluster()
        self.store = Store(KINDS)
        self.woken = 0
        self.mirror = Reflector(self.cluster, self.store, Observations(), self._wake)

    def _wake(self) -> None:
        self.woken += 1

    async def put(self, body: dict[str, Any]) -> None:
        """Somebody writes, and the watch tells it."""
        self.cluster.put(NODES, body)
        await self.mirror.watch(NODES)

    async def remove(self, name: str) -> None:
        """Somebody deletes; nothing is told yet."""
        (key,) = [key for key in self.cluster.objects if key.name == name]
        await self.cluster.delete(NODES, key)

    def seen(self, name: str, version: int, label: str = "x") -> bool:
        """An answer to a write of ours; True when it is news."""
        body = a_body(name, label)
        meta = body["metadata"] | {"resourceVersion": str(version)}
        return self.store.put(NODES, wire.parse_object(NODES, body | {"metadata": meta}))

    def names(self) -> list[str]:
        return sorted(key.name for key in self.store.all(NODES))


async def watching() -> Watching:
    found = Watching()
    await found.mirror.list_all()
    return found


async def test_nothing_is_complete_before_every_kind_was_listed() -> None:
    found = Watching()
    assert not found.store.complete
    await found.mirror.list_all()
    assert found.store.complete


async def test_an_event_without_news_wakes_nobody_and_keeps_the_identity() -> None:
    found = await watching()
    await found.put(a_body("one"))
    (first,) = found.store.all(NODES).values()
    heartbeat = {"status": {"conditions": [{"type": "Other", "status": "True"}]}}
    await found.put(a_body("one") | heartbeat)
    (second,) = found.store.all(NODES).values()
    assert found.woken == 1
    assert first.value is second.value


async def test_what_is_older_than_what_is_known_changes_nothing() -> None:
    found = await watching()
    assert found.seen("one", 7, "new")
    assert not found.seen("one", 6, "old")
    (seen,) = found.store.all(NODES).values()
    assert isinstance(seen.value, Node)
    assert (seen.value.labels, seen.version) == ({"pool": "new"}, 7)


async def test_an_old_answer_does_not_bring_back_what_was_deleted() -> None:
    found = await watching()
    await found.put(a_body("one"))
    await found.remove("one")
    await found.mirror.watch(NODES)
    gone_at = found.cluster.version
    assert not found.seen("one", gone_at - 1)
    assert found.names() == []
    assert found.seen("one", gone_at + 1)


async def test_a_deletion_is_taken_from_the_watch() -> None:
    found = await watching()
    await found.put(a_body("one"))
    await found.remove("one")
    await found.mirror.watch(NODES)
    assert (found.names(), found.woken) == ([], 2)


async def test_a_watch_that_was_cut_goes_on_where_it_stopped() -> None:
    found = await watching()
    await found.put(a_body("one"))
    await found.remove("one")
    found.cluster.put(NODES, a_body("two"))
    await found.mirror.watch(NODES)
    assert found.names() == ["two"]
    await found.mirror.watch(NODES)
    assert found.woken == 3


async def test_a_new_list_forgets_what_vanished_while_the_watch_was_blind() -> None:
    found = await watching()
    for name in ("one", "two"):
        await found.put(a_body(name))
    await found.remove("two")
    found.cluster.forgotten = found.cluster.version

    async def names() -> list[str]:
        return found.names()

    keeping = asyncio.create_task(found.mirror.run())
    try:
        await eventually(names, lambda told: told == ["one"])
    finally:
        keeping.cancel()


async def test_a_listing_does_not_undo_what_events_brought_after_it_was_made() -> None:
    found = Watching()
    found.seen("later", 12)
    early = wire.parse_object(NODES, a_body("early"))
    found.store.replace(NODES, ObjectList((early,), version=10))
    assert found.names() == ["early", "later"]


async def test_an_api_server_that_knows_less_than_it_told_ends_the_mirror() -> None:
    found = await watching()
    await found.put(a_body("one"))
    await found.put(a_body("two"))
    found.cluster.version = 1  # etcd was restored from a snapshot
    with pytest.raises(VersionRollbackError, match="nodes went back from version 2 to 1"):
        await found.mirror.list_all()


async def test_a_watch_that_is_stale_again_and_again_pauses_between_lists() -> None:
    found = await watching()
    found.cluster.forgotten = 10**9
    keeping = asyncio.create_task(found.mirror.run())
    for _ in range(1000):
        await asyncio.sleep(0)
    keeping.cancel()
    await asyncio.gather(keeping, return_exceptions=True)
    assert found.woken <= len(KINDS)
