"""A service of a floor on two pools under streams: its healthy replicas, and what they cost."""

import contextlib
import itertools
import json
import time
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any, NamedTuple

from demo.cluster import InstalledCluster, Json, condition
from demo.protected_streams import ProtectedStream
from demo.ready_replicas import MinimumReady, watch_minimum_ready
from scenarios.actions import ScenarioNamespace
from scenarios.gateway import Gateway, answered
from scenarios.lifecycle import POOL_LABEL
from scenarios.tiers import broken, list_pods, streaming_clients, takes_requests
from tessera.domain.hardware.pools import weight_of
from tessera.domain.kinds.kinds import ACCELERATOR_POOLS, INFERENCE_SERVICES, TENANT_BUDGETS
from tessera.domain.names import VARIANT_LABEL
from tessera.resources.api_resources import NODES
from world.testing import eventually

RESERVED, ON_DEMAND, SLICES, H100 = "floor-reserved", "floor-od", "floor-slices", "floor-h100"
CLIENTS = 60
EDIT = "edit"
BAD_IMAGE = "example.invalid/vllm:typo"
# A stream lasts five seconds, and replicas have room for all streams when some are away.
_TOKENS, _STEP_SECONDS, _MAX_NUM_SEQS = 5, 1.0, 100
_PRODUCT = "nvidia.com/gpu.product"
_A100_PRICES = {"Reserved": "2.00", "OnDemand": "3.36"}


class Pool(NamedTuple):
    """A pool of the node with its name as label."""

    label: str
    tier: str
    price: str
    """Of a GPU and hour; devices of tier Reserved are paid anyway."""


FULL_POOLS = (
    Pool(RESERVED, "Reserved", _A100_PRICES["Reserved"]),
    Pool(ON_DEMAND, "OnDemand", _A100_PRICES["OnDemand"]),
)


class Costs(NamedTuple):
    """What the pods of a service cost an hour, and the least that so many pods could cost."""

    current: Decimal
    cheapest: Decimal


def an_edit(value: str) -> Json:
    """Return the fields of the spec that change the pod template harmlessly."""
    return {"podTemplate": {"annotations": {EDIT: value}}}


def slice_pools(tier: str) -> tuple[Pool, ...]:
    """Return a pool of slices of this tier, and one of dearer whole GPUs on demand."""
    return Pool(SLICES, tier, _A100_PRICES[tier]), Pool(H100, "OnDemand", "2.99")


