"""A new Tessera leaves what runs alone, says what it would change, and changes it when asked."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from demo.load import steady
from demo.stage import NAMESPACE, Json, install
from scenarios.actions import Place
from scenarios.test_streams import TOKENS, kubectl_scale, stream, until_replicas
from tessera.resources.kinds import DEPLOYMENTS, PODS
from world.testing import eventually

NEXT = "image.repository=tessera/operator-next"


@pytest.fixture
async def upgraded(place: Place) -> AsyncIterator[Place]:
    """A place on which the operator may be upgraded; afterwards the usual one is back."""
    try:
        yield place
    finally:
        await release(place)


async def release(place: Place, *values: str) -> None:
    """Install with Helm, and wait until the operator of this release leads."""
    await install(place.stage, *values)
    image = f"{values[0].partition('=')[2]}:" if values else "tessera/operator:"
    api = place.stage.api
    lease = f"/apis/coordination.k8s.io/v1/namespaces/{NAMESPACE}/leases/tessera-operator"

    async def leader() -> str:
        pods = await api.get(
            f"/api/v1/namespaces/{NAMESPACE}/pods",
            labelSelector="app.kubernetes.io/component=operator",
        )
        images = {
            one["metadata"]["name"]: one["spec"]["containers"][0]["image"] for one in pods["items"]
        }
        return str(images.get((await api.get(lease))["spec"].get("holderIdentity"), ""))

    await eventually(leader, lambda found: found.startswith(image), within=60)


async def uids(place: Place) -> set[str]:
    return {
        one["metadata"]["uid"]
        for one in await place.all(PODS)
        if "deletionTimestamp" not in one["metadata"]
    }


async def pre_stops(place: Place) -> list[int]:
    """Of the Deployments: 5 is by builder version 1, 6 by version 2."""
    found: list[Json] = [
        one["spec"]["template"]["spec"]["containers"][0] for one in await place.all(DEPLOYMENTS)
    ]
    return [one["lifecycle"]["preStop"]["sleep"]["seconds"] for one in found]


async def annotate(place: Place, name: str, value: str) -> None:
    """As `kubectl tessera update` does."""
    await place.stage.run(
        *("kubectl", "--namespace", place.namespace, "annotate", "--overwrite"),
        *(f"inferenceservice/{name}", f"tessera.dev/update={value}"),
    )


async def test_an_upgrade_leaves_pods_alone_until_it_is_asked(upgraded: Place) -> None:
    place = upgraded
    ref = await place.serve(replicas=2)
    await place.until_ready()
    await until_replicas(place, 2)
    await place.until_condition("chat", "UpdateAvailable", "Newest")
    before = await uids(place)

    await release(place, NEXT)
    told = await place.until_condition("chat", "UpdateAvailable", "NewerRecipe", within=60)
    assert told["status"] == "True"
    assert "builder version 2 instead of 1" in told["message"]
    assert "kubectl tessera update chat" in told["message"]
    wide = await place.stage.run(
        "kubectl", "--namespace", place.namespace, "get", "inferenceservices", "-o", "wide"
    )
    assert "UPDATE" in wide
    assert await uids(place) == before

    await kubectl_scale(place.stage, ref, 3)
    await until_replicas(place, 3)
    assert before < await uids(place)
    assert await pre_stops(place) == [5]

    old = await uids(place)
    base = await place.stage.address(ref)
    streams = [asyncio.create_task(stream(base, ref.name)) for _ in range(6)]
    async with steady(base, ref.name, clients=4, tokens=40) as load:
        await asyncio.wait(streams, timeout=1)
        await annotate(place, "chat", "2026-11-20T12:00:00Z")
        await place.until_condition("chat", "UpdateAvailable", "Newest", within=60)
        await place.until_condition("chat", "Progressing", "Settled", within=120)
    assert await asyncio.gather(*streams) == [(TOKENS, "length")] * 6
    assert load.failures == []
    assert load.finished > 50
    assert not old & await uids(place)
    assert await pre_stops(place) == [6]


async def test_a_downgrade_rebuilds_what_it_does_not_know_and_says_so(upgraded: Place) -> None:
    place = upgraded
    await release(place, NEXT)
    ref = await place.serve(replicas=2)
    await place.until_ready(within=60)
    await until_replicas(place, 2)
    assert await pre_stops(place) == [6]
    base = await place.stage.address(ref)
    async with steady(base, ref.name, clients=4, tokens=40) as load:
        await release(place)
        told = await place.until_condition("chat", "UpdateAvailable", "Downgraded", within=60)
        await place.until_condition("chat", "Progressing", "Settled", within=120)
    assert "builder version 2" in told["message"]
    assert await pre_stops(place) == [5]
    assert load.failures == []
