"""The objects that the services of a namespace share, and the plans that come meanwhile."""

import asyncio

from typing_extensions import override

from tessera.ports import ClusterObject
from tessera.reconcile.store import Store
from tessera.reconcile.writing.shared_objects import Installation, SharedObjectApplier
from tessera.reconcile.writing.write_queue import WriteQueue
from tessera.reconcile.writing.writer import Writer
from tessera.resources.api_resources import KINDS, SERVICE_ACCOUNTS
from tessera.resources.manifest import ObjectManifest
from tessera.resources.runner import RunnerImage
from tests.builders import a_service, a_snapshot, plan_of
from tests.memory_cluster import MemoryCluster


class SlowCluster(MemoryCluster):
    """Creates a ServiceAccount once it may."""

    def __init__(self) -> None:
        super().__init__()
        self.asked, self.may = asyncio.Event(), asyncio.Event()

    @override
    async def apply(
        self, manifest: ObjectManifest, *, subresource: str | None = None
    ) -> ClusterObject:
        if manifest.kind is SERVICE_ACCOUNTS:
            self.asked.set()
            await self.may.wait()
        return await super().apply(manifest, subresource=subresource)


async def test_a_newer_plan_waits_for_all_shared_objects_of_a_namespace() -> None:
    """It has further owners, with which the first object would be written again."""
    cluster, queue, store = SlowCluster(), WriteQueue(lambda: None), Store(KINDS)
    writer = Writer(cluster, store, lambda: True, is_superseded=queue.is_superseded)
    installation = Installation(
        namespace="tessera-system", ingress_namespaces=(), batch_image=RunnerImage("batch:test")
    )
    applier = SharedObjectApplier(writer, installation)

    async def decide(*names: str) -> None:
        plan = plan_of(a_snapshot(*map(a_service, names)))
        async with queue.paused():
            queue.replace(applier.work(plan, (), monitored=False))

    writing = asyncio.create_task(queue.run())
    await decide("chat")
    await cluster.asked.wait()
    deciding = asyncio.create_task(decide("chat", "code"))
    await asyncio.sleep(0)
    cluster.may.set()
    await deciding
    await asyncio.sleep(0)
    assert [key.plural for key in cluster.applied[:2]] == ["serviceaccounts", "networkpolicies"]
    writing.cancel()
    await asyncio.gather(writing, return_exceptions=True)
