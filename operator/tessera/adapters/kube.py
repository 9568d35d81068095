"""The API server: lists, watches, server-side apply, deletes. Raw JSON in and out.

Typed models cost half a millisecond and 36 KiB for every pod read, so answers are trimmed straight
from JSON into the values of the domain.
"""

import asyncio
import contextlib
import copy
import logging
import re
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any
from urllib.parse import urlencode
from urllib.request import getproxies

import aiohttp
import yaml
from kubernetes.aio import config
from kubernetes.aio.client import ApiClient, Configuration
from kubernetes.aio.client.rest import RESTResponse
from pydantic_core import from_json

from tessera.adapters import wire
from tessera.domain.names import FIELD_MANAGER
from tessera.domain.ref import Ref
from tessera.ports import (
    ClusterError,
    ClusterObject,
    DisruptionBudgetError,
    NotFoundError,
    ObjectList,
    ResourceExpiredError,
    WatchEvent,
)
from tessera.resources.kinds import DEPLOYMENTS, NODES, PODS, Kind
from tessera.resources.manifest import Key, Manifest

log = logging.getLogger("tessera")

_TIMEOUT_SECONDS = 5
"""Not longer than a leader that lost touch may still believe in itself: see the election. All
repetitions of a request that the server asked for lie within it."""
_AT_ONCE = 20
"""Connections at most: the writes of a turn, and beside them the election and listings."""
_BUSY = (HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE)
_CHUNK = 500
_WATCH_SECONDS = 300
_SILENCE_SECONDS = 90
"""The API server sends a bookmark every minute; a watch that is silent for longer is dead."""
_OWN = 4096
"""So many writes may be ahead of their events."""
_VERSION = re.compile(rb'"resourceVersion":"(\d+)"')
_APPLY = "application/apply-patch+yaml"
_MERGE = "application/merge-patch+json"
_TRIES = 5
"""Of a write that somebody else's write came between."""


class _ForbiddenError(ClusterError):
    """RBAC does not grant it."""


class Connection(Configuration):
    """Where the API server is, and who asks."""

    namespace = "default"
    """That of the kubeconfig's context."""

    def __init__(self) -> None:
        super().__init__()
        self.connection_pool_maxsize = _AT_ONCE
        # Looking for a proxy in the environment takes a third of the time of a request.
        self.client_session_kwargs = {"trust_env": bool(getproxies())}

    async def token(self) -> str | None:
        """The present bearer token, without its scheme; None with a client certificate."""
        value = await self.get_api_key_with_prefix("BearerToken", alias="authorization")
        return value.split(" ", 1)[-1] if value else None


async def connect(kubeconfig: str | None, context: str | None = None) -> Connection:
    """The connection of a kubeconfig, or of the pod's ServiceAccount, whose token is re-read.

    ClusterError when there is none, or it cannot be used.
    """
    told = Connection()
    try:
        if kubeconfig:
            loader = await config.load_kube_config(  # type: ignore[no-untyped-call]  # half typed package
                config_file=kubeconfig, context=context, client_configuration=told
            )
            found = loader.current_context["context"]
            told.namespace = found.get("namespace") or told.namespace
        else:
            config.load_incluster_config(client_configuration=told)  # type: ignore[no-untyped-call]  # same
    except (config.ConfigException, yaml.YAMLError, OSError, ValueError) as error:
        raise ClusterError(f"{kubeconfig or 'the ServiceAccount'}: {error}") from error
    return told


