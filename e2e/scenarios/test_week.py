"""The first week: unknown and gated models, a claim that is filled once, adapters.

The hub stands on a loopback address and is given to the chart as any mirror would be.
"""

import base64
import json
from collections.abc import AsyncIterator

import httpx
import pytest
import yaml

from chart_tests.release import Release
from demo.stage import CHART, NAMESPACE, Json, Stage, install
from images import images
from scenarios.actions import SMALL, Place
from tessera.api.inference_service import InferenceServiceSpec
from tessera.api.recipe import PodTemplateVersion
from tessera.domain.model.names import claim_name
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
async def hub(stage: Stage) -> AsyncIterator[Hub]:
    """A hub that the installed chart knows, for the time of a test."""
    made = Hub(
        repositories={"acme/own": a_model(), "acme/secret": a_model()},
        gated=frozenset({"acme/secret"}),
    )
    async with serve_hub(made):
        await stage.run(
            *("helm", "upgrade", "tessera", str(CHART), "--namespace", NAMESPACE),
            *("--reuse-values", "--set", f"platform.hubEndpoint={made.url}"),
        )
        # A former operator would give jobs the address of a hub that is gone.
        await Release(stage).wait_until_rolled_out()
        yield made
    await install(stage)
    await Release(stage).wait_until_rolled_out()


async def test_a_model_that_nobody_described_is_read_and_served(place: Place, hub: Hub) -> None:
    await place.serve(model={"uri": OWN}, replicas=1)
    await place.until_ready(within=60)
    model = (await place.status())["model"]
    assert (model["shape"]["layers"], model["shape"]["kvHeads"]) == (12, 4)
    assert model["source"] == f"config.json of {OWN} at {COMMIT}"
    assert "/acme/own/resolve/main/config.json" in hub.requested_paths

    async def jobs() -> list[Json]:
        return await place.all(JOBS)

    await eventually(jobs, lambda left: not left)


async def test_a_gated_model_says_what_is_missing_until_it_is_there(place: Place, hub: Hub) -> None:
    await place.serve("open", model={"uri": SECRET}, replicas=1)
    told = await place.until_condition("open", "Accepted", "UnknownModel", within=40)
    assert "the hub answered 401" in told["message"]
    assert "name a Secret with a token" in told["message"]

    token = {"tokenSecretRef": {"name": "hub"}}
    await place.serve(model={"uri": SECRET, **token}, replicas=1)

    async def reading() -> str:
        found = (await place.status()).get("conditions", [])
        return " ".join(one["message"] for one in found if one["type"] == "Accepted")

    wanted = f"kubectl create secret generic hub -n {place.namespace}"
    await eventually(reading, lambda words: wanted in words, within=40)
    secret = {
        "metadata": {"name": "hub", "namespace": place.namespace},
        "data": {"token": base64.b64encode(TOKEN.encode()).decode()},
    }
    await place.stage.api.create(SECRETS.path(place.namespace), secret)
    await place.until_ready(within=60)
    assert "/acme/secret/resolve/main/config.json" in hub.requested_paths


async def test_a_claim_is_filled_once_for_all_replicas_and_shows_how_far_it_is(
    place: Place, hub: Hub
) -> None:
    hub.open.clear()
    cache = {"type": "PersistentVolumeClaim", "storageClassName": "world"}
    await place.serve(model={"uri": OWN, "cache": cache}, replicas=2)

    def cached(status: Json) -> Json:
        found: Json = status.get("model", {}).get("cache", {})
        return found

    half = cached(
        await eventually(
            place.status, lambda found: cached(found).get("bytesDone", 0) > 0, within=60
        )
    )
    assert half["bytesDone"] < half["bytesTotal"]
    told = await place.until_condition("chat", "Progressing", "FetchingModel")
    assert "%" in told["message"]
    pods = [one["metadata"]["labels"] for one in await place.all(PODS)]
    assert not [labels for labels in pods if "tessera.dev/service" in labels]

    hub.open.set()
    await place.until_ready(within=60)
    done = cached(await place.status())
    assert (done["fetched"], done["commit"]) == (True, COMMIT)
    assert hub.requested_paths.count("/acme/own/resolve/" + COMMIT + "/model.safetensors") == 1
    (claim,) = await place.all(CLAIMS)
    assert claim["metadata"]["name"] == claim_name("chat") == done["claimName"]
    engines = [
        one["spec"] for one in await place.all(PODS)
        if "tessera.dev/service" in one["metadata"]["labels"]
    ]  # fmt: skip
    assert len(engines) == 2
    assert {one["containers"][0]["args"][0] for one in engines} == {f"/models/{done['path']}"}


async def test_a_mirror_and_priorities_are_a_matter_of_two_values(stage: Stage) -> None:
    mirror = "registry.acme:5000/mirror"
    rendered = await stage.run(
        *("helm", "template", "tessera", str(CHART), "--namespace", NAMESPACE),
        *("--set", f"platform.imageRegistry={mirror},platform.priorityClasses=true"),
        *("--set", "batchImage.repository=ghcr.io/acme/batch"),
    )
    found = [one for one in yaml.safe_load_all(rendered) if one]
    (operator,) = [one for one in found if one["kind"] == "Deployment"]
    (container,) = operator["spec"]["template"]["spec"]["containers"]
    told = {one["name"]: one.get("value") for one in container["env"]}
    mirrored, _, _, engine = images(mirror)
    assert container["image"] == mirrored
    assert told["TESSERA_BATCH_IMAGE"].startswith("ghcr.io/acme/batch:")
    platform = Settings(platform=json.loads(told["TESSERA_PLATFORM"])).platform
    assert platform.priority_classes
    assert engine_image(EXAMPLE, PodTemplateVersion(platform=platform)) == engine
    classes = {one["metadata"]["name"]: one for one in found if one["kind"] == "PriorityClass"}
    assert {priority_class(EXAMPLE, platform), "tessera-standard", "tessera-batch"} == {*classes}
    assert classes["tessera-batch"]["preemptionPolicy"] == "Never"


async def test_adapters_answer_by_their_names(place: Place) -> None:
    adapters = [{"name": "sql", "uri": "hf://acme/sql-lora"}]
    ref = await place.serve(model={"uri": SMALL, "adapters": adapters}, replicas=1)
    await place.until_ready(within=60)
    async with httpx.AsyncClient(base_url=await place.stage.address(ref)) as client:
        listed = (await client.get("/v1/models")).json()["data"]
        answered = await client.post(
            "/v1/completions", json={"model": "sql", "prompt": "hi", "max_tokens": 2}
        )
    assert [one["id"] for one in listed] == ["chat", "sql"]
    assert answered.json()["model"] == "sql"
