"""A small client of the Kubernetes API: what a kubelet, a proxy and tests need, at little CPU."""

import base64
import json
import ssl
import tempfile
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import yaml

Json = dict[str, Any]

MERGE = "application/merge-patch+json"
STRATEGIC = "application/strategic-merge-patch+json"
APPLY = "application/apply-patch+yaml"
WATCH_SECONDS = 300


class ApiError(Exception):
    """A refusal of the API server."""

    def __init__(self, status: int, reason: str, message: str) -> None:
        super().__init__(f"{status} {reason}: {message}")
        self.status = status
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Resource:
    """One kind of object in the API's paths."""

    version: str
    plural: str

    def path(self, namespace: str | None = None, name: str | None = None, sub: str = "") -> str:
        root = "/api" if "/" not in self.version else "/apis"
        inside = f"/namespaces/{namespace}" if namespace else ""
        suffix = f"/{name}" if name else ""
        return f"{root}/{self.version}{inside}/{self.plural}{suffix}{'/' if sub else ''}{sub}"


NODES = Resource("v1", "nodes")
PODS = Resource("v1", "pods")
SERVICES = Resource("v1", "services")
EVENTS = Resource("v1", "events")
SECRETS = Resource("v1", "secrets")
CONFIG_MAPS = Resource("v1", "configmaps")
SERVICE_ACCOUNTS = Resource("v1", "serviceaccounts")
CLAIMS = Resource("v1", "persistentvolumeclaims")
VOLUMES = Resource("v1", "persistentvolumes")
LEASES = Resource("coordination.k8s.io/v1", "leases")
ENDPOINT_SLICES = Resource("discovery.k8s.io/v1", "endpointslices")
API_SERVICES = Resource("apiregistration.k8s.io/v1", "apiservices")


class Api:
    """One identity's connections to one API server."""

    def __init__(self, session: aiohttp.ClientSession) -> None:
        self._session = session
        self._kinds: dict[tuple[str, str], tuple[Resource, bool]] = {}

    async def get(self, path: str, **query: str) -> Json:
        return await self._request("GET", path, query)

    async def exists(self, path: str) -> bool:
        """Return whether the API answers, and has an object at a path."""
        try:
            async with self._session.get(path) as response:
                return response.status == 200
        except (aiohttp.ClientError, TimeoutError):
            return False

    async def create(self, path: str, body: Json, **query: str) -> Json:
        return await self._request("POST", path, query, body)

    async def patch(self, path: str, body: Json | list[Json], kind: str = MERGE) -> Json:
        return await self._request("PATCH", path, {}, body, kind)

    async def apply(self, path: str, body: Json, manager: str) -> Json:
        query = {"fieldManager": manager, "force": "true"}
        return await self._request("PATCH", path, query, body, APPLY)

    async def delete(self, path: str, body: Json | None = None) -> Json:
        return await self._request("DELETE", path, {}, body)

    async def apply_manifest(self, manifest: Json, manager: str = "world") -> Json:
        """Apply an object of any kind that the server knows."""
        return await self.apply(await self.path_of(manifest), manifest, manager)

    async def path_of(self, manifest: Json) -> str:
        resource, namespaced = await self._kind(manifest["apiVersion"], manifest["kind"])
        meta = manifest["metadata"]
        namespace = meta.get("namespace", "default") if namespaced else None
        return resource.path(namespace, meta["name"])

    async def watch(
        self, path: str, version: str, **query: str
    ) -> AsyncGenerator[tuple[str, Json], None]:
        """Changes since a version, as (type, object), until the server ends the stream.

        A version that is too old raises `ApiError` with status 410.
        """
        watch_query = query | {
            "watch": "true",
            "resourceVersion": version,
            "allowWatchBookmarks": "true",
            "timeoutSeconds": str(WATCH_SECONDS),
        }
        timeout = aiohttp.ClientTimeout(total=None, sock_read=WATCH_SECONDS + 30)
        async with self._session.get(path, params=watch_query, timeout=timeout) as response:
            await _raise_for_status(response)
            async for line in _lines(response.content):
                change = json.loads(line)
                if change["type"] == "ERROR":
                    raise _error(change["object"])
                yield change["type"], change["object"]

    async def _kind(self, version: str, kind: str) -> tuple[Resource, bool]:
        if (version, kind) not in self._kinds:
            root = "/api" if "/" not in version else "/apis"
            for api_resource in (await self.get(f"{root}/{version}"))["resources"]:
                if "/" not in api_resource["name"]:
                    known = Resource(version, api_resource["name"]), api_resource["namespaced"]
                    self._kinds[version, api_resource["kind"]] = known
        return self._kinds[version, kind]

    async def _request(
        self,
        method: str,
        path: str,
        query: Mapping[str, str],
        body: Json | list[Json] | None = None,
        content_type: str = "application/json",
    ) -> Json:
        async with self._session.request(
            method,
            path,
            params=query,
            data=None if body is None else json.dumps(body).encode(),
            headers={"Content-Type": content_type},
        ) as response:
            await _raise_for_status(response)
            return await response.json()  # type: ignore[no-any-return]  # aiohttp types it Any


@asynccontextmanager
async def connect(kubeconfig: Path) -> AsyncIterator[Api]:
    """The API as the user of a kubeconfig that this project wrote."""
    async with session(kubeconfig) as client_session:
        yield Api(client_session)


@asynccontextmanager
async def session(kubeconfig: Path) -> AsyncIterator[aiohttp.ClientSession]:
    """The same as a bare HTTP session."""
    cluster, user = _read(kubeconfig)
    headers = {"Authorization": f"Bearer {user['token']}"} if "token" in user else {}
    connector = aiohttp.TCPConnector(ssl=_tls(cluster, user), limit=0)
    timeout = aiohttp.ClientTimeout(total=30)
    async with aiohttp.ClientSession(
        cluster["server"], connector=connector, headers=headers, timeout=timeout
    ) as client_session:
        yield client_session


def _read(kubeconfig: Path) -> tuple[Json, Json]:
    config = yaml.safe_load(kubeconfig.read_text())
    return config["clusters"][0]["cluster"], config["users"][0]["user"]


def _tls(cluster: Json, user: Json) -> ssl.SSLContext:
    authority = base64.b64decode(cluster["certificate-authority-data"]).decode()
    context = ssl.create_default_context(cadata=authority)
    if "client-key-data" in user:
        # The ssl module reads client certificates from files only.
        with tempfile.NamedTemporaryFile() as both:
            both.write(base64.b64decode(user["client-certificate-data"]))
            both.write(base64.b64decode(user["client-key-data"]))
            both.flush()
            context.load_cert_chain(both.name)
    return context


async def _lines(content: aiohttp.StreamReader) -> AsyncIterator[bytes]:
    """Lines of any length: aiohttp's own reader refuses those of big objects."""
    pending = b""
    async for chunk in content.iter_any():
        *lines, pending = (pending + chunk).split(b"\n")
        for line in lines:
            yield line


async def _raise_for_status(response: aiohttp.ClientResponse) -> None:
    if response.status < 400:
        return
    text = await response.text()
    try:
        raise _error(json.loads(text))
    except json.JSONDecodeError:
        raise ApiError(response.status, response.reason or "", text) from None


def _error(status: Json) -> ApiError:
    return ApiError(status["code"], status.get("reason", ""), status.get("message", ""))