class KubeCluster:
    """`Cluster` over the real API server."""

    def __init__(
        self,
        connection: Connection,
        namespaces: tuple[str, ...] = (),
        home: str | None = None,
        silence_seconds: float = _SILENCE_SECONDS,
    ) -> None:
        """With `namespaces` only these are listed; cluster-scoped kinds are listed anyway, and
        those that stand at home are listed there alone.

        A watch that is silent for longer than `silence_seconds` is given up.
        """
        self._api = ApiClient(connection)
        self._namespaces = namespaces
        self._home = home
        self._watches = ApiClient(_unlimited(connection))
        """Streams would take all connections for themselves."""
        self._patience = aiohttp.ClientTimeout(total=None, sock_read=silence_seconds)
        self._own: dict[int, None] = {}
        """Versions that our own writes were answered with, and whose events are still to come."""
        self._not_before: dict[tuple[str, str], float] = {}
        """What the server asked to wait for, in the seconds of the event loop."""

    async def close(self) -> None:
        await self._api.close()  # type: ignore[no-untyped-call]  # same
        await self._watches.close()  # type: ignore[no-untyped-call]  # same
        for _ in range(2):
            await asyncio.sleep(0)  # connections that were cut end in the next rounds of the loop

    async def list(self, kind: Kind) -> ObjectList | None:
        scopes = self.scopes(kind)
        if kind.home or scopes == (None,):
            return await self._list(kind, scopes[0])
        found: list[ObjectList] = []
        for namespace in scopes:
            try:
                listing = await self._list(kind, namespace)
            except _ForbiddenError as error:
                # Its Role went with the namespace; the others go on.
                log.warning("%s in %s: %s", kind.plural, namespace, error)
                continue
            if listing is None:
                return None
            found.append(listing)
        if not found:
            raise ClusterError(f"list {kind.plural}: forbidden in all named namespaces")
        return ObjectList(
            tuple(seen for listing in found for seen in listing.items),
            # The oldest of the versions: what events brought after it must not be undone.
            min(listing.version for listing in found),
        )

    async def _list(self, kind: Kind, namespace: str | None) -> ObjectList | None:
        found: list[ClusterObject] = []
        query = {"limit": str(_CHUNK)}
        if kind.selector:
            query["labelSelector"] = kind.selector
        while True:
            status, body = await self.request("GET", kind.path(namespace), query)
            if status == HTTPStatus.NOT_FOUND:
                return None
            if status == HTTPStatus.GONE and query.pop("continue", ""):
                found.clear()  # the listing took so long that its version is forgotten
                continue
            if status == HTTPStatus.FORBIDDEN:
                raise _ForbiddenError(f"list {kind.plural}: {status} {body.get('message', '')}")
            _must(status, body, f"list {kind.plural}")
            found += [wire.seen(kind, item) for item in body["items"]]
            query["continue"] = body["metadata"].get("continue", "")
            if not query["continue"]:
                return ObjectList(tuple(found), int(body["metadata"].get("resourceVersion", 0)))

    def scopes(self, kind: Kind) -> Sequence[str | None]:
        if kind.home:
            return (self._home,)
        return self._namespaces if kind.namespaced and self._namespaces else (None,)

    async def watch(
        self, kind: Kind, version: int, scope: str | None = None, *, name: str | None = None
    ) -> AsyncGenerator[WatchEvent, None]:
        query = {
            "watch": "true",
            "resourceVersion": str(version),
            "allowWatchBookmarks": "true",
            "timeoutSeconds": str(_WATCH_SECONDS),
        }
        if kind.selector:
            query["labelSelector"] = kind.selector
        if name:
            query["fieldSelector"] = f"metadata.name={name}"
        try:
            async with asyncio.timeout(_TIMEOUT_SECONDS):
                ask = _Ask("GET", kind.path(scope), query)
                answer = await _sent(self._watches, ask, self._patience)
            with contextlib.closing(answer.response):
                if answer.status != HTTPStatus.OK:
                    raise _broken(kind, answer.status, _decoded(await answer.response.read()))
                async for line in _lines(answer.response.content):
                    yield self._known(line) or _change(kind, from_json(line))
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:
            told = str(error) or type(error).__name__
            raise ClusterError(f"watch {kind.plural}: {told}") from error

    async def apply(self, manifest: Manifest, *, subresource: str | None = None) -> ClusterObject:
        status, body = await self._apply(manifest, subresource, force=False)
        if status == HTTPStatus.CONFLICT:
            managers = await self._managers(manifest)
            if FIELD_MANAGER not in managers:
                raise ClusterError(
                    f"{manifest.key.told()} exists already and was made by "
                    f"{', '.join(sorted(managers))}; rename it or the InferenceService"
                )
            status, body = await self._apply(manifest, subresource, force=True)
        refused = status == HTTPStatus.UNPROCESSABLE_ENTITY
        if refused and FIELD_MANAGER in await self._managers(manifest):
            status, body = await self._replace(manifest, subresource)
        if subresource is not None and status == HTTPStatus.NOT_FOUND:
            raise NotFoundError(f"{manifest.key.told()} is gone")
        if _without_namespace(status, body):
            raise NotFoundError(f"{manifest.key.told()}: its namespace is going or gone")
        _must(status, body, f"apply {manifest.key.told()}")
        seen = wire.seen(manifest.kind, body)
        self._answered_with(seen.version)
        return seen

    def _answered_with(self, version: int) -> None:
        self._own[version] = None
        if len(self._own) > _OWN:
            del self._own[next(iter(self._own))]

    def _known(self, line: bytes) -> WatchEvent | None:
        """The event of a write of our own, whose answer told the same; half of all events are.

        It is not even decoded. An object's own version comes first in its JSON.
        """
        found = _VERSION.search(line)
        version = int(found[1]) if found else 0
        if version not in self._own:
            return None
        del self._own[version]
        return WatchEvent(version=version)

    async def delete(
        self, kind: Kind, key: Key, *, uid: str | None = None, grace_seconds: int | None = None
    ) -> None:
        options: dict[str, Any] = {"propagationPolicy": "Background"}
        if uid is not None:
            options["preconditions"] = {"uid": uid}
        if grace_seconds is not None:
            options["gracePeriodSeconds"] = grace_seconds
        path = kind.path(key.namespace, key.name)
        status, body = await self.request("DELETE", path, body=options)
        other = uid is not None and status == HTTPStatus.CONFLICT
        if status != HTTPStatus.NOT_FOUND and not other:
            _must(status, body, f"delete {key.told()}")

    async def patch_node(
        self, node: str, labels: Mapping[str, str | None], taints: Mapping[str, bool]
    ) -> ClusterObject:
        path, query = NODES.path(None, node), {"fieldManager": FIELD_MANAGER}
        for _ in range(_TRIES):
            status, live = await self.request("GET", path)
            if status == HTTPStatus.NOT_FOUND:
                raise NotFoundError(f"node {node} is gone")
            _must(status, live, f"get node {node}")
            change = wire.marked(live, labels, taints)
            if change is None:
                return wire.seen(NODES, live)
            status, body = await self.request("PATCH", path, query, change, _MERGE)
            if status != HTTPStatus.CONFLICT:
                break
        _must(status, body, f"mark node {node}")
        seen = wire.seen(NODES, body)
        self._answered_with(seen.version)
        return seen

    async def scale(self, deployment: Ref, replicas: int) -> ClusterObject:
        path = DEPLOYMENTS.path(deployment.namespace, deployment.name)
        query, change = {"fieldManager": FIELD_MANAGER}, {"spec": {"replicas": replicas}}
        status, body = await self.request("PATCH", path, query, change, _MERGE)
        if status == HTTPStatus.NOT_FOUND:
            raise NotFoundError(f"deployment {deployment} is gone")
        _must(status, body, f"resize deployment {deployment}")
        seen = wire.seen(DEPLOYMENTS, body)
        self._answered_with(seen.version)
        return seen

    async def evict(self, pod: Ref, uid: str) -> None:
        body = {
            "apiVersion": "policy/v1",
            "kind": "Eviction",
            "metadata": {"name": pod.name, "namespace": pod.namespace},
            "deleteOptions": {"preconditions": {"uid": uid}},
        }
        ask = _Ask("POST", f"{PODS.path(pod.namespace, pod.name)}/eviction", None, body)
        # A budget that does not allow it answers as a busy server does; that is not waited for.
        deadline = asyncio.get_running_loop().time() + _TIMEOUT_SECONDS
        status, text, _ = await self._answered(ask, deadline)
        answer = _decoded(text)
        if status in (HTTPStatus.NOT_FOUND, HTTPStatus.CONFLICT):
            return
        if told := _budget(answer):
            raise DisruptionBudgetError(f"evict pod {pod}: {told}")
        _must(status, answer, f"evict pod {pod}")

    async def request(
        self,
        method: str,
        path: str,
        query: Mapping[str, str] | None = None,
        body: Mapping[str, Any] | None = None,
        content_type: str = "application/json",
    ) -> tuple[int, Any]:
        """One call; the status code and the decoded body. ClusterError when nobody answers.

        A server that is busy says after how many seconds it wants to be asked again. That is done
        where there is time; otherwise the call fails, and a later one waits its turn.
        """
        ask = _Ask(method, path, query, body, content_type)
        loop = asyncio.get_running_loop()
        deadline = loop.time() + _TIMEOUT_SECONDS
        while True:
            due = self._not_before.get((method, path), 0.0)
            if due >= deadline:
                raise ClusterError(f"{method} {path}: the API server is busy and asked to wait")
            await asyncio.sleep(max(0.0, due - loop.time()))
            self._not_before.pop((method, path), None)
            status, text, wait = await self._answered(ask, deadline)
            if status not in _BUSY or wait is None:
                return status, _decoded(text)
            now = loop.time()
            self._not_before = {key: at for key, at in self._not_before.items() if at > now}
            self._not_before[method, path] = now + wait

    async def _answered(self, ask: "_Ask", deadline: float) -> tuple[int, bytes, float | None]:
        """Status, body, and the seconds to wait that the server asks for."""
        try:
            async with asyncio.timeout_at(deadline):
                answer = await _sent(self._api, ask)
                text: bytes = await answer.read()  # type: ignore[no-untyped-call]  # same
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            told = f"{ask.method} {ask.path}: the API server did not answer"
            raise ClusterError(f"{told}: {str(error) or type(error).__name__}") from error
        return answer.status, text, _seconds(answer.headers.get("Retry-After"))

    async def _apply(
        self, manifest: Manifest, subresource: str | None, *, force: bool
    ) -> tuple[int, Any]:
        path = manifest.kind.path(manifest.namespace, manifest.name)
        query = {"fieldManager": FIELD_MANAGER, "force": str(force).lower()}
        if subresource:
            path = f"{path}/{subresource}"
        return await self.request("PATCH", path, query, manifest.body, _APPLY)

    async def _replace(self, manifest: Manifest, subresource: str | None) -> tuple[int, Any]:
        """Put our lists in the place of what others made of them, then apply.

        Somebody who renames an item of a list leaves a foreign item behind; where both cannot
        stand together (two ports of one name), apply alone is refused for ever.
        """
        path = manifest.kind.path(manifest.namespace, manifest.name)
        query = {"fieldManager": FIELD_MANAGER}
        status, body = await self.request("PATCH", path, query, manifest.body, _MERGE)
        if status != HTTPStatus.OK:
            return status, body
        return await self._apply(manifest, subresource, force=True)

    async def _managers(self, manifest: Manifest) -> set[str]:
        """Who owns fields of the object; only what this operator made is ever taken back."""
        path = manifest.kind.path(manifest.namespace, manifest.name)
        status, body = await self.request("GET", path)
        if status == HTTPStatus.NOT_FOUND:
            raise NotFoundError(f"{manifest.key.told()} is gone")
        _must(status, body, f"get {manifest.key.told()}")
        if manifest.body["metadata"].get("uid", body["metadata"]["uid"]) != body["metadata"]["uid"]:
            raise NotFoundError(f"{manifest.key.told()} is another object now")
        return {entry["manager"] for entry in body["metadata"].get("managedFields", ())}


