"""What is written of the actions on layouts."""

from tessera.api.pool_reasons import LayoutReady
from tessera.api.reasons import StatusVerdict
from tessera.api.ref import Ref
from tessera.domain.repartition.actions import PoolActions
from tessera.domain.repartition.cycle import Repartitions
from tessera.reconcile.store import Store
from tessera.reconcile.writing.layouts import LayoutApplier
from tessera.reconcile.writing.writer import Writer
from tessera.resources.api_resources import NODES, PODS
from tests.builders import NOW
from tests.memory_cluster import MemoryCluster


async def test_a_replica_whose_time_is_over_is_deleted_whatever_its_disruption_budget_says() -> (
    None
):
    cluster = MemoryCluster()
    pod = cluster.put(PODS, {"metadata": {"name": "x-0", "namespace": "evil"}})
    uid = cluster.objects[pod]["metadata"]["uid"]
    cluster.refusals[pod] = "needs 1 healthy pod and has 1"
    store = Store([NODES])
    applier = LayoutApplier(Writer(cluster, store, lambda: True), store, namespace=None)

    evicted = {Ref("evil", "x-0"): uid}

    async def carry_out(deletions: dict[Ref, str]) -> None:
        verdict = StatusVerdict(LayoutReady.REPARTITIONING, "")
        actions = PoolActions(verdict=verdict, evictions=evicted, deletions=deletions)
        await applier.write_actions(Repartitions(actions={"a100": actions}), frozenset(), NOW)

    await carry_out(deletions={})
    assert (pod in cluster.objects, list(applier.blocked_evictions)) == (True, list(evicted))
    await carry_out(deletions=evicted)
    assert (pod in cluster.objects, list(applier.blocked_evictions)) == (False, [])
