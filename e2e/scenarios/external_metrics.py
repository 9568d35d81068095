"""A simulator of an adapter for external metrics, which serves them from Prometheus."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from demo.cluster import Json, condition
from scenarios import external_metrics_server
from scenarios.actions import ScenarioNamespace
from scenarios.external_metrics_server import GROUP, PORT
from world.keys import Authority
from world.testing import a_container, a_pod, a_service, eventually

_SERVER = Path(external_metrics_server.__file__).read_text(encoding="utf-8")
_PATH = "/apis/apiregistration.k8s.io/v1/apiservices/v1beta1.external.metrics.k8s.io"


@asynccontextmanager
async def external_metrics(namespace: ScenarioNamespace, folder: Path) -> AsyncIterator[None]:
    """Serve the external metrics of the cluster from Prometheus, for the time of the block."""
    api, name = namespace.cluster.api, namespace.name
    pair = Authority(folder / "keys").server("adapter", "127.0.0.1")
    files = {
        "server.py": _SERVER,
        "tls.crt": pair.certificate.read_text(),
        "tls.key": pair.key.read_text(),
    }
    secret: Json = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "adapter"}}
    await api.create(f"/api/v1/namespaces/{name}/secrets", secret | {"stringData": files})
    prometheus = namespace.cluster.world.prometheus_url
    container = a_container(
        f"exec python3 /files/server.py $IP /files/tls.crt /files/tls.key {prometheus}",
        env=[{"name": "IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}}],
        ports=[{"name": "https", "containerPort": PORT}],
        volumeMounts=[{"name": "files", "mountPath": "/files"}],
        readinessProbe={"tcpSocket": {"port": "https"}, "periodSeconds": 1},
    )
    volume = {"name": "files", "secret": {"secretName": "adapter"}}
    await api.create(
        f"/api/v1/namespaces/{name}/pods", a_pod("adapter", container, volumes=[volume])
    )
    ports = [{"name": "https", "port": PORT, "targetPort": "https"}]
    await api.create(f"/api/v1/namespaces/{name}/services", a_service("adapter", ports=ports))
    group, _, version = GROUP.partition("/")
    api_service: Json = {
        "apiVersion": "apiregistration.k8s.io/v1",
        "kind": "APIService",
        "metadata": {"name": f"{version}.{group}"},
        "spec": {
            "group": group,
            "version": version,
            "groupPriorityMinimum": 100,
            "versionPriority": 100,
            "insecureSkipTLSVerify": True,
            "service": {"namespace": name, "name": "adapter", "port": PORT},
        },
    }
    await api.apply(_PATH, api_service, "test")

    async def is_available() -> None:
        available = condition(await api.get(_PATH), "Available")
        assert available.get("status") == "True", available

    try:
        await eventually(is_available)
        yield
    finally:
        await api.delete(_PATH)