@dataclass(frozen=True, slots=True)
class _Ask:
    """One request."""

    method: str
    path: str
    query: Mapping[str, str] | None = None
    body: Mapping[str, Any] | None = None
    content_type: str = "application/json"


async def _sent(
    api: ApiClient, ask: _Ask, patience: aiohttp.ClientTimeout | None = None
) -> RESTResponse:
    """The answer as it begins."""
    headers = {"Accept": "application/json", "Content-Type": ask.content_type}
    url = f"{api.configuration.host}{ask.path}"
    if ask.query:
        url = f"{url}?{urlencode(ask.query)}"
    await api.update_params_for_auth(headers, [], ["BearerToken"], ask.path, ask.method, ask.body)
    return await api.call_api(
        ask.method, url, header_params=headers, body=ask.body, _request_timeout=patience
    )


def _unlimited(connection: Connection) -> Connection:
    found = copy.copy(connection)
    found.connection_pool_maxsize = 0
    return found


async def _lines(stream: aiohttp.StreamReader) -> AsyncIterator[bytes]:
    """Whole lines; an object may be longer than what a reader of lines takes."""
    left = b""
    async for part in stream.iter_any():
        *lines, left = (left + part).split(b"\n")
        for line in lines:
            yield line


def _change(kind: Kind, told: Mapping[str, Any]) -> WatchEvent:
    body = told["object"]
    if told["type"] == "ERROR":
        raise _broken(kind, int(body.get("code", 0)), body)
    version = int(body["metadata"]["resourceVersion"])
    if told["type"] == "BOOKMARK":
        return WatchEvent(version=version)
    return WatchEvent(
        version=version, cluster_object=wire.seen(kind, body), deleted=told["type"] == "DELETED"
    )


