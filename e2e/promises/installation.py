"""Tessera as Helm installs it for all scenes, the pools, and what a scene has of its own."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from demo.cluster import InstalledCluster, install
from scenarios.actions import ScenarioNamespace, a_budget
from scenarios.gateway import Gateway, create_key, ready_pods
from tessera.domain.kinds.kinds import ACCELERATOR_POOLS

# Beside ten processes that compute and two more of these commands a scene had a twentieth of the
# machine, and was not done after 300 s.
PATIENCE_SECONDS = 900
SLICES, RESERVED, BURST, MIG, SPOT = "slices", "a100-reserved", "burst", "mig", "spot"
_VALUES = (
    "gateway.enabled=true",
    "mig.enabled=true",
    "node.enabled=true",
    "node.partition=true",
    rf"node.nodeSelector.example\.org/pool={MIG}",
)
# Tier, price of a GPU, and the namespaces that may use it.
_POOLS = {
    SLICES: (
        "Reserved",
        "1.79",
        ("serve", "scale", "sleep", "gateway", "budget", "upgrade", "uninstall"),
    ),
    RESERVED: ("Reserved", "1.79", ("tier",)),
    BURST: ("OnDemand", "4.20", ("tier",)),
    MIG: ("Reserved", "3.40", ("repartition",)),
    SPOT: ("Spot", "0.80", ("batch",)),
}


async def install_release(cluster: InstalledCluster, *values: str) -> None:
    """Install or upgrade the chart with the values of the scenes and others."""
    await install(cluster, *_VALUES, *values)


async def create_pools(cluster: InstalledCluster) -> None:
    for name, (tier, price, namespaces) in _POOLS.items():
        body = {
            "apiVersion": ACCELERATOR_POOLS.api_version,
            "kind": ACCELERATOR_POOLS.kind,
            "metadata": {"name": name},
            "spec": {
                "nodeSelector": {"example.org/pool": name},
                "tier": tier,
                "prices": [{"from": "2026-01-01", "perGPUHour": price}],
                "namespaces": namespaces,
            },
        }
        await cluster.api.apply(ACCELERATOR_POOLS.path(None, name), body, "kubectl")


async def create_namespace(cluster: InstalledCluster, name: str) -> ScenarioNamespace:
    await cluster.api.create("/api/v1/namespaces", {"metadata": {"name": name}})
    return ScenarioNamespace(cluster, name)


@asynccontextmanager
async def gateway_for(namespace: ScenarioNamespace) -> AsyncIterator[Gateway]:
    """The gateway, with a budget of the namespace and a key of its tenant."""
    (pod,) = await ready_pods(namespace.cluster, 1, within=PATIENCE_SECONDS)
    address = pod["status"]["podIP"]
    async with a_budget(namespace, "100000"):
        key = await create_key(namespace, "first")
        yield Gateway(namespace, f"http://{address}:8443/v1", address, key)
