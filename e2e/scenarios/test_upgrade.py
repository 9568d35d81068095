"""A new Tessera does not restart pods; it says what it would change, and changes it on request."""

import asyncio
import json
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import pytest
from aiohttp import web

from demo.cluster import CHART, NAMESPACE, InstalledCluster, Json, install
from demo.load import steady_load
from demo.ready_replicas import watch_minimum_ready
from scenarios.actions import SMALL, ScenarioNamespace, a_budget
from scenarios.commands import run_tessera
from scenarios.gateway import (
    Gateway,
    answered,
    create_key,
    database_values,
    ready_pods,
    service_address,
)
from scenarios.lifecycle import wait_for_explained_reason
from scenarios.replay import Answer, Target, failures, stream_until
from scenarios.streams import TOKENS, kubectl_scale, stream_completion, wait_for_replicas
from tessera.domain.kinds.kinds import TENANT_BUDGETS
from tessera.domain.names import SERVICE_LABEL, TEMPLATE_LABEL
from tessera.resources.api_resources import DEPLOYMENTS, PODS
from tessera.resources.defaults import newest_version
from tests import earlier_tessera
from tests.gateway.store.postgresql import postgresql_server
from world.testing import eventually

NO_HUB = "http://127.0.0.77:1"
NEXT = "image.repository=tessera/operator-next"
EARLIER = "image.repository=tessera/operator-earlier"
TOKENS_OF_CLIENT = 60
BUILDER = newest_version()


@pytest.fixture
async def upgradable_namespace(namespace: ScenarioNamespace) -> AsyncIterator[ScenarioNamespace]:
    """A namespace for tests that upgrade the operator; afterwards the usual release is back."""
    try:
        yield namespace
    finally:
        await set_platform(namespace, None)
        await install_release(namespace)


async def install_release(namespace: ScenarioNamespace, *values: str, chart: Path = CHART) -> None:
    """Install with Helm, and wait until the operator of this release leads."""
    await install(namespace.cluster, *values, chart=chart)
    image = f"{values[0].partition('=')[2]}:" if values else "tessera/operator:"
    await wait_for_leader(namespace, image=image)


async def wait_for_leader(namespace: ScenarioNamespace, image: str = "", env: str = "") -> None:
    """Wait until an operator leads whose image begins so, and whose environment has this text."""
    api = namespace.cluster.api
    lease = f"/apis/coordination.k8s.io/v1/namespaces/{NAMESPACE}/leases/tessera-operator"

    async def leads() -> None:
        pods = await api.get(
            f"/api/v1/namespaces/{NAMESPACE}/pods",
            labelSelector="app.kubernetes.io/component=operator",
        )
        containers = {
            pod["metadata"]["name"]: pod["spec"]["containers"][0] for pod in pods["items"]
        }
        leader = (await api.get(lease))["spec"].get("holderIdentity")
        assert leader in containers
        assert containers[leader]["image"].startswith(image), containers[leader]
        assert env in json.dumps(containers[leader]["env"])

    await eventually(leads)


async def list_pod_uids(namespace: ScenarioNamespace) -> set[str]:
    return {
        pod["metadata"]["uid"]
        for pod in await namespace.list_objects(PODS)
        if "deletionTimestamp" not in pod["metadata"]
    }


async def list_pre_stop_seconds(namespace: ScenarioNamespace) -> list[int]:
    """Return the preStop seconds of the Deployments: 5 by this builder version, 6 by the next."""
    containers: list[Json] = [
        deployment["spec"]["template"]["spec"]["containers"][0]
        for deployment in await namespace.list_objects(DEPLOYMENTS)
    ]
    return [container["lifecycle"]["preStop"]["sleep"]["seconds"] for container in containers]


async def set_platform(namespace: ScenarioNamespace, platform: Json | None) -> None:
    """Set the platform team's settings of engines in the operator's environment."""
    value = "-" if platform is None else f"={json.dumps(platform)}"
    await namespace.cluster.run(
        *("kubectl", "--namespace", NAMESPACE, "set", "env", "deployment/tessera-operator"),
        f"TESSERA_PLATFORM{value}",
    )