def _broken(kind: Kind, status: int, body: Any) -> ClusterError:
    told = f"watch {kind.plural}: {status} {body.get('message', '')}".strip()
    return ResourceExpiredError(told) if status == HTTPStatus.GONE else ClusterError(told)


def _seconds(retry_after: str | None) -> float | None:
    """The API server sends whole seconds; a date, which others may send, is not waited for."""
    return float(retry_after) if retry_after is not None and retry_after.isdecimal() else None


def _decoded(text: bytes) -> Any:
    try:
        return from_json(text)
    except ValueError:
        return {"message": text.decode(errors="replace")[:300]}


def _without_namespace(status: int, body: Any) -> bool:
    """Refused since the namespace goes, and everything in it goes with it, or is gone."""
    details = body.get("details") or {}
    if status == HTTPStatus.NOT_FOUND:
        return bool(details.get("kind") == "namespaces")
    causes = details.get("causes") or ()
    return status == HTTPStatus.FORBIDDEN and any(
        cause.get("reason") == "NamespaceTerminating" for cause in causes
    )


def _budget(body: Any) -> str | None:
    """What the PodDisruptionBudget says that refused an eviction."""
    causes = (body.get("details") or {}).get("causes") or ()
    told = [cause for cause in causes if cause.get("reason") == "DisruptionBudget"]
    return str(told[0].get("message") or body.get("message", "")) if told else None


def _must(status: int, body: Any, deed: str) -> None:
    if status >= HTTPStatus.BAD_REQUEST:
        raise ClusterError(f"{deed}: {status} {body.get('message', '')}".strip())