@dataclass(slots=True)
class FloorScene:
    """The service `chat` on pools of its own, before and after what happens to it."""

    gateway: Gateway
    pools: tuple[Pool, ...]
    floor: int
    spec: Json = field(default_factory=dict)
    streams: list[ProtectedStream] = field(default_factory=list)
    minimum: MinimumReady = field(default_factory=MinimumReady)
    seconds: dict[str, float] = field(default_factory=dict)
    """Seconds from what happened to what was waited for."""
    costs: Costs | None = None
    """At rest."""
    _begun: float = 0.0

    @property
    def namespace(self) -> ScenarioNamespace:
        return self.gateway.namespace

    @property
    def cluster(self) -> InstalledCluster:
        return self.namespace.cluster

    @property
    def least_ready(self) -> int:
        """The fewest replicas that were Ready and not terminating, at any event of their watch."""
        return self.minimum.replicas["chat"]

    # What users do

    async def apply(self, **spec: Any) -> None:
        """Apply the service with these fields beside those of the scene."""
        self.spec |= spec
        env = [{"name": "TESSERA_SIM_SPEED", "value": json.dumps({"weights": _STEP_SECONDS})}]
        fields: Json = {
            "scaling": {"minReplicas": self.floor, "maxReplicas": self.floor},
            "slo": {"itlP95": "4s"},
            "context": {"maxModelLen": 1024, "typicalInputTokens": 50, "typicalOutputTokens": 8},
            "engine": {"maxNumSeqs": _MAX_NUM_SEQS},
            # The pools of the examples have slices alone.
            "placement": {"isolation": "Gpu"},
            **self.spec,
        }
        fields["podTemplate"] = {"env": env, **fields.get("podTemplate", {})}
        await self.namespace.apply_service(**fields)
        self.begin()

    async def edit(self, value: str) -> None:
        """Change the pod template harmlessly."""
        await self.apply(**an_edit(value))

    async def break_template(self) -> None:
        """Give the engines an image that cannot be pulled."""
        await self.apply(engine={"maxNumSeqs": _MAX_NUM_SEQS, "image": BAD_IMAGE})

    async def repair_template(self, **spec: Any) -> None:
        """Give the engines their own image again, and these fields."""
        del self.spec["engine"]
        await self.apply(**spec)

    async def rename_pool(self, pool: Pool, name: str) -> None:
        """Create the pool with another name, and delete the old one."""
        await create_pool(self.namespace, pool, name)
        await self.cluster.api.delete(ACCELERATOR_POOLS.path(None, pool.label))
        self.begin()

    async def use_up_budget(self, **limits: Any) -> None:
        """Set limits that allow less than what runs, and wait until they are enforced."""
        path = TENANT_BUDGETS.path(None, self.namespace.name)
        await self.cluster.api.patch(path, {"spec": limits})

        async def is_enforced() -> None:
            budget = await self.cluster.api.get(path)
            enforcing = condition(budget, "Enforcing")
            assert enforcing["status"] == "True", enforcing
            assert enforcing["observedGeneration"] == budget["metadata"]["generation"]

        await eventually(is_enforced)

    async def limit_gpus(self, count: int) -> None:
        """Allow so many GPUs in the namespace."""
        quota = {
            "apiVersion": "v1",
            "kind": "ResourceQuota",
            "metadata": {"name": "gpus"},
            "spec": {"hard": {"requests.nvidia.com/gpu": str(count)}},
        }
        path = f"/api/v1/namespaces/{self.namespace.name}/resourcequotas"
        await self.cluster.api.create(path, quota)

        async def is_counted() -> None:
            status = (await self.cluster.api.get(f"{path}/gpus")).get("status", {})
            assert status.get("used") == {"requests.nvidia.com/gpu": str(self.floor)}, status

        await eventually(is_counted)

    # What is waited for

    def begin(self) -> None:
        """Count seconds from now."""
        self._begun = time.monotonic()

    def take_time(self, name: str) -> None:
        self.seconds[name] = time.monotonic() - self._begun

    async def check_counts(self, expected: Mapping[str, int], edit: str = "") -> None:
        """Assert that so many replicas of each variant serve, and that no other pod exists.

        They have an image that can be pulled, and this value of the edit.
        """
        counts: Counter[str] = Counter()
        for pod in await list_pods(self.namespace):
            is_newest = pod["metadata"].get("annotations", {}).get(EDIT, "") == edit
            is_good = pod["spec"]["containers"][0]["image"] != BAD_IMAGE
            serves = takes_requests(pod) and is_newest and is_good
            variant = pod["metadata"]["labels"][VARIANT_LABEL]
            counts[variant if serves else f"{variant} that does not serve"] += 1
        assert counts == expected, await self.describe()

    async def settle(self, name: str, expected: Mapping[str, int], edit: str = "") -> None:
        """Wait until the newest spec is rolled out to these replicas and no other pod exists."""

        async def is_settled() -> None:
            await self.check_counts(expected, edit)
            service = await self.cluster.api.get(
                INFERENCE_SERVICES.path(self.namespace.name, "chat")
            )
            progressing = condition(service, "Progressing")
            assert progressing.get("reason") == "RolloutComplete", progressing
            assert progressing["observedGeneration"] == service["metadata"]["generation"]

        await eventually(is_settled)
        self.take_time(name)

    async def outlast(self, count: int) -> None:
        """Wait until so many further streams have ended."""
        ended = len(self._ended_streams()) + count

        async def have_ended() -> None:
            assert len(self._ended_streams()) >= ended

        await eventually(have_ended)

    def _ended_streams(self) -> list[ProtectedStream]:
        return [stream for stream in self.streams if stream.is_done or stream.failure]

    async def is_starting_badly(self) -> None:
        """Assert that a replica with the bad image waits for it."""
        await self.namespace.check_condition("chat", "Progressing", "ImagePullFailed")

    async def rest_at_least_cost(self) -> None:
        """Wait until the pods that run cost as little as those of the floor can."""

        async def cost_least() -> None:
            self.costs = await count_costs(self.namespace, self.pools, self.floor)
            assert self.costs.current == self.costs.cheapest, await self.describe()

        await eventually(cost_least)

    def end(self, *, away: int) -> None:
        """Say what was seen; so many replicas may have been away at a time, and no stream broke."""
        self.cluster.say(self.report())
        assert broken(self.streams) == []
        assert self.least_ready >= self.floor - away, self.report()

    # What people read

    async def describe(self) -> str:
        """Return conditions, variants and pods, for the message of a failed test."""
        status = await self.namespace.service_status()
        lines = [
            f"{each['type']} {each['status']} {each['reason']}: {each['message']}"
            for each in status.get("conditions", ())
        ]
        lines += [
            f"{each['name']}: {each['desiredReplicas']} desired: {each.get('message')}"
            for each in status.get("variants", ())
        ]
        lines.append(f"capacity {status.get('capacity')}, scaling {status.get('scaling')}")
        for pod in await list_pods(self.namespace):
            meta, node = pod["metadata"], pod["spec"].get("nodeName")
            state = "ready" if takes_requests(pod) else "not ready"
            if "deletionTimestamp" in meta:
                state = "ends"
            lines.append(f"{meta['name']} on {node}, {state}")
        return "\n".join(lines)

    def report(self) -> str:
        """Return what was seen, for people."""
        seconds = ", ".join(f"{name} after {value:.1f} s" for name, value in self.seconds.items())
        failed, costs = broken(self.streams), self.costs
        resumed = sum(stream.resumed > 0 for stream in self.streams)
        cost = (
            f"{costs.current:.4f} of {costs.cheapest:.4f} USD an hour" if costs else "not at rest"
        )
        return (
            f"at least {self.least_ready} of {self.floor} replicas Ready over "
            f"{self.minimum.events} events, {self.minimum.started} started; "
            f"{len(failed)} of {len(self.streams)} streams broke and {resumed} went on elsewhere; "
            f"{seconds}; {cost}; {failed[:3]}"
        )


