"""The API server as commands ask it: objects as they are, and a sentence when it refuses."""

import argparse
import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from http import HTTPStatus
from pathlib import Path
from typing import Any, Protocol

from tessera.adapters.kube import KubeCluster, connect
from tessera.api.meta import GROUP
from tessera.cli.errors import CommandError, DeniedError
from tessera.ports import ClusterError
from tessera.resources.kinds import Kind
from tessera.settings import CommandSettings

Json = dict[str, Any]
_CHUNK = "500"


class Api(Protocol):
    """One call of the API server."""

    async def request(
        self,
        method: str,
        path: str,
        query: Mapping[str, str] | None = None,
        body: Mapping[str, Any] | None = None,
        content_type: str = "application/json",
    ) -> tuple[int, Any]:
        """The status code and the decoded body; ClusterError when nobody answers."""


class Reader:
    """Reads objects; every listing once, however many ask for it."""

    def __init__(self, api: Api, namespace: str = "default") -> None:
        self._api = api
        self._listed: dict[str, asyncio.Task[list[Json] | None]] = {}
        self.namespace = namespace
        """Where names are looked for."""

    async def get(self, path: str) -> Json | None:
        """One object, or None."""
        status, body = await self.send("GET", path)
        if status == HTTPStatus.NOT_FOUND:
            return None
        found: Json = _must(status, body, f"get {path}")
        return found

    async def all(
        self, kind: Kind, namespace: str | None = None, selector: str | None = None
    ) -> list[Json]:
        """All objects of a kind within its selector; CommandError when there is no such kind."""
        found = await self.known(kind, namespace, selector)
        if found is None and kind.group == GROUP:
            raise CommandError(
                f"the API server does not know {kind.plural}: Tessera is not installed in this "
                "cluster (helm install, see README.md), or --context names another one"
            )
        return found or []

    async def known(
        self, kind: Kind, namespace: str | None = None, selector: str | None = None
    ) -> list[Json] | None:
        """The same; None when there is no such kind."""
        path = kind.path(namespace)
        wanted = selector or kind.selector or ""
        asked = f"{path}?{wanted}"
        if asked not in self._listed:
            self._listed[asked] = asyncio.ensure_future(self._list(path, wanted, kind, namespace))
        return await self._listed[asked]

    async def send(
        self,
        method: str,
        path: str,
        query: Mapping[str, str] | None = None,
        body: Mapping[str, Any] | None = None,
        content_type: str = "application/json",
    ) -> tuple[int, Any]:
        """One call; whatever the API server says to it, save that it does not know the user."""
        try:
            status, answer = await self._api.request(method, path, query, body, content_type)
        except ClusterError as error:
            raise CommandError(
                f"{error}. Is the cluster up, and --context right? kubectl cluster-info tells"
            ) from error
        if status == HTTPStatus.UNAUTHORIZED:
            raise CommandError(
                "the API server does not accept the credentials (401): log in to the cluster "
                "again, or choose another --context"
            )
        return status, answer

    async def _list(
        self, path: str, selector: str, kind: Kind, namespace: str | None
    ) -> list[Json] | None:
        found: list[Json] = []
        query = {"limit": _CHUNK} | ({"labelSelector": selector} if selector else {})
        while True:
            status, body = await self.send("GET", path, query)
            if status == HTTPStatus.NOT_FOUND:
                return None
            if status == HTTPStatus.GONE and query.pop("continue", ""):
                found.clear()  # the listing took so long that its version is forgotten
                continue
            where = f"in namespace {namespace}" if namespace else "in all namespaces"
            _must(status, body, f"list {kind.plural} {where if kind.namespaced else ''}".strip())
            found += body["items"]
            query["continue"] = body["metadata"].get("continue", "")
            if not query["continue"]:
                return found


def _must(status: int, body: Any, deed: str) -> Any:
    if status == HTTPStatus.FORBIDDEN:
        raise DeniedError(f"no rights to {deed}; ask the platform team for them")
    if status >= HTTPStatus.BAD_REQUEST:
        raise CommandError(f"{deed}: the API server says {status} {body.get('message', '')}")
    return body


def _kubeconfig(arguments: argparse.Namespace) -> str | None:
    """The file that was chosen; None in a pod, whose ServiceAccount asks then."""
    settings, home = CommandSettings(), Path.home() / ".kube" / "config"
    chosen: str | None = arguments.kubeconfig or settings.kubeconfig
    if not chosen and settings.pod_address and not home.exists():
        return None
    chosen = chosen or str(home)
    if not any(Path(one).expanduser().exists() for one in chosen.split(":")):
        raise CommandError(
            f"no cluster: there is no {chosen}. Give --kubeconfig FILE or set KUBECONFIG"
        )
    return chosen


@asynccontextmanager
async def reach(arguments: argparse.Namespace) -> AsyncIterator[Reader]:
    """A reader for the kubeconfig and context that the user chose."""
    kubeconfig = _kubeconfig(arguments)
    try:
        connection = await connect(kubeconfig, arguments.context)
    except ClusterError as error:
        raise CommandError(
            f"no cluster: {error}. Give --kubeconfig FILE or set KUBECONFIG; kubectl config "
            "get-contexts shows what --context may be"
        ) from error
    cluster = KubeCluster(connection)
    try:
        yield Reader(cluster, getattr(arguments, "namespace", None) or connection.namespace)
    finally:
        await cluster.close()
