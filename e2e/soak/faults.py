"""The kinds of faults, and in which order they come."""

import asyncio
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from demo.cluster import NAMESPACE, InstalledCluster, Json
from soak.user import HOME, User, delete, retry_until_accepted
from tessera.resources.api_resources import (
    DEPLOYMENTS,
    DISRUPTION_BUDGETS,
    NETWORK_POLICIES,
    SERVICE_ACCOUNTS,
    SERVICES,
)
from world import World, WorldError

NODES = ("a100-0", "a100-1")
EDITED = tuple(f"idle-{index}" for index in range(6))
LEASE = f"/apis/coordination.k8s.io/v1/namespaces/{NAMESPACE}/leases/tessera-operator"
OPERATORS = "app.kubernetes.io/component=operator"
_CHILDREN = (DEPLOYMENTS, SERVICES, SERVICE_ACCOUNTS, NETWORK_POLICIES, DISRUPTION_BUDGETS)


@dataclass(frozen=True, slots=True)
class FaultTarget:
    """What faults act on."""

    cluster: InstalledCluster
    user: User
    rng: random.Random

    @property
    def world(self) -> World:
        return self.cluster.world

    async def operators(self) -> tuple[str, list[str]]:
        """The pod that holds the lease, and the others."""
        api, objects = self.cluster.api, dict[str, Json]()

        async def look() -> None:
            objects["lease"] = await api.get(LEASE)
            pods = f"/api/v1/namespaces/{NAMESPACE}/pods"
            objects["pods"] = await api.get(pods, labelSelector=OPERATORS)

        await retry_until_accepted(look)
        leader = objects["lease"]["spec"].get("holderIdentity", "")
        names = sorted(pod["metadata"]["name"] for pod in objects["pods"]["items"])
        return leader, [name for name in names if name != leader]

    def kill(self, namespace: str, pod: str, container: str) -> None:
        """Send SIGKILL; a container that is not running is skipped."""
        try:
            self.world.kill(namespace, pod, container)
        except WorldError as error:
            print(f"   {error}")

    async def wait(self, seconds: float) -> None:
        """Wait for as long as a fault lasts."""
        await asyncio.sleep(seconds)


async def kill_leader(target: FaultTarget) -> None:
    leader, _ = await target.operators()
    target.kill(NAMESPACE, leader, "operator")


async def kill_standby(target: FaultTarget) -> None:
    _, others = await target.operators()
    target.kill(NAMESPACE, target.rng.choice(others), "operator")


async def pause_etcd(target: FaultTarget) -> None:
    target.world.pause_program("etcd")
    try:
        await target.wait(10)
    finally:
        target.world.resume_program("etcd")


async def kill_engine(target: FaultTarget) -> None:
    engines = [
        container
        for container in await asyncio.to_thread(target.world.containers)
        if (container.namespace, container.container) == (HOME, "engine")
    ]
    if engines:
        container = target.rng.choice(sorted(engines))
        target.kill(container.namespace, container.pod, container.container)


async def silence_node(target: FaultTarget) -> None:
    node = target.rng.choice(NODES)
    target.world.silence(node)
    await target.wait(target.rng.uniform(4, 16))
    await asyncio.to_thread(target.world.wake, node)


async def reboot_node(target: FaultTarget) -> None:
    node = target.rng.choice(NODES)
    await asyncio.to_thread(target.world.end_node, node)
    await target.wait(target.rng.uniform(1, 12))
    await asyncio.to_thread(target.world.wake, node)


async def restart_api_server(target: FaultTarget) -> None:
    await asyncio.to_thread(target.world.end_program, "kube-apiserver")
    await target.wait(target.rng.uniform(0, 2))
    target.world.start_program("kube-apiserver")


async def restart_controllers(target: FaultTarget) -> None:
    await asyncio.to_thread(target.world.end_program, "kube-controller-manager")
    target.world.start_program("kube-controller-manager")


