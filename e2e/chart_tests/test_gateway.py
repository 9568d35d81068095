"""The gateway of the chart: where its keys are, and the first request for a service at zero."""

import asyncio
import json
import os
import re
import subprocess
import time
from http import HTTPStatus

import httpx
import pytest

from chart_tests.release import Release
from demo.cluster import CHART, NAMESPACE, Json, StepError, fund
from docs_tests.pages import page_of
from environments import ROOT
from tessera.api.key_record import KEYS_TYPE, TENANT_LABEL
from tessera.domain.kinds.kinds import INFERENCE_SERVICES
from tessera.domain.names import keys_namespace
from tessera.resources.api_resources import KEY_SECRETS
from world.testing import eventually

GATEWAY = f"/apis/apps/v1/namespaces/{NAMESPACE}/deployments/tessera-gateway"
SERVICE = f"/api/v1/namespaces/{NAMESPACE}/services/tessera-gateway"


@pytest.mark.full
async def test_a_request_at_the_gateway_wakes_a_service_that_sleeps(release: Release) -> None:
    small = {"requests": {"cpu": "100m", "memory": "64Mi"}}
    await release.install(gateway={"enabled": True, "resources": small})

    async def gateway_is_available() -> None:
        status = (await release.cluster.api.get(GATEWAY)).get("status", {})
        assert status.get("availableReplicas", 0) == 1, status

    await eventually(gateway_is_available)
    namespace = await release.namespace()
    await fund(release.cluster, "sleepers", namespace)
    scaling = {"minReplicas": 0, "maxReplicas": 2, "idle": {"after": "30s"}}
    await release.apply(namespace, "chat", scaling=scaling)

    async def read_scaling() -> tuple[Json, int]:
        """Return the status of the scaling, and the number of replicas."""
        service = await release.cluster.api.get(INFERENCE_SERVICES.path(namespace, "chat"))
        status = service.get("status", {})
        return status.get("scaling", {}), status.get("replicas", 0)

    async def service_sleeps() -> None:
        scaling, replicas = await read_scaling()
        assert (scaling.get("reason"), replicas) == ("ScaledToZero", 0)

    await release.wait_for_reason(namespace, "chat", "Ready", "CompletionSucceeded")
    await eventually(service_sleeps)
    created = json.loads(
        await release.cluster.tessera("key", "create", "--tenant", "sleepers", "-o", "json")
    )
    host = (await release.cluster.api.get(SERVICE))["spec"]["clusterIP"]
    body = {"model": "chat", "prompt": "A tile of a mosaic", "max_tokens": 4}
    started = time.monotonic()
    async with httpx.AsyncClient(timeout=120) as client:
        response = await client.post(
            f"http://{host}/v1/completions",
            json=body,
            headers={"Authorization": f"Bearer {created['key']}"},
        )
    seconds = time.monotonic() - started
    print(f"woke in {seconds:.1f} s: {dict(response.headers)}")
    assert response.status_code == HTTPStatus.OK, response.text

    async def last_changes_are_reported() -> None:
        scaling, _ = await read_scaling()
        changes = [change["replicas"] for change in scaling.get("recentChanges", [])]
        assert changes[-2:] == [0, 1]

    # The status may come after the answer.
    await eventually(last_changes_are_reported)


async def test_the_autoscaler_of_the_gateway_can_be_switched_off(release: Release) -> None:
    """Its number of pods follows `replicaCount` then, also with SQLite again."""
    fixed = {"database": {"secretName": "postgres"}, "autoscaling": {"enabled": False}}
    await release.create_secret("postgres", url="postgresql://nowhere/tessera")
    await release.install(gateway={"enabled": True, **fixed})
    api = release.cluster.api

    async def upgrade(**gateway: object) -> None:
        release.forget_values()
        values = [f"gateway.{name.replace('_', '.')}={value}" for name, value in gateway.items()]
        await release.cluster.run(
            *("helm", "upgrade", "tessera", str(CHART), "--namespace", NAMESPACE),
            *("--reuse-values", "--set", ",".join(values)),
        )

    async def expect_pods(pods: int) -> None:
        async def pods_are_wanted() -> None:
            assert (await api.get(GATEWAY))["spec"]["replicas"] == pods

        await eventually(pods_are_wanted)

    await expect_pods(1)
    # As an autoscaler does in the moment before Helm deletes it.
    scale = f"{GATEWAY}/scale?fieldManager=kube-controller-manager"
    await api.patch(scale, {"spec": {"replicas": 2}})
    await upgrade(replicaCount=3)
    await expect_pods(3)
    await upgrade(autoscaling_enabled="true", autoscaling_minReplicas=4)
    await expect_pods(4)
    await upgrade(database_secretName="", replicaCount=1)
    await expect_pods(1)


