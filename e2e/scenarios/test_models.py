"""Models of a new user: unknown and gated ones, a claim that is filled once, adapters.

The hub has a loopback address and is set in the chart as any mirror would be.
"""

import base64
import json
from collections.abc import AsyncIterator

import httpx
import pytest
import yaml

from chart_tests.release import Release
from demo.cluster import CHART, NAMESPACE, InstalledCluster, Json, condition, install
from images import images
from scenarios.actions import SMALL, ScenarioNamespace
from tessera.api.inference_service import InferenceServiceSpec
from tessera.api.template_version import PodTemplateVersion
from tessera.resources.api_resources import CLAIMS, JOBS, PODS
from tessera.resources.platform import engine_image, priority_class
from tessera.settings import Settings
from world.api import SECRETS
from world.hub import COMMIT, TOKEN, Hub, a_model, serve_hub
from world.testing import eventually

OWN = "hf://acme/own"
EXAMPLE = InferenceServiceSpec.model_validate({"model": {"uri": SMALL}})
SECRET = "hf://acme/secret"  # noqa: S105 - a model


@pytest.fixture
async def hub(cluster: InstalledCluster) -> AsyncIterator[Hub]:
    """A hub that the installed chart uses during a test."""
    hub = Hub(
        repositories={"acme/own": a_model(), "acme/secret": a_model()},
        gated=frozenset({"acme/secret"}),
    )
    async with serve_hub(hub):
        await cluster.run(
            *("helm", "upgrade", "tessera", str(CHART), "--namespace", NAMESPACE),
            *("--reuse-values", "--set", f"platform.hubEndpoint={hub.url}"),
        )
        # The previous operator would give jobs the address of a hub that has ended.
        await Release(cluster).wait_until_rolled_out()
        yield hub
    await install(cluster)
    await Release(cluster).wait_until_rolled_out()


@pytest.mark.full
async def test_a_model_without_a_description_is_read_and_served(
    namespace: ScenarioNamespace, hub: Hub
) -> None:
    await namespace.apply_service(model={"uri": OWN}, replicas=1)
    await namespace.wait_until_ready()
    model = (await namespace.service_status())["model"]
    assert (model["shape"]["layers"], model["shape"]["kvHeads"]) == (12, 4)
    assert model["source"] == f"config.json of {OWN} at {COMMIT}"
    assert "/acme/own/resolve/main/config.json" in hub.requested_paths

    async def jobs_are_gone() -> None:
        assert [job["metadata"]["name"] for job in await namespace.list_objects(JOBS)] == []

    await eventually(jobs_are_gone)


@pytest.mark.full
async def test_a_gated_model_says_what_is_missing_until_it_is_there(
    namespace: ScenarioNamespace, hub: Hub
) -> None:
    await namespace.apply_service("open", model={"uri": SECRET}, replicas=1)
    words = ("the hub answered 401", "name a Secret with a token")
    await namespace.wait_for_condition("open", "Accepted", "UnknownModel", words=words)

    token = {"tokenSecretRef": {"name": "hub"}}
    ref = await namespace.apply_service(model={"uri": SECRET, **token}, replicas=1)

    async def secret_is_missing() -> None:
        accepted = condition(await namespace.cluster.service(ref), "Accepted")
        command = f"kubectl create secret generic hub -n {namespace.name}"
        assert command in accepted.get("message", "")

    await eventually(secret_is_missing)
    secret = {
        "metadata": {"name": "hub", "namespace": namespace.name},
        "data": {"token": base64.b64encode(TOKEN.encode()).decode()},
    }
    await namespace.cluster.api.create(SECRETS.path(namespace.name), secret)
    await namespace.wait_until_ready()
    assert "/acme/secret/resolve/main/config.json" in hub.requested_paths


