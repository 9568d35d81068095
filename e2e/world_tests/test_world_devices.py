"""GPUs and MIG slices: who gets which, and what the exporter and Prometheus say of them."""

import re
from typing import Any

import aiohttp
import pytest

import world as worlds
from world.api import Json
from world.testing import WorldNamespace, a_container, a_pod, eventually, http_get

pytestmark = pytest.mark.world
SLICE = "nvidia.com/mig-1g.10gb"
IDLE_WATTS = 56


def a_gpu_container(resource: str, count: int = 1, **fields: Any) -> Json:
    return a_container(resources={"limits": {resource: str(count)}}, **fields)


async def read_environment(pod: Json) -> dict[str, str]:
    environment: dict[str, str] = await (await http_get(pod, "/env")).json()
    return environment


async def query_prometheus(world: worlds.World, query: str) -> list[dict[str, str]]:
    """Return the label sets that Prometheus answers, with the value under `value`."""
    url = f"{world.prometheus_url}/api/v1/query"
    async with (
        aiohttp.ClientSession() as session,
        session.get(url, params={"query": query}) as response,
    ):
        body: dict[str, Any] = await response.json()
    return [sample["metric"] | {"value": sample["value"][1]} for sample in body["data"]["result"]]


@pytest.mark.smoke
async def test_every_pod_gets_a_slice_of_its_own_and_keeps_it(
    namespace: WorldNamespace, world: worlds.World
) -> None:
    pods = [
        await namespace.start_pod(a_pod(f"engine-{n}", a_gpu_container(SLICE))) for n in range(2)
    ]
    first, second = [await read_environment(pod) for pod in pods]

    assert first["TESSERA_SIM_DEVICE"] == "NVIDIA-A100-SXM4-80GB/1g.10gb"
    assert first["TESSERA_SIM_DEVICES"] == "1"
    assert first["NVIDIA_VISIBLE_DEVICES"].startswith("MIG-")
    assert first["NVIDIA_VISIBLE_DEVICES"] != second["NVIDIA_VISIBLE_DEVICES"]

    world.kill(namespace.name, "engine-0", "main")
    pod = await namespace.wait_for_restart("engine-0")
    after_restart = await read_environment(pod)
    assert after_restart["NVIDIA_VISIBLE_DEVICES"] == first["NVIDIA_VISIBLE_DEVICES"]


async def test_whole_gpus_are_counted(namespace: WorldNamespace) -> None:
    toleration = {"key": "kubernetes.azure.com/scalesetpriority", "operator": "Exists"}

    pod = await namespace.start_pod(
        a_pod("engine", a_gpu_container("nvidia.com/gpu", 2), tolerations=[toleration])
    )

    environment = await read_environment(pod)
    assert environment["TESSERA_SIM_DEVICE"] == "NVIDIA-H100-80GB-HBM3"
    assert environment["TESSERA_SIM_DEVICES"] == "2"


async def test_a_pod_that_asks_for_more_than_there_is_fails_its_admission(
    namespace: WorldNamespace,
) -> None:
    # Bound by hand, since the scheduler would not.
    pod = await namespace.run_pod(
        a_pod("greedy", a_gpu_container("nvidia.com/gpu", 2), nodeName="a100")
    )

    assert pod["status"]["phase"] == "Failed"
    assert pod["status"]["reason"] == "UnexpectedAdmissionError"
    assert "Requested: 2, Available: 1" in pod["status"]["message"]


async def test_the_slice_of_an_ended_pod_is_free_again(namespace: WorldNamespace) -> None:
    script = "exit 0"
    for number in range(3):
        container = a_container(script, resources={"limits": {"nvidia.com/mig-3g.40gb": "1"}})
        await namespace.run_pod(a_pod(f"short-{number}", container, restartPolicy="Never"))


