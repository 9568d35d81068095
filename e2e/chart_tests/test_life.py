"""Installed, asked, upgraded, removed: models outlive the chart, and nothing is left hanging."""

import asyncio
import re

from chart_tests.release import DEPLOYMENT, SECRET, WEBHOOKS, Release
from demo.stage import CHART, NAMESPACE, StepError
from tessera.api.schema import KINDS
from tessera.resources.api_resources import DEPLOYMENTS, PODS
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
    return await release.stage.run("helm", *arguments, "--namespace", NAMESPACE)


async def uids(release: Release, namespace: str) -> dict[str, str]:
    """The engines that run, by name."""
    found = (await release.stage.api.get(PODS.path(namespace)))["items"]
    return {pod["metadata"]["name"]: pod["metadata"]["uid"] for pod in found}


async def test_helm_test_says_what_works_and_what_does_not(release: Release) -> None:
    await release.install()
    said = await helm(release, "test", "tessera", "--logs")
    for line in (
        r"ok: all \d+ kinds can be listed",
        r"ok: the leader is tessera-operator-\S+",
        r"ok: the webhook certificate is valid for (89|90) days",
        r"ok: Prometheus has metrics of ",
    ):
        assert re.search(line, said), said
    assert "FAIL" not in said
    await release.install(prometheus={"url": "http://127.0.0.1:1"})
    try:
        failed = await helm(release, "test", "tessera", "--logs")
    except StepError as error:
        failed = str(error)
    assert "FAIL: Prometheus at http://127.0.0.1:1" in failed


async def test_models_outlive_an_upgrade_and_an_uninstall_and_the_second_command_removes_all(
    release: Release,
) -> None:
    await release.install()
    namespace = await release.namespace()
    await release.apply(namespace, "chat", replicas=2)
    await release.until_reason(namespace, "chat", "Ready", "CompletionSucceeded")
    engines = await uids(release, namespace)

    url = f"prometheus.url={release.stage.world.prometheus_url}"
    told = ("-f", PRODUCTION, "--set", url, "--force-conflicts")
    await helm(release, "upgrade", "tessera", str(CHART), *told)
    await release.rolled_out()
    budget = f"/apis/policy/v1/namespaces/{NAMESPACE}/poddisruptionbudgets/tessera-operator"
    assert (await release.stage.api.get(DEPLOYMENT))["spec"]["replicas"] == 2
    assert (await release.stage.api.get(budget))["spec"]["maxUnavailable"] == 1
    assert await uids(release, namespace) == engines

    await helm(release, "uninstall", "tessera", "--wait")
    for path in (DEPLOYMENT, WEBHOOKS, budget):
        assert not await release.stage.api.exists(path)
    for kind in CLUSTER_WIDE:
        assert "tessera" not in await release.kubectl("get", kind, "-o", "name")
    assert await uids(release, namespace) == engines
    for known in KINDS:
        assert known.plural in await release.kubectl("api-resources", "-o", "name")
    # Without an operator whoever wants the model gone gets that: nothing waits for a finalizer.
    await release.apply(namespace, "late", replicas=1)
    await asyncio.wait_for(
        release.kubectl("delete", "tsvc", "late", "-n", namespace), 20
    )

    await release.install()
    await release.until_reason(namespace, "chat", "Ready", "CompletionSucceeded")
    assert await uids(release, namespace) == engines

    await helm(release, "uninstall", "tessera", "--wait")
    for command in commands_of_removal():
        await asyncio.wait_for(release.kubectl(*command), 60)

    async def left() -> list[str]:
        found = [await release.stage.api.get(kind.path(namespace)) for kind in (DEPLOYMENTS, PODS)]
        return [one["metadata"]["name"] for listed in found for one in listed["items"]]

    await eventually(left, lambda names: not names, within=90)
    assert "tessera.dev" not in await release.kubectl("api-resources", "-o", "name")
    assert not await release.stage.api.exists(SECRET)
    await release.kubectl("delete", "namespace", namespace)


def commands_of_removal() -> list[list[str]]:
    """What docs/tasks/uninstall.md says, so that the page stays true."""
    page = CHART.parents[1] / "docs" / "tasks" / "uninstall.md"
    lines = page.read_text(encoding="utf-8").splitlines()
    found = [line.split() for line in lines if line.startswith("    kubectl delete ")]
    assert found
    return [words[1:] for words in found]
