"""What a gateway watches, when etcd was restored and when the gateway stops."""

import asyncio
import base64
from collections.abc import Iterable
from typing import Any

import pytest
from typing_extensions import override

from tessera.api.api_resource import ApiResource
from tessera.api.rate_limits import RateLimitsSpec
from tessera.domain.gateway.build import GatewayObservations, build_directory
from tessera.domain.gateway.directory import OfferedProvider
from tessera.domain.kinds.kinds import ACCELERATOR_POOLS, MODEL_PROVIDERS, PRICE_LISTS
from tessera.domain.observed.providers import ProviderSecret
from tessera.gateway.fleet.watching import FleetWatch, ProviderSecrets
from tessera.gateway.outside.keys import ProviderKeys
from tessera.ports import ObjectList
from tessera.reconcile import reflector
from tessera.resources.api_resources import PROVIDER_SECRETS
from tests.builders import a_budget, a_provider, a_provider_spec
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


def a_secret(key: str) -> dict[str, Any]:
    encoded = base64.b64encode(key.encode()).decode()
    meta = {"name": "acme", "namespace": "providers"}
    return {"metadata": meta, "type": "Opaque", "data": {"key": encoded}}


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


def put_a_provider(cluster: MemoryCluster) -> OfferedProvider:
    """Put a provider, and return it as gateways know it."""
    cluster.put(MODEL_PROVIDERS, {"metadata": {"name": "acme"}, "spec": a_provider_spec()})
    observed = GatewayObservations(providers=(a_provider(),), budgets=(a_budget(),))
    outside = build_directory(observed, RateLimitsSpec()).outside["acme", "Big"].outside
    assert outside is not None
    return outside.provider


async def test_a_key_of_a_provider_is_rotated_and_revoked_without_a_restart() -> None:
    cluster, secrets, keys = MemoryCluster(), MemoryCluster(), ProviderKeys()
    provider = put_a_provider(cluster)
    secret = secrets.put(PROVIDER_SECRETS, a_secret("first"))
    seen = asyncio.Queue[str | None]()

    def update(current: Iterable[ProviderSecret]) -> None:
        keys.update(current)
        seen.put_nowait(keys.of(provider))

    listed = asyncio.Event()
    watch = FleetWatch(
        cluster,
        MemoryCluster(),
        listed.set,
        lambda _: None,
        "tessera",
        ProviderSecrets(secrets, update),
    )
    task = asyncio.create_task(watch.run())
    assert await seen.get() == "first"
    secrets.put(PROVIDER_SECRETS, a_secret("sk-second"))
    assert await seen.get() == "sk-second"
    secrets.discard(secret)
    assert await seen.get() is None
    while (observed := watch.observations()) is None:
        await listed.wait()
        listed.clear()
    task.cancel()
    assert [each.name for each in observed.providers] == ["acme"]
    assert "sk-second" not in repr(observed)


class RecordingCluster(MemoryCluster):
    """A cluster that says which kinds were listed."""

    def __init__(self) -> None:
        super().__init__()
        self.listed = set[ApiResource]()

    @override
    async def list(self, kind: ApiResource) -> ObjectList | None:
        self.listed.add(kind)
        return await super().list(kind)


async def test_without_providers_neither_they_nor_their_secrets_are_watched() -> None:
    cluster, changed = RecordingCluster(), asyncio.Event()
    put_a_provider(cluster)
    watch = FleetWatch(cluster, MemoryCluster(), changed.set, lambda _: None, "tessera")
    task = asyncio.create_task(watch.run())
    while (observed := watch.observations()) is None:
        await changed.wait()
        changed.clear()
    task.cancel()
    assert not observed.providers
    assert not cluster.listed & {MODEL_PROVIDERS, PROVIDER_SECRETS}