async def run_update(namespace: ScenarioNamespace, name: str) -> None:
    """Request the update of a service, as its owner does."""
    result = await run_tessera(namespace.cluster, "update", name, "--namespace", namespace.name)
    assert result.code == 0, result.errors


async def test_an_upgrade_restarts_no_pod_until_the_update_is_requested(
    upgradable_namespace: ScenarioNamespace,
) -> None:
    namespace = upgradable_namespace
    ref = await namespace.apply_service(replicas=2)
    await namespace.wait_until_ready()
    await wait_for_replicas(namespace, 2)
    await namespace.wait_for_condition("chat", "UpdateAvailable", "UpToDate")
    uids_before = await list_pod_uids(namespace)

    await install_release(namespace, NEXT)
    condition = await wait_for_explained_reason(
        namespace,
        "NewTemplateAvailable",
        "UpdateAvailable",
        words=(
            f"builder version {BUILDER + 1} instead of {BUILDER}",
            "kubectl tessera update chat",
        ),
    )
    assert condition.status == "True"
    wide = await namespace.cluster.run(
        "kubectl", "--namespace", namespace.name, "get", "tsvc", "-o", "wide"
    )
    assert "UPDATE" in wide
    assert await list_pod_uids(namespace) == uids_before

    await kubectl_scale(namespace.cluster, ref, 3)
    await wait_for_replicas(namespace, 3)
    assert uids_before < await list_pod_uids(namespace)
    assert await list_pre_stop_seconds(namespace) == [5]

    old_uids = await list_pod_uids(namespace)
    base = await namespace.cluster.address(ref)
    streams = [asyncio.create_task(stream_completion(base, ref.name)) for _ in range(6)]

    async def is_updated() -> None:
        await namespace.check_condition("chat", "UpdateAvailable", "UpToDate")
        await namespace.check_condition("chat", "Progressing", "RolloutComplete")
        assert await list_pre_stop_seconds(namespace) == [6]
        assert old_uids & await list_pod_uids(namespace) == set()

    async with steady_load(base, ref.name, clients=4, tokens=40) as load:
        await asyncio.wait(streams, timeout=1)
        await run_update(namespace, "chat")
        await eventually(is_updated)
    assert await asyncio.gather(*streams) == [(TOKENS, "length")] * 6
    assert load.failures == []
    assert load.finished > 50


@pytest.mark.full
async def test_a_downgrade_rebuilds_what_it_does_not_know_and_says_so(
    upgradable_namespace: ScenarioNamespace,
) -> None:
    namespace = upgradable_namespace
    await install_release(namespace, NEXT)
    ref = await namespace.apply_service(replicas=2)
    await namespace.wait_until_ready()
    await wait_for_replicas(namespace, 2)
    assert await list_pre_stop_seconds(namespace) == [6]
    base = await namespace.cluster.address(ref)

    async def is_rebuilt() -> None:
        await namespace.check_condition("chat", "Progressing", "RolloutComplete")
        assert await list_pre_stop_seconds(namespace) == [5]

    async with steady_load(base, ref.name, clients=4, tokens=40) as load:
        await install_release(namespace)
        words = (f"builder version {BUILDER + 1}",)
        await wait_for_explained_reason(namespace, "Downgraded", "UpdateAvailable", words=words)
        await eventually(is_rebuilt)
    assert load.failures == []


async def install_earlier(cluster: InstalledCluster, *values: str) -> None:
    """Install Tessera 0.1: the chart with the CRDs, the operator and the gateway of 48e4eabe."""
    folder = earlier_tessera.unpacked()
    # No image stands for its gateway: that of today's finds its modules.
    path = "gateway.extraEnv[0].name=PYTHONPATH", f"gateway.extraEnv[0].value={folder / 'operator'}"
    await install(cluster, EARLIER, *path, *values, chart=folder / "charts" / "tessera")


@asynccontextmanager
async def clients_of(targets: Iterable[Target]) -> AsyncIterator[list[Answer]]:
    """Stream from each target, one answer after the other; the list is whole after the block."""
    answers, ended = list[Answer](), asyncio.Event()
    clients = [
        asyncio.create_task(stream_until(target, ended, TOKENS_OF_CLIENT)) for target in targets
    ]
    try:
        yield answers
    finally:
        ended.set()
        for streamed in await asyncio.gather(*clients):
            answers.extend(streamed)


