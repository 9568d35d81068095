"""The store stays true, although a watch may lie by silence."""

from typing import Any

from tessera.adapters import wire
from tessera.domain.snapshot import Node
from tessera.ports import Listing
from tessera.reconcile.mirror import Mirror
from tessera.reconcile.observe import Senses
from tessera.reconcile.store import Store
from tessera.resources.kinds import KINDS, NODES
from tests.memory_cluster import MemoryCluster


def a_body(name: str, label: str = "x") -> dict[str, Any]:
    return {"metadata": {"name": name, "labels": {"pool": label}}}


class Watching:
    """A mirror with its store, counting wake-ups."""

    def __init__(self) -> None:
        self.cluster = MemoryCluster()
        self.store = Store(KINDS)
        self.woken = 0
        self.mirror = Mirror(self.cluster, self.store, Senses(), self._wake)

    def _wake(self) -> None:
        self.woken += 1

    def event(self, kind: str | None, body: dict[str, Any], version: int = 0) -> None:
        meta = body["metadata"] | {"resourceVersion": str(version)}
        self.mirror.take(NODES, kind, wire.seen(NODES, body | {"metadata": meta}))

    def names(self) -> list[str]:
        return sorted(key.name for key in self.store.all(NODES))


async def test_nothing_is_complete_before_every_kind_was_listed() -> None:
    watching = Watching()
    assert not watching.store.complete
    await watching.mirror.seed()
    assert watching.store.complete


async def test_an_event_without_news_wakes_nobody_and_keeps_the_identity() -> None:
    watching = Watching()
    watching.event("ADDED", a_body("one"))
    (first,) = watching.store.all(NODES).values()
    heartbeat = a_body("one") | {"status": {"conditions": [{"type": "Other", "status": "True"}]}}
    watching.event("MODIFIED", heartbeat)
    (second,) = watching.store.all(NODES).values()
    assert watching.woken == 1
    assert first.value is second.value


async def test_what_is_older_than_what_is_known_changes_nothing() -> None:
    watching = Watching()
    watching.event("MODIFIED", a_body("one", "new"), 7)
    watching.event("MODIFIED", a_body("one", "old"), 6)
    (seen,) = watching.store.all(NODES).values()
    assert isinstance(seen.value, Node)
    assert (seen.value.labels, seen.version) == ({"pool": "new"}, 7)


async def test_an_old_answer_does_not_bring_back_what_was_deleted() -> None:
    watching = Watching()
    watching.event("ADDED", a_body("one"), 5)
    watching.event("DELETED", a_body("one"), 8)
    watching.event("MODIFIED", a_body("one"), 7)
    assert watching.names() == []
    watching.event("ADDED", a_body("one"), 9)
    assert watching.names() == ["one"]


async def test_a_deletion_is_taken_from_the_event() -> None:
    watching = Watching()
    watching.event("ADDED", a_body("one"))
    watching.event("DELETED", a_body("one"))
    assert (watching.names(), watching.woken) == ([], 2)


async def test_a_new_list_forgets_what_vanished_while_the_watch_was_blind() -> None:
    watching = Watching()
    for name in ("one", "two"):
        watching.cluster.put(NODES, a_body(name))
    await watching.mirror.seed()
    (gone,) = [key for key in watching.cluster.objects if key.name == "two"]
    await watching.cluster.delete(NODES, gone)
    assert watching.names() == ["one", "two"]
    watching.event(None, a_body("one"))
    assert await watching.mirror.settle() == ("nodes",)
    assert watching.names() == ["one"]


async def test_a_listing_does_not_undo_what_events_brought_after_it_was_made() -> None:
    watching = Watching()
    watching.event("ADDED", a_body("later"), 12)
    early = wire.seen(NODES, a_body("early"))
    watching.store.replace(NODES, Listing((early,), version=10))
    assert watching.names() == ["early", "later"]


async def test_listing_a_new_object_raises_no_doubt() -> None:
    watching = Watching()
    watching.event(None, a_body("one"))
    assert await watching.mirror.settle() == ()
