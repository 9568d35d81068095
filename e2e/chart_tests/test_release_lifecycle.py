"""The life of an installation: models outlive the chart, and its removal leaves nothing."""

import asyncio
import json
import re

import pytest

from chart_tests.release import DEPLOYMENT, SECRET, WEBHOOKS, Release
from demo.cluster import CHART, NAMESPACE, StepError
from tessera.domain.kinds.kinds import KINDS
from tessera.domain.mig_backends.gpu_clients import STOPPED_LABEL
from tessera.resources.api_resources import DEPLOYMENTS, PODS
from world.api import LEASES
from world.testing import eventually

PRODUCTION = str(CHART / "values-production.yaml")
CLUSTER_WIDE = (
    "clusterroles",
    "clusterrolebindings",
    "validatingwebhookconfigurations",
    "validatingadmissionpolicies",
    "validatingadmissionpolicybindings",
)


async def helm(release: Release, *arguments: str) -> str:
    release.forget_values()
    return await release.cluster.run("helm", *arguments, "--namespace", NAMESPACE)


async def engine_uids(release: Release, namespace: str) -> dict[str, str]:
    """Return the uids of the engines that run, by name."""
    pods = (await release.cluster.api.get(PODS.path(namespace)))["items"]
    return {pod["metadata"]["name"]: pod["metadata"]["uid"] for pod in pods}


async def test_helm_test_says_what_works_and_what_does_not(release: Release) -> None:
    await release.install()

    async def leader_is_elected() -> None:
        lease = await release.cluster.api.get(LEASES.path(NAMESPACE, "tessera-operator"))
        assert (lease["spec"].get("holderIdentity") or "").startswith("tessera-operator-"), lease

    await eventually(leader_is_elected)
    output = await helm(release, "test", "tessera", "--logs")
    for line in (
        r"ok: all \d+ kinds can be listed",
        r"ok: the leader is tessera-operator-\S+",
        r"ok: the webhook certificate is valid for (89|90) days",
        r"ok: Prometheus has metrics of ",
    ):
        assert re.search(line, output), output
    assert "FAIL" not in output

    async def pod_of_the_test_is_gone() -> None:
        assert not await release.cluster.api.exists(PODS.path(NAMESPACE, "tessera-operator-test"))

    await eventually(pod_of_the_test_is_gone)
    await release.install(prometheus={"url": "http://127.0.0.1:1"})
    try:
        failed_output = await helm(release, "test", "tessera", "--logs")
    except StepError as error:
        failed_output = str(error)
    assert "FAIL: Prometheus at http://127.0.0.1:1" in failed_output


async def test_models_outlive_an_upgrade_and_an_uninstall_and_the_second_command_removes_all(
    release: Release,
) -> None:
    await release.install()
    namespace = await release.namespace()
    await release.apply(namespace, "chat", replicas=2)
    await release.wait_for_reason(namespace, "chat", "Ready", "CompletionSucceeded")

    async def both_replicas_run() -> dict[str, str]:
        engines = await engine_uids(release, namespace)
        assert len(engines) >= 2, engines
        return engines

    engines = await eventually(both_replicas_run)

    values = f"prometheus.url={release.cluster.world.prometheus_url},gateway.enabled=false"
    options = ("-f", PRODUCTION, "--set", values, "--force-conflicts")
    await helm(release, "upgrade", "tessera", str(CHART), *options)
    await release.wait_until_rolled_out()
    budget = f"/apis/policy/v1/namespaces/{NAMESPACE}/poddisruptionbudgets/tessera-operator"
    assert (await release.cluster.api.get(DEPLOYMENT))["spec"]["replicas"] == 2
    assert (await release.cluster.api.get(budget))["spec"]["maxUnavailable"] == 1
    assert await engine_uids(release, namespace) == engines

    await helm(release, "uninstall", "tessera", "--wait")
    for path in (DEPLOYMENT, WEBHOOKS, budget):
        assert not await release.cluster.api.exists(path)
    for kind in CLUSTER_WIDE:
        assert "tessera" not in await release.kubectl("get", kind, "-o", "name")
    assert await engine_uids(release, namespace) == engines
    resources = await release.kubectl("api-resources", "-o", "name")
    for crd in KINDS:
        assert crd.plural in resources
    # A model can be deleted without an operator too: nothing waits for a finalizer.
    await release.apply(namespace, "late", replicas=1)
    await asyncio.wait_for(release.kubectl("delete", "tsvc", "late", "-n", namespace), 120)

    await release.install()
    await release.wait_for_reason(namespace, "chat", "Ready", "CompletionSucceeded")
    assert await engine_uids(release, namespace) == engines

    await helm(release, "uninstall", "tessera", "--wait")
    for command in read_removal_commands():
        await asyncio.wait_for(release.kubectl(*command), 180)

    async def nothing_remains() -> None:
        for kind in (DEPLOYMENTS, PODS):
            bodies = (await release.cluster.api.get(kind.path(namespace)))["items"]
            assert [body["metadata"]["name"] for body in bodies] == []
        assert "tessera.dev" not in await release.kubectl("api-resources", "-o", "name")

    await eventually(nothing_remains)
    assert not await release.cluster.api.exists(SECRET)
    await release.kubectl("delete", "namespace", namespace)


def read_removal_commands() -> list[list[str]]:
    """Read the commands of docs/tasks/uninstall.md, so that the page stays correct."""
    page = CHART.parents[1] / "docs" / "tasks" / "uninstall.md"
    lines = page.read_text(encoding="utf-8").splitlines()
    commands = [line.split() for line in lines if line.startswith("    kubectl delete ")]
    assert commands
    return [words[1:] for words in commands]


@pytest.mark.full
async def test_an_uninstall_in_mid_repartition_releases_the_nodes(release: Release) -> None:
    await release.install(mig={"enabled": True})
    # A running operator would take back what no plan of its own needs.
    await release.scale(0)
    node = (await release.kubectl("get", "nodes", "-o", "name")).split()[0].removeprefix("node/")
    await release.kubectl("taint", "node", node, "tessera.dev/repartition=:NoSchedule")
    stopped = "nvidia.com/gpu.deploy.device-plugin=paused-for-mig-change"
    await release.kubectl("label", "node", node, "--overwrite", stopped, f"{STOPPED_LABEL}=1")
    await helm(release, "uninstall", "tessera", "--wait")
    body = json.loads(await release.kubectl("get", "node", node, "-o", "json"))
    assert "tessera.dev/repartition" not in str(body["spec"].get("taints"))
    labels = body["metadata"]["labels"]
    assert (labels["nvidia.com/gpu.deploy.device-plugin"], STOPPED_LABEL in labels) == (
        "true",
        False,
    )
