"""Services of a world lead to the pods that are ready."""

import asyncio
from collections import Counter

import aiohttp
import pytest

import world as worlds
from world.api import PODS, Json
from world.keys import Authority
from world.testing import (
    WorldNamespace,
    a_container,
    a_pod,
    a_service,
    a_workload,
    condition,
    eventually,
    is_ready,
)

pytestmark = pytest.mark.world


async def ask(service: Json) -> str:
    """The name of the pod that answers; a connection of its own for each question."""
    address, port = service["spec"]["clusterIP"], service["spec"]["ports"][0]["port"]
    connector = aiohttp.TCPConnector(force_close=True)
    async with (
        aiohttp.ClientSession(connector=connector) as session,
        session.get(f"http://{address}:{port}/") as response,
    ):
        return await response.text()


async def three_pods(here: WorldNamespace, *arguments: str) -> list[Json]:
    container = a_container(args=list(arguments))
    template_spec = {"terminationGracePeriodSeconds": 30}
    await here.create(
        a_workload("Deployment", "web", container, replicas=3, template=template_spec)
    )
    return await eventually(
        lambda: here.pods("app=web"), lambda pods: sum(map(is_ready, pods)) == 3
    )


async def test_connections_go_round_all_ready_pods(here: WorldNamespace) -> None:
    pods = await three_pods(here)
    service = await here.create(a_service("web"))
    await eventually(lambda: ask(service), bool)

    answers = Counter([await ask(service) for _ in range(30)])

    assert answers == {pod["metadata"]["name"]: 10 for pod in pods}


async def test_a_pod_on_its_way_out_gets_no_new_connection(here: WorldNamespace) -> None:
    pods = await three_pods(here, "--drain", "20")
    service = await here.create(a_service("web"))
    await eventually(lambda: ask(service), bool)
    leaving = pods[0]["metadata"]["name"]

    await here.api.delete(PODS.path(here.namespace, leaving))
    await here.until(leaving, lambda pod: "deletionTimestamp" in pod["metadata"])

    # The proxy's watch sees the deletion a moment after ours.
    await eventually(lambda: answers(service, 6), lambda names: leaving not in names)
    assert leaving not in await answers(service, 30)
    assert (await here.pod(leaving))["status"]["phase"] == "Running"


async def answers(service: Json, count: int) -> set[str]:
    return {await ask(service) for _ in range(count)}


async def test_a_backend_that_refuses_is_passed_over(
    here: WorldNamespace, world: worlds.World
) -> None:
    pods = await three_pods(here)
    service = await here.create(a_service("web"))
    await eventually(lambda: ask(service), bool)
    dead = pods[0]["metadata"]["name"]

    world.kill(here.namespace, dead, "main")

    # The API does not know yet: the pod is still ready there when these connections are made.
    assert len([await ask(service) for _ in range(6)]) == 6


async def test_a_service_without_ready_pods_refuses(here: WorldNamespace) -> None:
    service = await here.create(a_service("nobody"))

    with pytest.raises(aiohttp.ClientConnectionError):
        await ask(service)


async def test_named_ports_may_differ_from_pod_to_pod(here: WorldNamespace) -> None:
    for number in (8001, 8002):
        port = {"name": "http", "containerPort": number}
        container = a_container(args=["--port", str(number)], ports=[port])
        await here.ready(a_pod(f"web-{number}", container, labels={"app": "web"}))
    service = await here.create(a_service("web"))
    await eventually(lambda: ask(service), bool)

    assert await answers(service, 4) == {"web-8001", "web-8002"}


async def test_prometheus_is_a_service_too(here: WorldNamespace) -> None:
    service = await here.api.get("/api/v1/namespaces/monitoring/services/prometheus")
    url = f"http://{service['spec']['clusterIP']}:9090/-/ready"

    async def ready() -> int:
        async with aiohttp.ClientSession() as session, session.get(url) as response:
            return response.status

    await eventually(ready, lambda status: status == 200)


# Answers every request, as an API without resources does.
SERVER = """
import http.server, ssl, sys
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        self.wfile.write(b'{"kind": "APIResourceList", "resources": []}')
server = http.server.ThreadingHTTPServer((sys.argv[1], 9443), Handler)
tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
tls.load_cert_chain(sys.argv[2], sys.argv[3])
server.socket = tls.wrap_socket(server.socket, server_side=True)
server.serve_forever()
"""


async def test_an_api_service_behind_a_service_becomes_available(
    here: WorldNamespace, tmp_path_factory: pytest.TempPathFactory
) -> None:
    pair = Authority(tmp_path_factory.mktemp("tls") / "keys").server("api", "127.0.0.1")
    files = {
        "server.py": SERVER,
        "tls.crt": pair.certificate.read_text(),
        "tls.key": pair.key.read_text(),
    }
    await here.create(
        {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "files"}, "stringData": files}
    )
    ip = {"name": "IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}}
    container = a_container(
        "exec python3 /files/server.py $IP /files/tls.crt /files/tls.key",
        env=[ip],
        ports=[{"name": "https", "containerPort": 9443}],
        volumeMounts=[{"name": "files", "mountPath": "/files"}],
        readinessProbe={"tcpSocket": {"port": "https"}, "periodSeconds": 1},
    )
    volume = {"name": "files", "secret": {"secretName": "files"}}
    await here.ready(a_pod("metrics", container, volumes=[volume]))
    await here.create(
        a_service("metrics", ports=[{"name": "https", "port": 9443, "targetPort": "https"}])
    )
    name = f"v1.{here.namespace}.example.org"
    path = f"/apis/apiregistration.k8s.io/v1/apiservices/{name}"
    await here.api.apply(
        path,
        {
            "apiVersion": "apiregistration.k8s.io/v1",
            "kind": "APIService",
            "metadata": {"name": name},
            "spec": {
                "group": f"{here.namespace}.example.org",
                "version": "v1",
                "groupPriorityMinimum": 100,
                "versionPriority": 100,
                "insecureSkipTLSVerify": True,
                "service": {"namespace": here.namespace, "name": "metrics", "port": 9443},
            },
        },
        "test",
    )
    try:
        await eventually(
            lambda: here.api.get(path),
            lambda api_service: condition(api_service, "Available") == "True",
            within=40,
        )
    finally:
        await here.api.delete(path)


async def test_many_connections_at_once_are_all_served(here: WorldNamespace) -> None:
    await three_pods(here)
    service = await here.create(a_service("web"))
    await eventually(lambda: ask(service), bool)

    pod_names = await asyncio.gather(*(ask(service) for _ in range(200)))

    assert len(pod_names) == 200
