"""The process of a gateway beside a real API server and an engine that answers the same."""

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from ipaddress import ip_address
from pathlib import Path
from urllib.parse import urlsplit

import aiohttp
import yaml
from aiohttp import web

from tessera.adapters.clock import now
from tessera.adapters.kube.client import KubeCluster
from tessera.cli.cluster import Reader
from tessera.cli.key.arguments import KEY_CREATE, KEY_REVOKE
from tessera.cli.key.create import create
from tessera.cli.key.revoke import revoke
from tessera.domain.names import PORT, deployment_name
from tests.adapters.test_gateway_access import prepare
from world import World
from world.slots import free_port
from world.testing import eventually

NAMESPACE, TENANT = "gateway-run", "gateway-run"
ROOT = Path(__file__).parents[2]


async def answer(_: web.Request) -> web.Response:
    message = {"role": "assistant", "content": "four"}
    usage = {"prompt_tokens": 7, "completion_tokens": 1, "total_tokens": 8}
    choice = {"index": 0, "message": message, "finish_reason": "stop"}
    return web.json_response({"id": "x", "model": "chat", "choices": [choice], "usage": usage})


def engine_address(world: World) -> str:
    """Return the last address of the network of nodes that this world alone has."""
    control = ip_address(str(urlsplit(world.control_url).hostname))
    return str(control + 253)


@asynccontextmanager
async def an_engine(address: str) -> AsyncIterator[None]:
    app = web.Application()
    app.router.add_post("/v1/chat/completions", answer)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, address, PORT).start()
    try:
        yield
    finally:
        await runner.cleanup()


async def add_replica(cluster: KubeCluster, address: str) -> None:
    """Create a ready replica of the service by hand, as its Deployment's ReplicaSet would."""
    labels = {
        "tessera.dev/service": "chat",
        "tessera.dev/variant": "a100",
        "pod-template-hash": "abc",
        "app.kubernetes.io/component": "engine",
    }
    limits = {"limits": {"nvidia.com/gpu": "1"}}
    container = {"name": "engine", "image": "engine", "resources": limits}
    replica_set = {
        "metadata": {"name": f"{deployment_name('chat', 'a100')}-abc"},
        "spec": {
            "replicas": 1,
            "selector": {"matchLabels": labels},
            "template": {"metadata": {"labels": labels}, "spec": {"containers": [container]}},
        },
    }
    path = f"/apis/apps/v1/namespaces/{NAMESPACE}/replicasets"
    status, body = await cluster.request("POST", path, body=replica_set)
    assert status == 201, body
    pods = f"/api/v1/namespaces/{NAMESPACE}/pods"

    async def pod_is_created() -> str:
        _, listing = await cluster.request("GET", pods)
        assert listing["items"]
        return str(listing["items"][0]["metadata"]["name"])

    pod = await eventually(pod_is_created)
    ready = {"type": "Ready", "status": "True", "lastTransitionTime": f"{now():%Y-%m-%dT%H:%M:%SZ}"}
    patch = {"status": {"podIP": address, "podIPs": [{"ip": address}], "conditions": [ready]}}
    path = f"{pods}/{pod}/status"
    status, body = await cluster.request(
        "PATCH", path, body=patch, content_type="application/merge-patch+json"
    )
    assert status == 200, body


async def new_token(cluster: KubeCluster, account: str, *audiences: str) -> str:
    """Create a ServiceAccount; return a token of it for these audiences, or the API server."""
    accounts = f"/api/v1/namespaces/{NAMESPACE}/serviceaccounts"
    status, body = await cluster.request("POST", accounts, body={"metadata": {"name": account}})
    assert status == 201, body
    spec = {"spec": {"audiences": list(audiences)}}
    status, body = await cluster.request("POST", f"{accounts}/{account}/token", body=spec)
    assert status == 201, body
    return str(body["status"]["token"])


async def account_kubeconfig(cluster: KubeCluster, world: World, folder: Path) -> Path:
    """Write a kubeconfig of a ServiceAccount with all rights, as tokens need one to be reviewed."""
    token = await new_token(cluster, "gateway")
    body = {
        "metadata": {"name": NAMESPACE},
        "roleRef": {"kind": "ClusterRole", "name": "cluster-admin"},
        "subjects": [{"kind": "ServiceAccount", "name": "gateway", "namespace": NAMESPACE}],
    }
    path = "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings"
    status, answer = await cluster.request("POST", path, body=body)
    assert status == 201, answer
    config = yaml.safe_load(world.kubeconfig.read_text(encoding="utf-8"))
    config["users"][0]["user"] = {"token": token}
    kubeconfig = folder / "kubeconfig"
    kubeconfig.write_text(json.dumps(config), encoding="utf-8")
    return kubeconfig