async def test_the_exporter_says_who_is_on_which_slice_and_how_busy_it_is(
    namespace: WorldNamespace, world: worlds.World
) -> None:
    await namespace.start_pod(a_pod("engine", a_gpu_container(SLICE, args=["--busy"])))

    expected = {
        "pod": "engine",
        "container": "main",
        "node": "a100",
        "hostname": "a100",
        "gpu": "0",
        "device": "nvidia0",
        "modelName": "NVIDIA A100-SXM4-80GB",
        "GPU_I_PROFILE": "1g.10gb",
        "job": "dcgm-exporter",
    }

    async def slice_is_busy() -> None:
        selector = f'{{namespace="{namespace.name}"}}'
        active = await query_prometheus(world, f"DCGM_FI_PROF_GR_ENGINE_ACTIVE{selector} > 0.5")
        assert [{key: sample.get(key) for key in expected} for sample in active] == [expected]
        assert re.fullmatch(r"\d+", active[0]["GPU_I_ID"])
        used = await query_prometheus(world, f"DCGM_FI_DEV_FB_USED{selector}")
        assert [float(sample["value"]) > 8000 for sample in used] == [True], used
        drawn = await query_prometheus(world, f"DCGM_FI_DEV_POWER_USAGE{selector}")
        assert [float(sample["value"]) > IDLE_WATTS for sample in drawn] == [True], drawn

    await eventually(slice_is_busy)


async def test_energy_grows_through_restarts_of_the_exporter_and_begins_with_the_driver(
    world: worlds.World,
) -> None:
    energy = 'DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION{node="a100",gpu="0"}'

    async def has_more_than(millijoules: int) -> int:
        samples = await query_prometheus(world, energy)
        values = {int(sample["value"]) for sample in samples}
        assert (len(samples), len(values)) == (5, 1), samples
        assert min(values) > millijoules
        return min(values)

    async def have_fallen(times: int) -> None:
        (sample,) = await query_prometheus(world, f"max(resets({energy}[10m]))")
        assert sample["value"] == str(times)

    before = await eventually(lambda: has_more_than(0))
    (exporter,) = [
        container
        for container in world.containers()
        if container.node == "a100" and container.pod.startswith("dcgm-exporter")
    ]
    world.kill(exporter.namespace, exporter.pod, exporter.container)
    await eventually(lambda: has_more_than(before))
    await have_fallen(times=0)

    world.restart_driver("a100")
    await eventually(lambda: have_fallen(times=1))


async def test_slices_have_no_gpu_utilization(world: worlds.World) -> None:
    async def whole_gpu_is_scraped() -> list[dict[str, str]]:
        samples = await query_prometheus(world, 'DCGM_FI_DEV_GPU_UTIL{node="a100"}')
        assert samples
        return samples

    samples = await eventually(whole_gpu_is_scraped)
    assert {sample["gpu"] for sample in samples} == {"1"}
    assert all("GPU_I_ID" not in sample for sample in samples)


async def test_prometheus_scrapes_engines_and_of_them_only_what_engines_export(
    namespace: WorldNamespace, world: worlds.World
) -> None:
    identity = {"tessera.dev/service": "chat", "tessera.dev/variant": "a100-1g"}
    labels = {"app.kubernetes.io/component": "engine"} | identity
    await namespace.start_pod(a_pod("engine", labels=labels))
    await namespace.start_pod(a_pod("exporter", labels={"app.kubernetes.io/name": "dcgm-exporter"}))
    await namespace.start_pod(a_pod("stranger"))

    async def engine_is_scraped() -> dict[str, str]:
        samples = await query_prometheus(world, f'up{{namespace="{namespace.name}"}} == 1')
        assert len(samples) == 1, samples
        return samples[0]

    sample = await eventually(engine_is_scraped)
    assert await query_prometheus(world, f'world_requests_total{{pod="{sample["pod"]}"}}') == []

    expected = {
        "job": f"{namespace.name}/tessera-engine",
        "pod": "engine",
        "tessera_dev_service": "chat",
        "tessera_dev_variant": "a100-1g",
        "container": "main",
    }
    assert {key: sample.get(key) for key in expected} == expected
    assert sample["node"]
