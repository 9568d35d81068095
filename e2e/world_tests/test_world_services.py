"""Services of a world lead to the pods that are ready."""

import asyncio
import itertools
import shlex
import sys
from collections import Counter
from functools import partial

import aiohttp
import pytest

import world as worlds
from world.api import PODS, SERVICES, Api, Json
from world.keys import Authority
from world.testing import (
    WorldNamespace,
    a_container,
    a_pod,
    a_service,
    a_workload,
    condition,
    eventually,
    fresh_namespace,
    termination_message,
)

pytestmark = pytest.mark.world
_numbers = itertools.count(1)


async def request_pod_name(service: Json) -> str:
    """Return the name of the pod that answers, over a connection of its own."""
    address, port = service["spec"]["clusterIP"], service["spec"]["ports"][0]["port"]
    connector = aiohttp.TCPConnector(force_close=True)
    async with (
        aiohttp.ClientSession(connector=connector) as session,
        session.get(f"http://{address}:{port}/") as response,
    ):
        return await response.text()


async def create_three_pods(namespace: WorldNamespace, *arguments: str) -> list[Json]:
    return await create_pods(namespace, 3, *arguments)


async def create_pods(namespace: WorldNamespace, count: int, *arguments: str) -> list[Json]:
    container = a_container(args=list(arguments))
    template_spec = {"terminationGracePeriodSeconds": 90}
    await namespace.create(
        a_workload("Deployment", "web", container, replicas=count, template=template_spec)
    )
    return await namespace.wait_for_ready_pods(count)


async def create_service(namespace: WorldNamespace, pods: list[Json]) -> Json:
    """Create a Service, and wait until all of its pods answer in one round."""
    service = await namespace.create(a_service("web"))
    names = {pod["metadata"]["name"] for pod in pods}

    async def all_pods_answer() -> None:
        assert await request_pod_names(service, len(names)) == names

    await eventually(all_pods_answer)
    return service


@pytest.mark.smoke
async def test_connections_go_round_all_ready_pods(namespace: WorldNamespace) -> None:
    pods = await create_three_pods(namespace)
    service = await create_service(namespace, pods)

    answers = Counter([await request_pod_name(service) for _ in range(30)])

    assert answers == {pod["metadata"]["name"]: 10 for pod in pods}


async def test_a_pod_on_its_way_out_gets_no_new_connection(namespace: WorldNamespace) -> None:
    pods = await create_three_pods(namespace, "--drain", "60")
    service = await create_service(namespace, pods)
    leaving = pods[0]["metadata"]["name"]

    await namespace.api.delete(PODS.path(namespace.name, leaving))
    await namespace.wait_until_terminating(leaving)

    async def others_answer() -> None:
        assert leaving not in await request_pod_names(service, 6)

    # The proxy's watch sees the deletion a moment after ours.
    await eventually(others_answer)
    assert leaving not in await request_pod_names(service, 30)
    assert (await namespace.read_pod(leaving))["status"]["phase"] == "Running"


async def request_pod_names(service: Json, count: int) -> set[str]:
    return {await request_pod_name(service) for _ in range(count)}


async def test_a_backend_that_refuses_is_passed_over(
    namespace: WorldNamespace, world: worlds.World
) -> None:
    pods = await create_three_pods(namespace)
    service = await create_service(namespace, pods)
    dead = pods[0]["metadata"]["name"]

    world.kill(namespace.name, dead, "main")

    # The API does not know yet: the pod is still ready there when these connections are made.
    assert len([await request_pod_name(service) for _ in range(6)]) == 6


async def test_a_service_without_ready_pods_refuses(namespace: WorldNamespace) -> None:
    service = await namespace.create(a_service("nobody"))

    with pytest.raises(aiohttp.ClientConnectionError):
        await request_pod_name(service)


async def test_named_ports_may_differ_from_pod_to_pod(namespace: WorldNamespace) -> None:
    pods = []
    for number in (8001, 8002):
        port = {"name": "http", "containerPort": number}
        container = a_container(args=["--port", str(number)], ports=[port])
        manifest = a_pod(f"web-{number}", container, labels={"app": "web"})
        pods.append(await namespace.start_pod(manifest))
    service = await create_service(namespace, pods)

    assert await request_pod_names(service, 4) == {"web-8001", "web-8002"}


