"""A cluster that is restricted to named namespaces lists nothing else."""

from tessera.adapters.kube.client import KubeCluster
from tessera.adapters.kube.connection import connect
from tessera.domain.kinds.kinds import ACCELERATOR_POOLS, INFERENCE_SERVICES
from tessera.resources.api_resources import DAEMON_SETS, NODES, POD_MONITORS
from tests.builders import SMALL
from world import World


async def test_only_the_named_namespaces_are_listed_and_what_has_none(
    cluster: KubeCluster, world: World
) -> None:
    for name in ("named-one", "named-two", "unnamed"):
        await cluster.request("POST", "/api/v1/namespaces", body={"metadata": {"name": name}})
        body = {
            "apiVersion": INFERENCE_SERVICES.api_version,
            "kind": INFERENCE_SERVICES.kind,
            "metadata": {"name": "chat", "namespace": name},
            "spec": {"model": {"uri": SMALL}},
        }
        status, answer = await cluster.request("POST", INFERENCE_SERVICES.path(name), body=body)
        assert status == 201, answer
    namespaces = ("named-one", "named-two", "not-there")
    restricted = KubeCluster(await connect(str(world.kubeconfig)), namespaces, "unnamed")
    try:
        services = await restricted.list(INFERENCE_SERVICES)
        assert services is not None
        assert [seen.key.namespace for seen in services.items] == ["named-one", "named-two"]
        assert services.version > 0
        nodes = await restricted.list(NODES)
        assert nodes is not None
        assert nodes.items
        assert await restricted.list(ACCELERATOR_POOLS) is not None
        assert await restricted.list(POD_MONITORS) is None
        assert (restricted.scopes(NODES), restricted.scopes(DAEMON_SETS)) == ((None,), ("unnamed",))
        assert await restricted.list(DAEMON_SETS) is not None
    finally:
        await restricted.close()
