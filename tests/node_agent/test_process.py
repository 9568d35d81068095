"""`tessera-node` as a process: the real API server, a kubelet's socket, and simulated GPUs."""

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from http import HTTPStatus
from pathlib import Path
from typing import Any

import pytest

import world as worlds
from fakegpu import remote
from fakegpu.gpu_driver import GpuDriver
from fakegpu.pod_resources import DeviceGrant, serve_pod_resources
from tessera.adapters.kube.client import KubeCluster
from tessera.adapters.kube.connection import connect
from tessera.adapters.node_layout_client import KubeOwnLayout
from tessera.api.node_layout import NodeLayoutStatus
from tessera.domain.kinds.kinds import NODE_LAYOUTS
from tessera.ports import ClusterError
from tessera.resources.api_resources import NODES
from tests.node_agent import rights
from world.testing import eventually

ROOT = Path(remote.__file__).parents[2]
A100 = "NVIDIA-A100-SXM4-80GB"
NODE = "mig-1"

pytestmark = pytest.mark.world


@asynccontextmanager
async def running_agent(
    kubeconfig: Path, folder: Path
) -> AsyncIterator[asyncio.subprocess.Process]:
    environment = {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": os.pathsep.join(
            [str(remote.SHIM), str(ROOT / "operator"), str(ROOT / "e2e")]
        ),
        "KUBECONFIG": str(kubeconfig),
        remote.SOCKET: str(folder / "nvml"),
        "TESSERA_NODE_NAME": NODE,
        "TESSERA_POD_RESOURCES_SOCKET": str(folder / "kubelet.sock"),
        "TESSERA_LOCK_DIRECTORY": str(folder),
        "TESSERA_POLL_INTERVAL_SECONDS": "0.2",
        "TESSERA_PROBES_PORT": "0",
        "TESSERA_PARTITION": "true",
    }
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tessera.node_agent.main", "--host", "127.0.0.1", env=environment
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.send_signal(signal.SIGTERM)
            async with asyncio.timeout(60):
                assert await process.wait() == 0


async def a_node(cluster: KubeCluster, name: str) -> dict[str, Any]:
    node = {"apiVersion": "v1", "kind": "Node", "metadata": {"name": name}}
    return await rights.apply(cluster, NODES.path(None), node)


async def read(cluster: KubeCluster) -> dict[str, Any]:
    code, body = await cluster.request("GET", NODE_LAYOUTS.path(None, NODE))
    assert code == HTTPStatus.OK, body
    return {"status": {}, **body}


def slices_of_gpu(body: dict[str, Any]) -> list[tuple[str, int]]:
    gpus = body["status"].get("gpus", [{}])
    return [(gpu_slice["profile"], gpu_slice["start"]) for gpu_slice in gpus[0].get("slices", [])]


async def test_an_agent_reports_and_partitions_and_another_completes_what_a_kill_interrupted(
    cluster: KubeCluster, world: worlds.World, tmp_path: Path
) -> None:
    node = await a_node(cluster, NODE)
    await rights.grant(cluster)
    config = rights.kubeconfig(world.kubeconfig, await rights.token(cluster, NODE), tmp_path)
    gpu_driver = GpuDriver(A100, 1, layouts=[[("3g.40gb", 4), ("4g.40gb", 0)]])
    used_uuid = gpu_driver.gpus[0].instances[1].uuid
    resource = "nvidia.com/mig-3g.40gb"
    granted = [DeviceGrant(namespace="a", pod="chat-0", resource=resource, devices=(used_uuid,))]
    driver = await remote.serve(gpu_driver, tmp_path / "nvml")
    async with driver, serve_pod_resources(lambda: granted, tmp_path / "kubelet.sock"):
        async with running_agent(config, tmp_path) as process:

            async def layout_is_reported() -> None:
                body = await read(cluster)
                assert slices_of_gpu(body) == [("4g.40gb", 0), ("3g.40gb", 4)]
                assert body["metadata"]["ownerReferences"][0]["uid"] == node["metadata"]["uid"]
                assert body["status"]["gpus"][0]["slices"][1].get("pods") == ["a/chat-0"]

            await eventually(layout_is_reported)
            spec = {
                "gpus": [
                    {
                        "uuid": gpu_driver.gpus[0].uuid,
                        "slices": [
                            {"profile": "3g.40gb", "start": 4},
                            {"profile": "3g.40gb", "start": 0},
                        ],
                    }
                ]
            }

            def kill_after_destroy(_number: int, name: str, moment: str) -> None:
                """Kill the agent after the old instance is destroyed, before the new one exists."""
                if (name, moment) == ("nvmlGpuInstanceDestroy", "after"):
                    process.kill()

            gpu_driver.on_call = kill_after_destroy
            await cluster.request(
                "PATCH",
                NODE_LAYOUTS.path(None, NODE),
                body={"spec": spec},
                content_type="application/merge-patch+json",
            )
            async with asyncio.timeout(60):
                assert await process.wait() == -signal.SIGKILL
        gpu_driver.on_call = lambda _number, _name, _moment: None
        async with running_agent(config, tmp_path):

            async def new_layout_is_reported() -> None:
                body = await read(cluster)
                assert body["status"].get("observedGeneration") == body["metadata"]["generation"]
                assert slices_of_gpu(body) == [("3g.40gb", 0), ("3g.40gb", 4)]

            await eventually(new_layout_is_reported)
    assert gpu_driver.gpus[0].instances[1].uuid == used_uuid


async def test_an_agent_writes_the_layout_of_its_own_node_and_never_a_spec(
    cluster: KubeCluster, world: worlds.World, tmp_path: Path
) -> None:
    for name in ("mig-2", "mig-3"):
        await a_node(cluster, name)
    await rights.grant(cluster)
    config = rights.kubeconfig(world.kubeconfig, await rights.token(cluster, "mig-2"), tmp_path)
    agent_cluster = KubeCluster(await connect(str(config)))
    try:
        await KubeOwnLayout(cluster, "mig-3").read()

        async def policy_is_in_force() -> None:
            refusal = ""
            try:
                await KubeOwnLayout(agent_cluster, "mig-3").write(NodeLayoutStatus(problem="a lie"))
            except ClusterError as error:
                refusal = str(error)
            assert "only the NodeLayout of its own node" in refusal

        await eventually(policy_is_in_force)
        own = KubeOwnLayout(agent_cluster, "mig-2")
        assert (await own.read()).status is None
        await own.write(NodeLayoutStatus(driver_version="580"))
        status = (await own.read()).status
        assert status is not None
        assert status.driver_version == "580"
        patch = {"spec": {"gpus": [{"uuid": "GPU-1"}]}}
        merge = "application/merge-patch+json"
        path = NODE_LAYOUTS.path(None, "mig-2")
        for sub in ("", "/status"):
            code, response = await agent_cluster.request(
                "PATCH", f"{path}{sub}", body=patch, content_type=merge
            )
            assert code == HTTPStatus.FORBIDDEN or response["metadata"]["generation"] == 1
        code, _ = await agent_cluster.request("DELETE", path)
        assert code == HTTPStatus.FORBIDDEN
    finally:
        await agent_cluster.close()