async def list_names(namespace: ScenarioNamespace) -> set[str]:
    """Return what Helm and the operator made, but pods and what comes and goes with them."""
    run = namespace.cluster.run
    output = await run("kubectl", "api-resources", "--verbs=list", "--output=name")
    passing = ("componentstatuses", "endpoints", "endpointslices", "events", "pods", "replicasets")
    kinds = [kind for kind in output.split() if kind.partition(".")[0] not in passing]
    columns = "KIND:.kind,NAMESPACE:.metadata.namespace,NAME:.metadata.name"
    rows = await run(
        *("kubectl", "get", ",".join(kinds), "--all-namespaces", "--no-headers"),
        f"--output=custom-columns={columns}",
    )
    names = {" ".join(row.split()) for row in rows.splitlines()}
    own = {name for name in names if namespace.name in name or "tessera" in name}
    return {name for name in own if "sh.helm.release" not in name}


async def serves(namespace: ScenarioNamespace, *, labelled: bool) -> None:
    """Assert that the Deployments of both replicas of `chat` have such a label, or none."""
    counts = {True: 0, False: 0}
    for deployment in await namespace.list_objects(DEPLOYMENTS):
        if deployment["metadata"]["labels"][SERVICE_LABEL] == "chat":
            is_labelled = TEMPLATE_LABEL in deployment["metadata"]["labels"]
            counts[is_labelled] += deployment["status"].get("readyReplicas", 0)
    assert counts == {labelled: 2, not labelled: 0}
    await namespace.check_condition("chat", "Progressing", "RolloutComplete")


async def settles(namespace: ScenarioNamespace, image: str) -> None:
    """Wait until operator and gateway are those of one version, and no rollout is due."""
    await wait_for_leader(namespace, image=image)
    await ready_pods(namespace.cluster, 1)
    for name in ("chat", "still"):
        await namespace.wait_for_condition(name, "Progressing", "RolloutComplete")


async def check_usage(gateway: Gateway, answers: Iterable[Answer]) -> None:
    """Assert that each answer of the gateway is recorded, and the two of `answered` before."""
    (pod,) = await ready_pods(gateway.namespace.cluster, 1)
    usage = await replace(gateway, pod_address=pod["status"]["podIP"]).usage()
    recorded = [answer.pieces for answer in answers if answer.replica]
    sums = usage["first"]["requests"], usage["first"]["outputTokens"]
    assert sums == (len(recorded) + 2, sum(recorded) + 2 * 4)


@pytest.mark.full
async def test_an_upgrade_from_0_1_restarts_no_engine_and_the_way_back_starts_them_once(
    upgradable_namespace: ScenarioNamespace,
) -> None:
    """As docs/tasks/upgrade.md says, with streams at the gateway and at a Service throughout."""
    namespace = upgradable_namespace
    cluster = namespace.cluster
    with postgresql_server() as server:
        values = await database_values(cluster, server, 1)
        await install_earlier(cluster, *values)
        chat = await namespace.apply_service(replicas=2)
        await namespace.apply_service("still", replicas=1, placement={"tiers": ["OnDemand"]})
        await namespace.wait_until_ready("still")
        await eventually(partial(serves, namespace, labelled=False))
        await settles(namespace, "tessera/operator-earlier:")
        async with a_budget(namespace, "100000"):
            base = f"http://{await service_address(cluster)}/v1"
            gateway = Gateway(namespace, base, "", await create_key(namespace, "first"))
            await answered(gateway)
            await answered(gateway, "still")
            names, uids = await list_names(namespace), await list_pod_uids(namespace)
            status = await cluster.run("helm", "status", "tessera", "-n", NAMESPACE, "-o", "json")
            headers = {"authorization": f"Bearer {gateway.key}"}
            shared = [Target(base=base, model=each, headers=headers) for each in ("chat", "still")]
            direct = Target(base=f"{await cluster.address(chat)}/v1", model="chat")
            async with (
                clients_of([*shared, direct]) as answers,
                watch_minimum_ready(cluster, namespace.name) as minimum,
            ):
                await install(cluster, *values)
                await settles(namespace, "tessera/operator:")
                await namespace.wait_for_condition("chat", "UpdateAvailable", "UpToDate")
                assert await list_pod_uids(namespace) == uids

                await run_update(namespace, "chat")
                await eventually(partial(serves, namespace, labelled=True))
                await cluster.api.patch(
                    TENANT_BUDGETS.path(None, namespace.name), {"spec": {"storage": "2Ti"}}
                )
                minimum.started = 0

                await run_update(namespace, "chat")
                await eventually(partial(serves, namespace, labelled=False))
                uids = await list_pod_uids(namespace)
                revision = str(json.loads(status)["version"])
                await cluster.run("helm", "rollback", "tessera", revision, "-n", NAMESPACE)
                await settles(namespace, "tessera/operator-earlier:")
                assert await list_pod_uids(namespace) == uids
                assert await list_names(namespace) == names

            assert (minimum.started, minimum.replicas) == (2, {"chat": 2, "still": 1})
            assert failures(answers) == []
            await eventually(partial(check_usage, gateway, answers))


