"""The kinds of faults, and in which order they come."""

import asyncio
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from demo.stage import NAMESPACE, Json, Stage
from soak.user import HOME, User, delete, persist
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
class Harm:
    """What faults act on."""

    stage: Stage
    user: User
    chance: random.Random

    @property
    def world(self) -> World:
        return self.stage.world

    async def operators(self) -> tuple[str, list[str]]:
        """The pod that holds the lease, and the others."""
        api, found = self.stage.api, dict[str, Json]()

        async def look() -> None:
            found["lease"] = await api.get(LEASE)
            pods = f"/api/v1/namespaces/{NAMESPACE}/pods"
            found["pods"] = await api.get(pods, labelSelector=OPERATORS)

        await persist(look)
        leader = found["lease"]["spec"].get("holderIdentity", "")
        names = sorted(one["metadata"]["name"] for one in found["pods"]["items"])
        return leader, [name for name in names if name != leader]

    def kill(self, namespace: str, pod: str, container: str) -> None:
        """SIGKILL; one that is just not running is dead already."""
        try:
            self.world.kill(namespace, pod, container)
        except WorldError as error:
            print(f"   {error}")

    async def away(self, seconds: float) -> None:
        """How long a fault lasts."""
        await asyncio.sleep(seconds)


async def leader_killed(harm: Harm) -> None:
    leader, _ = await harm.operators()
    harm.kill(NAMESPACE, leader, "operator")


async def standby_killed(harm: Harm) -> None:
    _, others = await harm.operators()
    harm.kill(NAMESPACE, harm.chance.choice(others), "operator")


async def etcd_paused(harm: Harm) -> None:
    harm.world.pause_program("etcd")
    try:
        await harm.away(10)
    finally:
        harm.world.resume_program("etcd")


async def engine_killed(harm: Harm) -> None:
    engines = [
        one
        for one in await asyncio.to_thread(harm.world.containers)
        if (one.namespace, one.container) == (HOME, "engine")
    ]
    if engines:
        one = harm.chance.choice(sorted(engines))
        harm.kill(one.namespace, one.pod, one.container)


async def node_silenced(harm: Harm) -> None:
    node = harm.chance.choice(NODES)
    harm.world.silence(node)
    await harm.away(harm.chance.uniform(4, 16))
    await asyncio.to_thread(harm.world.wake, node)


async def node_rebooted(harm: Harm) -> None:
    node = harm.chance.choice(NODES)
    await asyncio.to_thread(harm.world.end_node, node)
    await harm.away(harm.chance.uniform(1, 12))
    await asyncio.to_thread(harm.world.wake, node)


async def api_server_restarted(harm: Harm) -> None:
    await asyncio.to_thread(harm.world.end_program, "kube-apiserver")
    await harm.away(harm.chance.uniform(0, 2))
    harm.world.start_program("kube-apiserver")


async def controllers_restarted(harm: Harm) -> None:
    await asyncio.to_thread(harm.world.end_program, "kube-controller-manager")
    harm.world.start_program("kube-controller-manager")


async def prometheus_away(harm: Harm) -> None:
    await asyncio.to_thread(harm.world.end_program, "prometheus")
    await harm.away(12)
    harm.world.start_program("prometheus")


async def webhook_broken(harm: Harm) -> None:
    """The API server finds nobody to ask; what is wrong is then found in the turn."""
    path = SERVICES.path(NAMESPACE, "tessera-webhook")
    await persist(lambda: harm.stage.api.patch(path, {"spec": {"selector": {"soak": "nobody"}}}))
    await edits(harm)
    await persist(lambda: harm.stage.api.patch(path, {"spec": {"selector": {"soak": None}}}))


async def namespace_came_and_went(harm: Harm) -> None:
    name = f"guest-{harm.chance.randrange(3)}"
    await harm.user.namespace(name)
    for index in range(3):
        await harm.user.serve(f"guest-{index}", name, replicas=index % 2)
    await harm.away(harm.chance.uniform(0, 4))
    await harm.user.end_namespace(name)


async def edits(harm: Harm) -> None:
    for _ in range(6):
        name = harm.chance.choice(EDITED)
        await harm.user.serve(
            name,
            replicas=0,
            context={"maxModelLen": harm.chance.choice((2048, 4096, 8192))},
            drain={"timeout": harm.chance.choice(("30s", "60s"))},
        )


async def scale_burst(harm: Harm) -> None:
    for _ in range(8):
        await harm.user.scale("scaled", harm.chance.randrange(4))


async def pool_edited(harm: Harm) -> None:
    await harm.user.pool(harm.chance.choice(("1.50", "1.79", "2.10")))


async def children_deleted(harm: Harm) -> None:
    """By hand; the Service that the load goes to would get another address."""
    for kind in _CHILDREN:
        listed = await _listed(harm, kind.path(HOME))
        names = sorted(one["metadata"]["name"] for one in listed if _is_ours(one))
        names = [name for name in names if (kind, name) != (SERVICES, "chat")]
        if names:
            path = kind.path(HOME, harm.chance.choice(names))
            await persist(lambda path=path: delete(harm.stage.api, path))  # type: ignore[misc]


async def _listed(harm: Harm, path: str) -> list[Json]:
    found: list[Json] = []

    async def look() -> None:
        found[:] = (await harm.stage.api.get(path))["items"]

    await persist(look)
    return found


def _is_ours(item: Json) -> bool:
    labels = item["metadata"].get("labels", {})
    return bool(labels.get("app.kubernetes.io/managed-by") == "tessera")


Fault = Callable[[Harm], Awaitable[None]]
# They end processes of the operator, the last one by the loss of the lease.
ENDING: tuple[Fault, ...] = (leader_killed, standby_killed, etcd_paused)
OTHERS: tuple[Fault, ...] = (
    engine_killed,
    node_silenced,
    node_rebooted,
    api_server_restarted,
    controllers_restarted,
    prometheus_away,
    webhook_broken,
    namespace_came_and_went,
    edits,
    scale_burst,
    pool_edited,
    children_deleted,
)
# Afterwards the processes are left alone, so that one lives long enough to judge its memory.
ENDING_SHARE = 0.6


def schedule(count: int, chance: random.Random) -> list[Fault]:
    """`count` faults, every kind about as often as every other."""
    kinds = ENDING + OTHERS
    times, rest = divmod(count, len(kinds))
    drawn = [kind for kind in kinds for _ in range(times)] + chance.sample(kinds, rest)
    early = [kind for kind in drawn if kind in ENDING]
    late = [kind for kind in drawn if kind not in ENDING]
    chance.shuffle(late)
    with_early = max(len(early), round(count * ENDING_SHARE))
    first = early + late[: with_early - len(early)]
    chance.shuffle(first)
    return first + late[with_early - len(early) :]
