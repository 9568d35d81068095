"""A new Tessera leaves what runs alone, says what it would change, and changes it when asked."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

import pytest
from aiohttp import web

from demo.load import steady_load
from demo.stage import NAMESPACE, Json, install
from scenarios.actions import SMALL, Place
from scenarios.commands import tessera
from scenarios.lifecycle import until_both_tell
from scenarios.streams import TOKENS, kubectl_scale, stream, until_replicas
from tessera.resources.api_resources import DEPLOYMENTS, PODS
from world.testing import eventually

NO_HUB = "http://127.0.0.77:1"
NEXT = "image.repository=tessera/operator-next"


@pytest.fixture
async def upgraded(place: Place) -> AsyncIterator[Place]:
    """A place on which the operator may be upgraded; afterwards the usual one is back."""
    try:
        yield place
    finally:
        await surroundings(place, None)
        await release(place)


async def release(place: Place, *values: str) -> None:
    """Install with Helm, and wait until the operator of this release leads."""
    await install(place.stage, *values)
    image = f"{values[0].partition('=')[2]}:" if values else "tessera/operator:"
    await until_led(place, lambda container: container["image"].startswith(image))


async def until_led(place: Place, wanted: Callable[[Json], bool]) -> None:
    """Wait until an operator leads whose container is as wanted."""
    api = place.stage.api
    lease = f"/apis/coordination.k8s.io/v1/namespaces/{NAMESPACE}/leases/tessera-operator"

    async def leader() -> Json | None:
        pods = await api.get(
            f"/api/v1/namespaces/{NAMESPACE}/pods",
            labelSelector="app.kubernetes.io/component=operator",
        )
        containers = {
            one["metadata"]["name"]: one["spec"]["containers"][0] for one in pods["items"]
        }
        return containers.get((await api.get(lease))["spec"].get("holderIdentity"))

    await eventually(leader, lambda found: found is not None and wanted(found), within=60)


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


async def surroundings(place: Place, platform: Json | None) -> None:
    """What the platform team says of engines, as the operator gets it."""
    value = "-" if platform is None else f"={json.dumps(platform)}"
    await place.stage.run(
        *("kubectl", "--namespace", NAMESPACE, "set", "env", "deployment/tessera-operator"),
        f"TESSERA_PLATFORM{value}",
    )


async def update(place: Place, name: str) -> None:
    """As its owner does who has read what would change."""
    done = await tessera(place.stage, "update", name, "--namespace", place.namespace)
    assert done.code == 0, done.errors


async def test_an_upgrade_leaves_pods_alone_until_it_is_asked(upgraded: Place) -> None:
    place = upgraded
    ref = await place.serve(replicas=2)
    await place.until_ready()
    await until_replicas(place, 2)
    await place.until_condition("chat", "UpdateAvailable", "UpToDate")
    before = await uids(place)

    await release(place, NEXT)
    told = await until_both_tell(place, "NewTemplateAvailable", "UpdateAvailable", within=60)
    assert told.status == "True"
    assert "builder version 2 instead of 1" in told.message
    assert "kubectl tessera update chat" in told.message
    wide = await place.stage.run(
        "kubectl", "--namespace", place.namespace, "get", "tsvc", "-o", "wide"
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
    async with steady_load(base, ref.name, clients=4, tokens=40) as load:
        await asyncio.wait(streams, timeout=1)
        await update(place, "chat")
        await place.until_condition("chat", "UpdateAvailable", "UpToDate", within=60)
        await place.until_condition("chat", "Progressing", "RolloutComplete", within=120)
    assert await asyncio.gather(*streams) == [(TOKENS, "length")] * 6
    assert load.failures == []
    assert load.finished > 50
    assert not old & await uids(place)
    assert await pre_stops(place) == [6]


@pytest.mark.full
async def test_a_downgrade_rebuilds_what_it_does_not_know_and_says_so(upgraded: Place) -> None:
    place = upgraded
    await release(place, NEXT)
    ref = await place.serve(replicas=2)
    await place.until_ready(within=60)
    await until_replicas(place, 2)
    assert await pre_stops(place) == [6]
    base = await place.stage.address(ref)
    async with steady_load(base, ref.name, clients=4, tokens=40) as load:
        await release(place)
        told = await until_both_tell(place, "Downgraded", "UpdateAvailable", within=60)
        await place.until_condition("chat", "Progressing", "RolloutComplete", within=120)
    assert "builder version 2" in told.message
    assert await pre_stops(place) == [5]
    assert load.failures == []


@dataclass(slots=True)
class Hub:
    """A hub that knows one commit."""

    commit: str
    url: str = ""


@asynccontextmanager
async def a_hub(commit: str) -> AsyncIterator[Hub]:
    made = Hub(commit)

    async def answer(_: web.Request) -> web.Response:
        return web.json_response({"sha": made.commit})

    app = web.Application()
    app.router.add_get("/api/models/{org}/{name}/revision/{revision}", answer)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.77", 0).start()
    host, port = runner.addresses[0][:2]
    made.url = f"http://{host}:{port}"
    try:
        yield made
    finally:
        await runner.cleanup()


async def revisions(place: Place, name: str) -> set[str]:
    """Which weights the replicas of a service load."""
    return {
        argument.partition("=")[2]
        for one in await place.all(PODS)
        if one["metadata"]["labels"]["tessera.dev/service"] == name
        and "deletionTimestamp" not in one["metadata"]
        for argument in one["spec"]["containers"][0]["args"]
        if argument.startswith("--revision=")
    }


async def test_a_revision_is_pinned_through_restarts_until_it_is_asked(upgraded: Place) -> None:
    place, first, second = upgraded, "1" * 40, "2" * 40
    await surroundings(place, {"hubEndpoint": NO_HUB})
    await until_led(place, lambda one: NO_HUB in json.dumps(one["env"]))
    await place.serve("before", replicas=1)
    await place.until_ready("before")
    told = (await place.status("before"))["model"]
    assert (told["reason"], "revision" in told) == ("HubUnreachable", False)
    async with a_hub(first) as hub:
        await surroundings(place, {"hubEndpoint": hub.url})
        await until_led(place, lambda one: hub.url in json.dumps(one["env"]))
        told = await place.until_condition(
            "before", "UpdateAvailable", "NewTemplateAvailable", within=30
        )
        assert "hubEndpoint of the platform" in told["message"]

        await place.serve(replicas=1, model={"uri": SMALL, "revision": "main"})
        await place.until_ready()
        assert (await place.status())["model"]["revision"] == first
        assert await revisions(place, "chat") == {first}

        hub.commit = second
        (pod,) = [one for one in await place.all(PODS) if one["metadata"]["name"][:5] == "chat-"]
        await place.stage.api.delete(PODS.path(place.namespace, pod["metadata"]["name"]))
        await place.until_condition("chat", "Progressing", "Starting")
        await place.until_condition("chat", "Progressing", "RolloutComplete", within=60)
        assert await revisions(place, "chat") == {first}

        await update(place, "chat")
        await eventually(place.status, lambda one: one["model"].get("revision") == second)
        await place.until_condition("chat", "Progressing", "RolloutComplete", within=60)
        assert await revisions(place, "chat") == {second}
        assert await revisions(place, "before") == set()
