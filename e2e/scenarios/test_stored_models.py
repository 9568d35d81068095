"""Models in a bucket: int4 files beside the base, fetched through ten kills, and served."""

from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest

from scenarios.actions import ScenarioNamespace
from scenarios.commands import explain
from tessera.domain.model.names import MODEL_JOB_CONTAINER, MODEL_JOB_LABEL
from tessera.resources.api_resources import CLAIMS, PODS
from tests.batch_runner.object_stores import BUCKET, Gate, upload, with_sums
from world.api import SECRETS
from world.hub import a_model
from world.object_store import ObjectStore, serve_object_store
from world.testing import eventually

BASE, AWQ = f"s3://{BUCKET}/llama", f"s3://{BUCKET}/llama-awq"
LLAMA = {
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
}
QUANTIZED = {"quantization_config": {"quant_method": "awq", "bits": 4, "group_size": 128}}
WEIGHTS_BYTES = 64 * 2**20
KILLS = 10


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[ObjectStore]:
    """A bucket with a model in two precisions."""
    weights = {"model.safetensors": bytes(range(256)) * (WEIGHTS_BYTES // 256)}
    async with serve_object_store(tmp_path, BUCKET) as store:
        await upload(store, with_sums(a_model(**LLAMA)))
        await upload(store, with_sums(a_model(**LLAMA, **QUANTIZED) | weights), "llama-awq")
        yield store


async def list_fetches(namespace: ScenarioNamespace, ended: frozenset[str]) -> list[str]:
    """Return the pods that fetch, without those that were killed."""
    pods = await namespace.list_objects(PODS)
    tasks = {pod["metadata"]["name"]: pod["metadata"]["labels"] for pod in pods}
    fetches = {name for name, labels in tasks.items() if labels.get(MODEL_JOB_LABEL) == "fetch"}
    return sorted(fetches - ended)


async def kill_fetches(namespace: ScenarioNamespace, gate: Gate) -> None:
    """Kill the fetch at ten moments, a tenth of the weights apart."""
    ended = frozenset[str]()

    async def next_fetch_runs() -> list[str]:
        pods = await list_fetches(namespace, ended)
        assert pods != []
        return pods

    for _ in range(KILLS):
        await gate.reached.wait()
        (pod,) = await eventually(next_fetch_runs)
        namespace.cluster.world.kill(namespace.name, pod, MODEL_JOB_CONTAINER)
        ended |= {pod}
        gate.limit += WEIGHTS_BYTES // KILLS
        gate.reached.clear()
    gate.opened.set()


@pytest.mark.full
async def test_files_of_a_bucket_in_int4_are_chosen_and_fetched_through_ten_kills(
    namespace: ScenarioNamespace, store: ObjectStore
) -> None:
    secret = {
        "metadata": {"name": "bucket", "namespace": namespace.name},
        "stringData": store.environment(),
    }
    await namespace.cluster.api.create(SECRETS.path(namespace.name), secret)
    async with Gate(store.url, 2**20) as gate:
        model = {
            "uri": BASE,
            "store": {"secretName": "bucket", "endpoint": gate.url, "region": "us-east-1"},
            "cache": {"storageClassName": "world", "size": "1Gi"},
        }
        precision = {"variants": [{"precision": "awq-int4", "uri": AWQ}]}
        ref = await namespace.apply_service(model=model, precision=precision, replicas=1)
        await kill_fetches(namespace, gate)
        await namespace.wait_until_ready(within=120)
        passed = gate.passed

        cache = (await namespace.service_status())["model"]["cache"]
        assert cache["fetched"]
        (claim,) = await namespace.list_objects(CLAIMS)
        assert claim["metadata"]["name"] == cache["claimName"]
        # What a killed attempt had received and not yet written comes again.
        assert passed < WEIGHTS_BYTES + KILLS * 8 * 2**20
        prices = (await explain(namespace))["precision"]["numbers"]
        assert all("USD" in price for price in prices.values())
        assert {label for label, price in prices.items() if "chosen" in price} == {"awq-int4"}

        await namespace.apply_service("second", model=model, precision=precision, replicas=1)
        await namespace.wait_until_ready("second")
        assert gate.passed - passed < 2**16
        base = await namespace.cluster.address(ref)
        async with httpx.AsyncClient(base_url=base, timeout=60) as client:
            models = (await client.get("/v1/models")).json()["data"]
        assert [each["id"] for each in models] == ["chat"]
