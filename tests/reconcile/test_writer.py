"""What every writing request has in common."""

import asyncio

import pytest
from typing_extensions import override

from tessera.adapters.kube.leader_election import LEASE_DURATION, RENEW_DEADLINE
from tessera.api.node_layout import NodeLayoutStatus
from tessera.api.ref import Ref
from tessera.domain.kinds.kinds import NODE_LAYOUTS
from tessera.ports import ClusterError
from tessera.reconcile.store import Store
from tessera.reconcile.writing.writer import MAX_REQUEST_SECONDS, NotLeadingError, Writer, attempt
from tessera.resources.api_resources import KINDS, NODES
from tests.memory_cluster import MemoryCluster


def test_a_request_ends_before_another_process_may_lead() -> None:
    assert MAX_REQUEST_SECONDS <= LEASE_DURATION - RENEW_DEADLINE


async def test_leadership_is_checked_before_each_request() -> None:
    cluster = MemoryCluster()
    cluster.put(NODES, {"metadata": {"name": "a"}})
    leading = iter((True, False))
    writer = Writer(cluster, Store(KINDS), lambda: next(leading))
    await writer.patch_node("a", {"first": "yes"}, {})
    with pytest.raises(NotLeadingError):
        await attempt(writer.patch_node("a", {"second": "yes"}, {}))
    (key,) = cluster.objects
    assert cluster.objects[key]["metadata"]["labels"] == {"first": "yes"}
    assert writer.requests == 1


async def test_an_object_that_replaced_the_observed_one_is_not_deleted() -> None:
    cluster, store = MemoryCluster(), Store(KINDS)
    writer = Writer(cluster, store, lambda: True)
    key = cluster.put(NODE_LAYOUTS, {"metadata": {"name": "a"}})
    store.put(NODE_LAYOUTS, cluster.seen(key))
    cluster.discard(key)
    cluster.put(NODE_LAYOUTS, {"metadata": {"name": "a"}})
    await writer.delete(NODE_LAYOUTS, key)
    assert key in cluster.objects


async def test_a_refused_status_is_logged_once_until_it_is_taken(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """As by a CRD that is older than the operator: the status itself cannot tell."""
    cluster, store = MemoryCluster(), Store(KINDS)
    writer = Writer(cluster, store, lambda: True)
    key = cluster.put(NODE_LAYOUTS, {"metadata": {"name": "a"}})
    store.put(NODE_LAYOUTS, cluster.seen(key))
    cluster.refusals[key] = "status.files: field not declared in schema"

    async def write() -> list[str]:
        return await writer.apply_status(NODE_LAYOUTS, Ref("", "a"), NodeLayoutStatus())

    assert await write() == await write() == [cluster.refusals[key]]
    assert [record.message for record in caplog.records] == [
        "status refused: status.files: field not declared in schema"
    ]
    del cluster.refusals[key]
    assert await write() == []
    cluster.refusals[key] = "status.files: field not declared in schema"
    await write()
    cluster.discard(key)
    store.drop(NODE_LAYOUTS, key)
    writer.forget(lambda _: False)
    await write()
    assert len(caplog.records) == 3


class _HangingCluster(MemoryCluster):
    @override
    async def evict(self, pod: Ref, uid: str) -> None:
        del pod, uid
        await asyncio.Event().wait()


async def test_a_request_without_a_response_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tessera.reconcile.writing.writer.MAX_REQUEST_SECONDS", 0.01)
    writer = Writer(_HangingCluster(), Store(KINDS), lambda: True)
    with pytest.raises(ClusterError, match="evict pod team-a/chat-0: no response within"):
        await writer.evict(Ref("team-a", "chat-0"), "uid-1")