@dataclass(slots=True)
class OneCommitHub:
    """A hub that knows one commit."""

    commit: str
    url: str = ""


@asynccontextmanager
async def serve_hub(commit: str) -> AsyncIterator[OneCommitHub]:
    hub = OneCommitHub(commit)

    async def respond(_: web.Request) -> web.Response:
        return web.json_response({"sha": hub.commit})

    app = web.Application()
    app.router.add_get("/api/models/{org}/{name}/revision/{revision}", respond)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.77", 0).start()
    host, port = runner.addresses[0][:2]
    hub.url = f"http://{host}:{port}"
    try:
        yield hub
    finally:
        await runner.cleanup()


async def list_revisions(namespace: ScenarioNamespace, name: str) -> set[str]:
    """Return the revisions of the weights that the replicas of a service load."""
    return {
        argument.partition("=")[2]
        for pod in await namespace.list_objects(PODS)
        if pod["metadata"]["labels"]["tessera.dev/service"] == name
        and "deletionTimestamp" not in pod["metadata"]
        for argument in pod["spec"]["containers"][0]["args"]
        if argument.startswith("--revision=")
    }


@pytest.mark.full
async def test_a_revision_is_pinned_through_restarts_until_an_update_is_requested(
    upgradable_namespace: ScenarioNamespace,
) -> None:
    namespace, first, second = upgradable_namespace, "1" * 40, "2" * 40
    await set_platform(namespace, {"hubEndpoint": NO_HUB})
    await wait_for_leader(namespace, env=NO_HUB)
    await namespace.apply_service("before", replicas=1)
    await namespace.wait_until_ready("before")

    async def is_without_revision() -> None:
        model = (await namespace.service_status("before")).get("model", {})
        assert (model.get("reason"), "revision" in model) == ("HubUnreachable", False)

    async def runs(revision: str) -> None:
        status = await namespace.service_status()
        assert status.get("model", {}).get("revision") == revision, status
        await namespace.check_condition("chat", "Progressing", "RolloutComplete")
        assert await list_revisions(namespace, "chat") == {revision}

    await eventually(is_without_revision)
    async with serve_hub(first) as hub:
        await set_platform(namespace, {"hubEndpoint": hub.url})
        await wait_for_leader(namespace, env=hub.url)
        words = ("hubEndpoint of the platform",)
        await namespace.wait_for_condition(
            "before", "UpdateAvailable", "NewTemplateAvailable", words=words
        )

        await namespace.apply_service(replicas=1, model={"uri": SMALL, "revision": "main"})
        await namespace.wait_until_ready()
        await eventually(partial(runs, first))

        hub.commit = second
        (pod,) = [
            pod
            for pod in await namespace.list_objects(PODS)
            if pod["metadata"]["name"][:5] == "chat-"
        ]
        await namespace.cluster.api.delete(PODS.path(namespace.name, pod["metadata"]["name"]))
        await namespace.wait_for_condition("chat", "Progressing", "Starting")
        await eventually(partial(runs, first))

        await run_update(namespace, "chat")
        await eventually(partial(runs, second))
        assert await list_revisions(namespace, "before") == set()