async def create_pool(namespace: ScenarioNamespace, pool: Pool, name: str = "") -> None:
    """Create a pool for this namespace alone."""
    name = name or pool.label
    body = {
        "apiVersion": ACCELERATOR_POOLS.api_version,
        "kind": ACCELERATOR_POOLS.kind,
        "metadata": {"name": name},
        "spec": {
            "nodeSelector": {POOL_LABEL: pool.label},
            "tier": pool.tier,
            "prices": [{"from": "2026-01-01", "perGPUHour": pool.price, "currency": "USD"}],
            "namespaces": [namespace.name],
        },
    }
    await namespace.cluster.api.apply(ACCELERATOR_POOLS.path(None, name), body, "kubectl")


@contextlib.asynccontextmanager
async def floor_scene(
    gateway: Gateway, pools: tuple[Pool, ...], counts: Mapping[str, int], **spec: Any
) -> AsyncIterator[FloorScene]:
    """Serve a floor of as many replicas as these of each variant, and watch them."""
    namespace = gateway.namespace
    scene = FloorScene(gateway, pools, sum(counts.values()), spec)
    for pool in pools:
        await create_pool(namespace, pool)
    try:
        await scene.apply()
        await scene.settle("served", counts)
        await answered(gateway)
        async with watch_minimum_ready(scene.cluster, namespace.name) as scene.minimum:
            yield scene
    finally:
        await namespace.delete_service()
        await delete_pools(namespace.cluster)


async def delete_pools(cluster: InstalledCluster) -> None:
    """Delete the pools of the scenes, whatever their names are now."""
    for pool in (await cluster.api.get(ACCELERATOR_POOLS.path(None)))["items"]:
        if pool["spec"]["nodeSelector"].get(POOL_LABEL, "").startswith("floor-"):
            name = pool["metadata"]["name"]
            await cluster.api.delete(ACCELERATOR_POOLS.path(None, name))


@contextlib.asynccontextmanager
async def streaming(scene: FloorScene) -> AsyncIterator[None]:
    """Stream for the time of the block; after it all streams have ended."""
    async with streaming_clients(scene.gateway, CLIENTS, _TOKENS) as scene.streams:

        async def all_clients_stream() -> None:
            assert sum(bool(stream.pieces) for stream in scene.streams) >= CLIENTS

        await eventually(all_clients_stream)
        yield


async def count_costs(namespace: ScenarioNamespace, pools: tuple[Pool, ...], floor: int) -> Costs:
    """Return what the pods of the service cost, and the least of all ways to run so many pods."""
    by_label = {pool.label: pool for pool in pools}
    used: Counter[tuple[str, str]] = Counter()
    devices: Counter[tuple[str, str]] = Counter()
    prices: dict[tuple[str, str], Decimal] = {}
    for node in (await namespace.cluster.api.get(NODES.path(None)))["items"]:
        pool = by_label.get(node["metadata"]["labels"].get(POOL_LABEL, ""))
        if pool is None:
            continue
        for resource, count in node["status"]["allocatable"].items():
            product = node["metadata"]["labels"][_PRODUCT]
            if weight := weight_of(product, resource):
                key = pool.label, resource
                devices[key] += int(count)
                is_paid = pool.tier == "Reserved"
                prices[key] = Decimal(0) if is_paid else Decimal(pool.price) * weight
    for pod in await list_pods(namespace):
        limits = pod["spec"]["containers"][0]["resources"].get("limits", {})
        used.update(
            (pod["spec"].get("nodeName", ""), resource)
            for resource in limits
            if resource.startswith("nvidia.com/")
        )
    current = sum((prices[key] * count for key, count in used.items()), Decimal(0))
    keys = list(devices)
    cheapest = min(
        sum((prices[key] * count for key, count in zip(keys, counts, strict=True)), Decimal(0))
        for counts in itertools.product(*(range(devices[key] + 1) for key in keys))
        if sum(counts) >= floor
    )
    return Costs(current, cheapest)