async def test_an_installation_that_could_not_start_is_refused_with_what_to_write(
    release: Release,
) -> None:
    async def refusal(*values: str) -> str:
        upgrade = ("upgrade", "--install", "tessera", str(CHART), "--namespace", NAMESPACE)
        try:
            return await release.cluster.run(
                *("helm", *upgrade, "--dry-run=server", "--set", ",".join(values))
            )
        except StepError as error:
            return str(error)

    await release.install()
    # A gateway of another test may have left it.
    claim = ("pvc", "tessera-gateway", "-n", NAMESPACE)
    await release.kubectl("delete", *claim, "--ignore-not-found")
    missing = await refusal(
        *("gateway.database.secretName=absent", "gateway.tls.secretName=gone"),
        "gateway.keysNamespace=nowhere",
    )
    for line in (
        "- gateway.keysNamespace: namespace nowhere does not exist: kubectl create namespace",
        f"- gateway.database.secretName: Secret {NAMESPACE}/absent with the key url does not exist",
        f"- gateway.tls.secretName: Secret {NAMESPACE}/gone with a certificate does not exist",
    ):
        assert line in missing
    assert "kubectl -n tessera-system create secret generic absent --from-literal=url=" in missing

    default = "storageclass.kubernetes.io/is-default-class"
    annotate = ("annotate", "--overwrite", "storageclass", "world")
    try:
        await release.kubectl(*annotate, f"{default}=false")
        text = "no StorageClass is the default of world: name one by"
        assert text in await refusal("logLevel=info")
        for value in ("storageClassName=world", "size="):
            output = await refusal(f"gateway.database.sqlite.{value}")
            assert "Tessera runs in" in output
    finally:
        await release.kubectl(*annotate, f"{default}=true")


async def test_keys_in_the_namespace_of_the_release_go_on_until_they_are_moved(
    release: Release,
) -> None:
    await release.install()
    api, name, keys = release.cluster.api, "tessera-keys-movers", keys_namespace(NAMESPACE)
    # A gateway of another test may have left it.
    await release.kubectl("delete", "namespace", keys, "--ignore-not-found")
    secret: Json = {
        "metadata": {"name": name, "labels": {TENANT_LABEL: "movers"}},
        "type": KEYS_TYPE,
        "data": {"ci": "e30="},
    }
    await api.create(KEY_SECRETS.path(NAMESPACE), secret)

    async def upgrade() -> tuple[list[str], bool]:
        """Return the namespaces that a gateway would read, and whether Helm warns."""
        output = await release.cluster.run(
            *("helm", "upgrade", "tessera", str(CHART), "--namespace", NAMESPACE),
            *("--dry-run=server", "--set", "gateway.enabled=true"),
        )
        (value,) = re.findall(r"TESSERA_KEYS_NAMESPACES\n +value: (.*)", output)
        return json.loads(json.loads(value)), "WARNING: keys of tenants are in" in output

    assert await upgrade() == ([keys, NAMESPACE], True)
    # As Helm creates it.
    annotations = {"release-name": "tessera", "release-namespace": NAMESPACE}
    meta = {
        "name": keys,
        "labels": {"app.kubernetes.io/managed-by": "Helm"},
        "annotations": {f"meta.helm.sh/{name}": text for name, text in annotations.items()},
    }
    await api.create("/api/v1/namespaces", {"metadata": meta})
    page = (ROOT / page_of("upgrade")).read_text(encoding="utf-8")
    commands = re.findall(
        r"^    (kubectl -n tessera-system .* type=tessera.dev/keys.*)$", page, re.M
    )
    assert len(commands) == 2
    world = release.cluster.world
    path = f"{world.binary('kubectl').parent}:{os.environ['PATH']}"
    environment = os.environ | {"PATH": path, "KUBECONFIG": str(world.kubeconfig)}
    shell = ["sh", "-ec", "\n".join(commands)]
    await asyncio.to_thread(subprocess.run, shell, env=environment, check=True)
    moved = await api.get(KEY_SECRETS.path(keys, name))
    assert {field: moved[field] for field in ("type", "data")} == {
        field: secret[field] for field in ("type", "data")
    }
    assert moved["metadata"]["labels"] == secret["metadata"]["labels"]
    assert await upgrade() == ([keys], False)
    await release.kubectl("delete", "namespace", keys)