async def stop_prometheus(target: FaultTarget) -> None:
    await asyncio.to_thread(target.world.end_program, "prometheus")
    await target.wait(12)
    target.world.start_program("prometheus")


async def break_webhook(target: FaultTarget) -> None:
    """Break the webhook, so that an invalid spec is found by the reconcile instead."""
    path = SERVICES.path(NAMESPACE, "tessera-webhook")
    await retry_until_accepted(
        lambda: target.cluster.api.patch(path, {"spec": {"selector": {"soak": "nobody"}}})
    )
    await edit_services(target)
    await retry_until_accepted(
        lambda: target.cluster.api.patch(path, {"spec": {"selector": {"soak": None}}})
    )


async def create_and_delete_namespace(target: FaultTarget) -> None:
    name = f"guest-{target.rng.randrange(3)}"
    await target.user.namespace(name)
    for index in range(3):
        await target.user.serve(f"guest-{index}", name, replicas=index % 2)
    await target.wait(target.rng.uniform(0, 4))
    await target.user.end_namespace(name)


async def edit_services(target: FaultTarget) -> None:
    for _ in range(6):
        name = target.rng.choice(EDITED)
        await target.user.serve(
            name,
            replicas=0,
            context={"maxModelLen": target.rng.choice((2048, 4096, 8192))},
            drain={"timeout": target.rng.choice(("30s", "60s"))},
        )


async def scale_burst(target: FaultTarget) -> None:
    for _ in range(8):
        await target.user.scale("scaled", target.rng.randrange(4))


async def edit_pool(target: FaultTarget) -> None:
    await target.user.pool(target.rng.choice(("1.50", "1.79", "2.10")))


async def delete_children(target: FaultTarget) -> None:
    """Delete children by hand, but not the load's Service: it would get another address."""
    for kind in _CHILDREN:
        listed = await _list(target, kind.path(HOME))
        names = sorted(item["metadata"]["name"] for item in listed if _is_managed(item))
        names = [name for name in names if (kind, name) != (SERVICES, "chat")]
        if names:
            path = kind.path(HOME, target.rng.choice(names))
            await retry_until_accepted(lambda path=path: delete(target.cluster.api, path))  # type: ignore[misc]


async def _list(target: FaultTarget, path: str) -> list[Json]:
    items: list[Json] = []

    async def look() -> None:
        items[:] = (await target.cluster.api.get(path))["items"]

    await retry_until_accepted(look)
    return items


def _is_managed(item: Json) -> bool:
    labels = item["metadata"].get("labels", {})
    return bool(labels.get("app.kubernetes.io/managed-by") == "tessera")


Fault = Callable[[FaultTarget], Awaitable[None]]
# These end processes of the operator, the last one by the loss of the lease.
ENDING: tuple[Fault, ...] = (kill_leader, kill_standby, pause_etcd)
OTHERS: tuple[Fault, ...] = (
    kill_engine,
    silence_node,
    reboot_node,
    restart_api_server,
    restart_controllers,
    stop_prometheus,
    break_webhook,
    create_and_delete_namespace,
    edit_services,
    scale_burst,
    edit_pool,
    delete_children,
)
# Afterwards the processes are left alone, so that one lives long enough to judge its memory.
ENDING_SHARE = 0.6


def schedule(count: int, rng: random.Random) -> list[Fault]:
    """`count` faults, every kind about as often as every other."""
    kinds = ENDING + OTHERS
    times, rest = divmod(count, len(kinds))
    drawn = [kind for kind in kinds for _ in range(times)] + rng.sample(kinds, rest)
    early = [kind for kind in drawn if kind in ENDING]
    late = [kind for kind in drawn if kind not in ENDING]
    rng.shuffle(late)
    with_early = max(len(early), round(count * ENDING_SHARE))
    first = early + late[: with_early - len(early)]
    rng.shuffle(first)
    return first + late[with_early - len(early) :]