class RunningGateway:
    def __init__(
        self, process: asyncio.subprocess.Process, port: int, gates_port: int, log: Path
    ) -> None:
        self.process, self.log = process, log
        self.port, self.gates_port = port, gates_port

    async def ask(self, key: str, model: str = "default", port: int = 0) -> int:
        """Return the status of a chat completion."""
        body = {"model": model, "messages": [{"role": "user", "content": "2 + 2?"}]}
        headers = {"Authorization": f"Bearer {key}"}
        url = f"http://127.0.0.1:{port or self.port}/v1/chat/completions"
        async with (
            aiohttp.ClientSession() as session,
            session.post(url, json=body, headers=headers) as reply,
        ):
            await reply.read()
            return reply.status

    async def until_it_answers(self, key: str, status: int) -> None:
        """Wait until requests with this key are answered so."""

        async def request_is_answered() -> None:
            assert await self.ask(key) == status

        await eventually(request_is_answered, within=90)


@asynccontextmanager
async def a_gateway(kubeconfig: Path, folder: Path) -> AsyncIterator[RunningGateway]:
    port, gates_port, log = free_port(), free_port(), folder / "log"
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT / "operator"),
        "KUBECONFIG": str(kubeconfig),
        "TESSERA_KEYS_NAMESPACES": f'["{NAMESPACE}"]',
        "TESSERA_PORT": str(port),
        "TESSERA_GATES_PORT": str(gates_port),
        "TESSERA_METRICS_PORT": str(free_port()),
        "TESSERA_STATE_DIRECTORY": str(folder),
        "TESSERA_ANNOUNCE_SECONDS": "0",
    }
    command = (sys.executable, "-P", "-m", "tessera.gateway.main", "--host", "127.0.0.1")
    with log.open("wb") as output:
        process = await asyncio.create_subprocess_exec(
            *command, env=environment, stdout=output, stderr=output
        )
    try:
        yield RunningGateway(process, port, gates_port, log)
    finally:
        if process.returncode is None:
            process.terminate()
            await process.wait()


async def test_a_gateway_serves_with_keys_and_ends_in_order(
    cluster: KubeCluster, world: World, tmp_path: Path
) -> None:
    await prepare(cluster, NAMESPACE, TENANT)
    address = engine_address(world)
    await add_replica(cluster, address)
    options = ["--tenant", TENANT, "--keys-namespace", NAMESPACE, "--json"]

    async def new_key(name: str) -> str:
        output = await create(Reader(cluster), KEY_CREATE.parse([name, *options]), now())
        return output.text.split('"key": "')[1].split('"')[0]

    kubeconfig = await account_kubeconfig(cluster, world, tmp_path)
    async with an_engine(address), a_gateway(kubeconfig, tmp_path) as gateway:
        key = await new_key("ci")
        await gateway.until_it_answers(key, 200)
        assert await gateway.ask("tsk-unknown") == 401
        other = await new_key("other")
        await gateway.until_it_answers(other, 200)
        await revoke(Reader(cluster), KEY_REVOKE.parse(["ci", *options]))
        await gateway.until_it_answers(key, 401)
        gate = await new_token(cluster, "tessera-gate", "tessera-gate")
        ci = await new_token(cluster, "ci", "tessera-gate")
        gates = gateway.gates_port
        assert await gateway.ask(gate, "chat@stable", gates) == 200
        # No replica of another version is there yet; nobody else learns even that.
        assert await gateway.ask(gate, "chat@candidate", gates) == 503
        assert await gateway.ask(gate, "default", gates) == 404
        assert await gateway.ask(other, "chat@candidate", gates) == 404
        assert await gateway.ask(ci, "chat@stable", gates) == 401

        gateway.process.terminate()
        assert await gateway.process.wait() == 0
        log = gateway.log.read_text(encoding="utf-8")
        assert '"status":200' in log
        assert not any(secret in log for secret in (key, other, gate, "2 + 2", "four"))
