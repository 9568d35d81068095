"""The API server for commands: objects as they are, one sentence when it denies a request."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from functools import wraps
from http import HTTPStatus
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Protocol, TypeAlias

from tessera.adapters.kube.client import KubeCluster
from tessera.adapters.kube.connection import connect
from tessera.api.api_resource import ApiResource
from tessera.api.meta import GROUP
from tessera.api.ref import Ref
from tessera.cli.errors import CommandError, DeniedError
from tessera.cli.output import Output
from tessera.domain.names import ENGINE
from tessera.ports import ClusterError
from tessera.settings import CommandSettings

Json = dict[str, Any]
_PAGE_SIZE = "500"
# An engine writes far less until it is ready.
_MAX_LOG_BYTES = 2**20
_MERGE_PATCH = "application/merge-patch+json"


class KubeApi(Protocol):
    """Sends one request to the API server."""

    async def request(
        self,
        method: str,
        path: str,
        query: Mapping[str, str] | None = None,
        body: Mapping[str, Any] | None = None,
        content_type: str = "application/json",
    ) -> tuple[int, Any]:
        """Return status code and decoded body; raise ClusterError without a response."""


class PodLogs(Protocol):
    """Reads logs of containers."""

    async def pod_log(self, pod: Ref, container: str, limit_bytes: int) -> str | None:
        """Return the beginning of a log; None if it is refused. Raises ClusterError."""


class Reader:
    """Reads objects, and each list only once."""

    def __init__(
        self, api: KubeApi, namespace: str = "default", logs: PodLogs | None = None
    ) -> None:
        self._api, self._logs = api, logs
        self._list_tasks: dict[str, asyncio.Task[list[Json] | None]] = {}
        self.namespace = namespace
        """The namespace of names without one."""

    async def get(self, path: str) -> Json | None:
        """Return one object, or None if it does not exist."""
        status, body = await self.send("GET", path)
        if status == HTTPStatus.NOT_FOUND:
            return None
        check_status(status, body, f"get {path}")
        obj: Json = body
        return obj

    async def engine_log(self, pod: Ref) -> str:
        """Return the beginning of an engine's log; empty if the user may not or cannot read it."""
        if self._logs is None:
            return ""
        with suppress(ClusterError):
            return await self._logs.pod_log(pod, ENGINE, _MAX_LOG_BYTES) or ""
        return ""

    async def list_objects(
        self, kind: ApiResource, namespace: str | None = None, selector: str | None = None
    ) -> list[Json]:
        """Return all objects of a kind within its selector; CommandError for an unknown kind."""
        objects = await self.list_if_served(kind, namespace, selector)
        if objects is None and kind.group == GROUP:
            raise CommandError(
                f"the API server has no {kind.plural}.{GROUP}: install Tessera in this cluster "
                "(helm install, see README.md), or choose another --context"
            )
        return objects or []

    async def list_if_served(
        self, kind: ApiResource, namespace: str | None = None, selector: str | None = None
    ) -> list[Json] | None:
        """Return all objects of a kind within its selector; None for an unknown kind."""
        path = kind.path(namespace)
        label_selector = selector or kind.selector or ""
        cache_key = f"{path}?{label_selector}"
        if cache_key not in self._list_tasks:
            self._list_tasks[cache_key] = asyncio.ensure_future(
                self._list(path, label_selector, kind, namespace)
            )
        return await self._list_tasks[cache_key]

    async def send(
        self,
        method: str,
        path: str,
        query: Mapping[str, str] | None = None,
        body: Mapping[str, Any] | None = None,
        content_type: str = "application/json",
    ) -> tuple[int, Any]:
        """Send one request and return any response but 401, which is a CommandError."""
        try:
            status, answer = await self._api.request(method, path, query, body, content_type)
        except ClusterError as error:
            raise CommandError(
                f"{error}. Check with kubectl cluster-info that the cluster is up and --context is "
                "right"
            ) from error
        if status == HTTPStatus.UNAUTHORIZED:
            raise CommandError(
                "the API server rejected the credentials (401): log in to the cluster again, or "
                "choose another --context"
            )
        return status, answer

    async def patch(self, path: str, body: Mapping[str, Any]) -> tuple[int, Any]:
        """Merge the body into an object."""
        return await self.send("PATCH", path, body=body, content_type=_MERGE_PATCH)

    async def _list(
        self, path: str, selector: str, kind: ApiResource, namespace: str | None
    ) -> list[Json] | None:
        items: list[Json] = []
        query = {"limit": _PAGE_SIZE} | ({"labelSelector": selector} if selector else {})
        while True:
            status, body = await self.send("GET", path, query)
            if status == HTTPStatus.NOT_FOUND:
                return None
            if status == HTTPStatus.GONE and query.pop("continue", ""):
                items.clear()  # the continue token expired; list from the beginning
                continue
            scope = f"in namespace {namespace}" if namespace else "in all namespaces"
            check_status(
                status, body, f"list {kind.plural} {scope if kind.namespaced else ''}".strip()
            )
            items += body["items"]
            query["continue"] = body["metadata"].get("continue", "")
            if not query["continue"]:
                return items


def check_status(status: int, body: Any, operation: str, subject: str | None = None) -> None:
    """Raise DeniedError or CommandError for a failed operation, which has the subject's name."""
    if status == HTTPStatus.FORBIDDEN:
        raise DeniedError(f"permission denied: {operation}; ask the platform team for it")
    if status >= HTTPStatus.BAD_REQUEST:
        message = body.get("message", "")
        raise CommandError(f"{subject or operation}: API server returned {status}: {message}")


def _kubeconfig_path(arguments: SimpleNamespace) -> str | None:
    """Return the chosen file; None in a pod, which uses its ServiceAccount."""
    settings, default_path = CommandSettings(), Path.home() / ".kube" / "config"
    kubeconfig: str | None = arguments.kubeconfig or settings.kubeconfig
    if not kubeconfig and settings.pod_address and not default_path.exists():
        return None
    kubeconfig = kubeconfig or str(default_path)
    if not any(Path(path).expanduser().exists() for path in kubeconfig.split(":")):
        raise CommandError(
            f"no cluster: {kubeconfig} not found. Give --kubeconfig FILE or set KUBECONFIG"
        )
    return kubeconfig


@asynccontextmanager
async def open_reader(arguments: SimpleNamespace) -> AsyncIterator[Reader]:
    """Open a reader for the kubeconfig and context that the user chose."""
    kubeconfig = _kubeconfig_path(arguments)
    try:
        connection = await connect(kubeconfig, arguments.context)
    except ClusterError as error:
        raise CommandError(
            f"no cluster: {error}. Give --kubeconfig FILE or set KUBECONFIG; kubectl config "
            "get-contexts lists the values of --context"
        ) from error
    cluster = KubeCluster(connection)
    try:
        namespace = getattr(arguments, "namespace", None) or connection.namespace
        yield Reader(cluster, namespace, logs=cluster)
    finally:
        await cluster.close()


ClusterCommand: TypeAlias = Callable[[Reader, SimpleNamespace], Awaitable[Output]]


def cluster_command(command: ClusterCommand) -> Callable[[SimpleNamespace], Output]:
    """Return a command that runs with a reader of the cluster that the user chose."""

    @wraps(command)
    def run(arguments: SimpleNamespace) -> Output:
        async def run_with_reader() -> Output:
            async with open_reader(arguments) as reader:
                return await command(reader, arguments)

        return asyncio.run(run_with_reader())

    return run
