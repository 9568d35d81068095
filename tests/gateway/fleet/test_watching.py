"""What a gateway watches, when etcd was restored and when the gateway stops."""

import asyncio

import pytest
from typing_extensions import override

from tessera.gateway.fleet.watching import FleetWatch
from tessera.ports import ObjectList
from tessera.reconcile import reflector
from tessera.resources.api_resources import ACCELERATOR_POOLS, PRICE_LISTS, ApiResource
from tests.memory_cluster import MemoryCluster

A_POOL = {
    "apiVersion": "tessera.dev/v1alpha1",
    "kind": "AcceleratorPool",
    "metadata": {"name": "a100"},
    "spec": {"nodeSelector": {"pool": "a100"}},
}

A_PRICE_LIST = {
    "apiVersion": "tessera.dev/v1alpha1",
    "kind": "PriceList",
    "metadata": {"name": "standard"},
    "spec": {"entries": [{"from": "2026-01-01", "models": ["*"], "input": "1", "output": "2"}]},
}


class SlowCluster(MemoryCluster):
    """A cluster whose second list of the first kind waits until the test answers it."""

    def __init__(self) -> None:
        super().__init__()
        self.lists = 0
        self.asked, self.answered = asyncio.Event(), asyncio.Event()

    @override
    async def list(self, kind: ApiResource) -> ObjectList | None:
        if kind is ACCELERATOR_POOLS:
            self.lists += 1
            if self.lists == 2:
                self.asked.set()
                await self.answered.wait()
        return await super().list(kind)


@pytest.mark.parametrize("cancelled", [False, True])
async def test_a_watch_ends_where_etcd_was_restored_also_while_it_is_cancelled(
    cancelled: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(reflector, "RELIST_SECONDS", 0.001)
    cluster = SlowCluster()
    cluster.put(ACCELERATOR_POOLS, A_POOL)
    watch = FleetWatch(cluster, MemoryCluster(), lambda: None, lambda _: None, "tessera")
    task = asyncio.create_task(watch.run())
    await cluster.asked.wait()
    assert watch.observations() is not None
    # etcd was restored from a snapshot, which knows no change since.
    cluster.forget_the_past()
    cluster.version = cluster.forgotten = 0
    cluster.answered.set()
    if cancelled:
        task.cancel()
    _, going_on = await asyncio.wait((task,), timeout=60)
    task.cancel()
    assert not going_on
    assert watch.observations() is None, "what was known is not trusted"
    assert "acceleratorpools went back from version 1 to 0: etcd was restored" in caplog.text


async def test_prices_that_are_seen_first_count_at_once_and_an_unreadable_list_has_none() -> None:
    cluster = MemoryCluster()
    cluster.put(PRICE_LISTS, A_PRICE_LIST)
    unreadable = {**A_PRICE_LIST, "metadata": {"name": "broken"}, "spec": {"entries": []}}
    cluster.put(PRICE_LISTS, unreadable)
    listed = asyncio.Event()
    watch = FleetWatch(cluster, MemoryCluster(), listed.set, lambda _: None, "tessera")
    task = asyncio.create_task(watch.run())
    while (observed := watch.observations()) is None:
        await listed.wait()
        listed.clear()
    task.cancel()
    price = observed.prices.find("USD", "team-a", ["chat"], 1.8e9)
    assert price is not None
    assert (price.price_list.partition("@")[0], price.input) == ("standard", 10**9)
    assert observed.prices.find("USD", "team-a", ["chat"], 1.7e9) is None, "before the first day"
