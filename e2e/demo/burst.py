"""Step 3: reserved devices first, on-demand ones for a burst, and back when there is room."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from decimal import Decimal

from demo.cluster import InstalledCluster, Json, Ref, StepError, all_ready, until
from demo.streams import streaming

SERVICE, OTHER = Ref("team-a", "chat"), Ref("team-b", "mail")
RESERVED, BURST = "a100-reserved", "a100-ondemand"
_PEAK, _AFTER = 5, 1
_TOKENS = 40
_LOOK_SECONDS = 0.25
_PATIENCE = 120.0
_POOL: Json = {
    "apiVersion": "tessera.dev/v1alpha1",
    "kind": "AcceleratorPool",
    "metadata": {"name": BURST},
    "spec": {
        "nodeSelector": {
            "nvidia.com/gpu.product": "NVIDIA-A100-SXM4-80GB",
            "karpenter.sh/capacity-type": "on-demand",
        },
        "tier": "OnDemand",
        "prices": [{"from": "2026-01-01", "perGPUHour": "4.10", "currency": "USD"}],
    },
}
_PATH = f"/apis/tessera.dev/v1alpha1/acceleratorpools/{BURST}"


@dataclass(slots=True)
class BurstRecord:
    """What the status said of the variants, and what they cost."""

    said: set[str] = field(default_factory=set)
    prices: dict[str, Decimal] = field(default_factory=dict)
    """Of a replica per hour, by pool."""
    hours: dict[str, Decimal] = field(default_factory=dict)
    """Of all replicas, by pool."""

    def cost(self, pool: str) -> Decimal:
        return self.hours.get(pool, Decimal()) * self.prices[pool]


async def run(cluster: InstalledCluster) -> None:
    """Use an on-demand pool for what reserved devices cannot take; no stream may break."""
    await cluster.api.apply(_PATH, _POOL, "kubectl")
    base = await cluster.address(SERVICE)
    async with (
        _recording(cluster) as record,
        streaming({SERVICE.name: base}, tokens=_TOKENS) as streams,
    ):
        reserved = await _scale_to_peak(cluster)
        await _scale(cluster, OTHER, 0)
        cluster.say(f"{OTHER} leaves, so a reserved device is free")
        await _wait_for(cluster, {RESERVED: reserved + 1, BURST: _PEAK - reserved - 1})
        await _scale(cluster, SERVICE, _AFTER)
        await _wait_for(cluster, {RESERVED: _AFTER})
    if streams.broken or not streams.whole:
        raise StepError(f"{len(streams.broken)} streams broke: {streams.broken[:1]}")
    _show_cost(cluster, record, reserved, streams.whole)
    for ref in (SERVICE, OTHER):
        await cluster.patch(ref, {"replicas": None})
    await cluster.api.delete(_PATH)
    await all_ready(cluster)


async def _scale_to_peak(cluster: InstalledCluster) -> int:
    """Scale beyond the reserved devices; return how many of the replicas have one."""
    await _scale(cluster, SERVICE, _PEAK)
    counts = await until(
        lambda: _ready_by_pool(cluster),
        lambda counts: sum(counts.values()) == _PEAK,
        f"{_PEAK} replicas are ready",
        _PATIENCE,
    )
    if not counts.get(BURST) or not counts.get(RESERVED):
        raise StepError(f"the replicas are not on both pools: {counts}")
    reserved: int = counts[RESERVED]
    return reserved


async def _scale(cluster: InstalledCluster, ref: Ref, replicas: int) -> None:
    cluster.say(f"kubectl scale tsvc/{ref.name} --replicas={replicas}")
    await cluster.run(
        *("kubectl", "-n", ref.namespace, "scale"), f"tsvc/{ref.name}", f"--replicas={replicas}"
    )


async def _wait_for(cluster: InstalledCluster, expected: Mapping[str, int]) -> None:
    await until(
        lambda: _ready_by_pool(cluster),
        lambda counts: counts == expected,
        f"the replicas of {SERVICE} are on {expected}",
        _PATIENCE,
    )


async def _ready_by_pool(cluster: InstalledCluster) -> Mapping[str, int]:
    status = (await cluster.service(SERVICE)).get("status", {})
    variants = status.get("variants")
    if not variants:
        return {status["variant"]["pool"]: status.get("readyReplicas", 0)}
    return {each["pool"]: each["readyReplicas"] for each in variants if each["replicas"]}


@contextlib.asynccontextmanager
async def _recording(cluster: InstalledCluster) -> AsyncIterator[BurstRecord]:
    """Print why variants change, and count what they cost, for the time of the block."""
    record = BurstRecord()

    async def look() -> None:
        at = time.monotonic()
        while True:
            await asyncio.sleep(_LOOK_SECONDS)
            status = (await cluster.service(SERVICE)).get("status", {})
            hours = Decimal(time.monotonic() - at) / 3600
            at = time.monotonic()
            for variant in status.get("variants") or ():
                _note(cluster, record, variant, hours)

    task = asyncio.create_task(look())
    try:
        yield record
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def _note(cluster: InstalledCluster, record: BurstRecord, variant: Json, hours: Decimal) -> None:
    pool, message = variant["pool"], variant.get("message")
    record.prices[pool] = Decimal(variant["perHour"])
    record.hours[pool] = record.hours.get(pool, Decimal()) + variant["replicas"] * hours
    if message and message not in record.said:
        record.said.add(message)
        cluster.say(f"{pool} ({variant['tier']}): {variant['reason']}: {message}")


def _show_cost(cluster: InstalledCluster, record: BurstRecord, reserved: int, whole: int) -> None:
    burst, prices = _PEAK - reserved, record.prices
    hourly = reserved * prices[RESERVED] + burst * prices[BURST]
    paid, extra = record.cost(RESERVED), record.cost(BURST)
    alone = sum(record.hours.values()) * prices[BURST]
    cluster.say(
        f"{whole} streams, none broke. At the peak {_PEAK} replicas cost {hourly:.2f} USD an hour: "
        f"{reserved} on reserved devices, which are paid anyway, and {burst} on demand for "
        f"{burst * prices[BURST]:.2f}. One variant: all on demand {_PEAK * prices[BURST]:.2f}, and "
        f"with reserved devices alone {burst} replicas would have waited. The burst cost "
        f"{paid + extra:.4f} USD, of which {extra:.4f} on demand; all on demand {alone:.4f}"
    )