# Asks each URL by two libraries: httpx looks names up as bytes.
CLIENT = """
import asyncio, sys
import aiohttp, httpx
async def ask():
    async with httpx.AsyncClient() as client, aiohttp.ClientSession() as session:
        for url in sys.argv[1:]:
            print((await client.get(url)).text)
            async with session.get(url) as response:
                print(await response.text())
asyncio.run(ask())
"""
# What a cluster's DNS has no record of, it says at once.
LOOKUP = """
import socket, sys
try:
    socket.getaddrinfo(sys.argv[1], 80)
except socket.gaierror as error:
    print(error.errno == socket.EAI_NONAME)
"""


def a_python_pod(name: str, script: str, *arguments: str) -> Json:
    command = shlex.join([sys.executable, "-c", script, *arguments])
    return a_pod(name, a_container(f"{command} > /dev/termination-log 2>&1"), restartPolicy="Never")


@pytest.mark.smoke
async def test_a_pod_reaches_another_by_the_name_of_its_service(
    namespace: WorldNamespace, api: Api
) -> None:
    async with fresh_namespace(api) as other:
        await create_service(other, await create_pods(other, 1))
        (pod,) = await other.list_pods()
        service = f"web.{other.name}"
        hosts = [service, f"{service}.svc", f"{service}.svc.cluster.local"]

        near = await other.run_pod(a_python_pod("near", CLIENT, "http://web:8080/"))
        far = await namespace.run_pod(
            a_python_pod("far", CLIENT, *(f"http://{host}:8080/" for host in hosts))
        )
        name = pod["metadata"]["name"]
        assert termination_message(near).split() == 2 * [name]
        assert termination_message(far).split() == 2 * len(hosts) * [name]

        await api.delete(SERVICES.path(other.name, "web"))
        await eventually(partial(is_unknown, namespace, f"{service}.svc"))


async def is_unknown(namespace: WorldNamespace, host: str) -> None:
    """Assert that a pod finds no Service of this name."""
    name = f"lookup-{next(_numbers)}"
    pod = await namespace.run_pod(a_python_pod(name, LOOKUP, host))
    assert termination_message(pod).strip() == "True"


async def test_prometheus_is_a_service_too(namespace: WorldNamespace) -> None:
    service = await namespace.api.get("/api/v1/namespaces/monitoring/services/prometheus")
    url = f"http://{service['spec']['clusterIP']}:9090/-/ready"

    async def prometheus_is_ready() -> None:
        async with aiohttp.ClientSession() as session, session.get(url) as response:
            assert response.status == 200

    await eventually(prometheus_is_ready)


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
    namespace: WorldNamespace, tmp_path_factory: pytest.TempPathFactory
) -> None:
    pair = Authority(tmp_path_factory.mktemp("tls") / "keys").server("api", "127.0.0.1")
    files = {
        "server.py": SERVER,
        "tls.crt": pair.certificate.read_text(),
        "tls.key": pair.key.read_text(),
    }
    await namespace.create(
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
    await namespace.start_pod(a_pod("metrics", container, volumes=[volume]))
    await namespace.create(
        a_service("metrics", ports=[{"name": "https", "port": 9443, "targetPort": "https"}])
    )
    name = f"v1.{namespace.name}.example.org"
    path = f"/apis/apiregistration.k8s.io/v1/apiservices/{name}"
    await namespace.api.apply(
        path,
        {
            "apiVersion": "apiregistration.k8s.io/v1",
            "kind": "APIService",
            "metadata": {"name": name},
            "spec": {
                "group": f"{namespace.name}.example.org",
                "version": "v1",
                "groupPriorityMinimum": 100,
                "versionPriority": 100,
                "insecureSkipTLSVerify": True,
                "service": {"namespace": namespace.name, "name": "metrics", "port": 9443},
            },
        },
        "test",
    )

    async def api_service_is_available() -> None:
        api_service = await namespace.api.get(path)
        assert condition(api_service, "Available") == "True", api_service.get("status")

    try:
        await eventually(api_service_is_available, within=120)
    finally:
        await namespace.api.delete(path)


async def test_many_connections_at_once_are_all_served(namespace: WorldNamespace) -> None:
    service = await create_service(namespace, await create_three_pods(namespace))

    pod_names = await asyncio.gather(*(request_pod_name(service) for _ in range(200)))

    assert len(pod_names) == 200