async def test_a_claim_is_filled_once_for_all_replicas_and_shows_its_progress(
    namespace: ScenarioNamespace, hub: Hub
) -> None:
    hub.open.clear()
    cache = {"type": "PersistentVolumeClaim", "storageClassName": "world"}
    await namespace.apply_service(model={"uri": OWN, "cache": cache}, replicas=2)

    async def read_cache() -> Json:
        cache_status: Json = (await namespace.service_status()).get("model", {}).get("cache", {})
        return cache_status

    async def is_partly_fetched() -> None:
        cache_status = await read_cache()
        assert 0 < cache_status.get("bytesDone", 0) < cache_status.get("bytesTotal", 0)

    await eventually(is_partly_fetched)
    await namespace.wait_for_condition("chat", "Progressing", "FetchingModel", words=("%",))
    pod_labels = [pod["metadata"]["labels"] for pod in await namespace.list_objects(PODS)]
    assert not [labels for labels in pod_labels if "tessera.dev/service" in labels]

    hub.open.set()
    await namespace.wait_until_ready()
    final_cache = await read_cache()
    assert (final_cache["fetched"], final_cache["commit"]) == (True, COMMIT)
    assert hub.requested_paths.count("/acme/own/resolve/" + COMMIT + "/model.safetensors") == 1
    (claim,) = await namespace.list_objects(CLAIMS)
    assert claim["metadata"]["name"] == final_cache["claimName"]
    assert claim["metadata"]["name"].startswith("model-")

    async def engines_load_it() -> None:
        paths = [
            pod["spec"]["containers"][0]["args"][0]
            for pod in await namespace.list_objects(PODS)
            if "tessera.dev/service" in pod["metadata"]["labels"]
        ]
        assert paths == [f"/models/{final_cache['path']}"] * 2

    await eventually(engines_load_it)


async def test_two_values_set_a_mirror_and_priorities(cluster: InstalledCluster) -> None:
    mirror = "registry.acme:5000/mirror"
    manifests = await cluster.run(
        *("helm", "template", "tessera", str(CHART), "--namespace", NAMESPACE),
        *("--set", f"platform.imageRegistry={mirror},platform.priorityClasses=true"),
        *("--set", "batchImage.repository=ghcr.io/acme/batch,gateway.enabled=false"),
    )
    bodies = [body for body in yaml.safe_load_all(manifests) if body]
    (operator,) = [body for body in bodies if body["kind"] == "Deployment"]
    (container,) = operator["spec"]["template"]["spec"]["containers"]
    variables = {variable["name"]: variable.get("value") for variable in container["env"]}
    mirrored, *_, engine = images(mirror)
    assert container["image"] == mirrored
    assert variables["TESSERA_BATCH_IMAGE"].startswith("ghcr.io/acme/batch:")
    platform = Settings(platform=json.loads(variables["TESSERA_PLATFORM"])).platform
    assert platform.priority_classes
    assert engine_image(EXAMPLE, PodTemplateVersion(platform=platform)) == engine
    classes = {body["metadata"]["name"]: body for body in bodies if body["kind"] == "PriorityClass"}
    assert {*classes} == {
        priority_class(EXAMPLE, platform),
        "tessera-standard",
        "tessera-batch",
        "tessera-placeholder",
    }
    assert classes["tessera-batch"]["preemptionPolicy"] == "Never"


async def test_adapters_answer_by_their_names(namespace: ScenarioNamespace) -> None:
    adapters = [{"name": "sql", "uri": "hf://acme/sql-lora"}]
    ref = await namespace.apply_service(model={"uri": SMALL, "adapters": adapters}, replicas=1)
    await namespace.wait_until_ready()
    base = await namespace.cluster.address(ref)
    async with httpx.AsyncClient(base_url=base, timeout=60) as client:
        models = (await client.get("/v1/models")).json()["data"]
        completion = await client.post(
            "/v1/completions", json={"model": "sql", "prompt": "hi", "max_tokens": 2}
        )
    assert [model["id"] for model in models] == ["chat", "sql"]
    assert completion.json()["model"] == "sql"
