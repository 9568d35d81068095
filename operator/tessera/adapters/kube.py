"""The API server: lists, server-side apply, deletes. Raw JSON in and out.

Typed models cost half a millisecond and 36 KiB for every pod read, so answers are trimmed straight
from JSON into the values of the domain.
"""

import asyncio
import json
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any
from urllib.parse import urlencode, urlsplit

import aiohttp
from kubernetes.aio import config
from kubernetes.aio.client import ApiClient, Configuration

from tessera.adapters import wire
from tessera.domain.names import FIELD_MANAGER
from tessera.ports import ClusterError, GoneError, Listing, Seen
from tessera.resources.kinds import Kind
from tessera.resources.manifest import Key, Manifest

_TIMEOUT_SECONDS = 5
"""Not longer than a leader that lost touch may still believe in itself: see the election. All
repetitions of a request that the server asked for lie within it."""
_AT_ONCE = 16
"""Connections at most: the writes of a turn, the election, listings."""
_BUSY = (HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE)
_CHUNK = 500
_APPLY = "application/apply-patch+yaml"


class Connection(Configuration):
    """Where the API server is, and who asks."""

    def __init__(self) -> None:
        super().__init__()
        self.connection_pool_maxsize = _AT_ONCE

    async def token(self) -> str | None:
        """The present bearer token, without its scheme; None with a client certificate."""
        value = await self.get_api_key_with_prefix("BearerToken", alias="authorization")
        return value.split(" ", 1)[-1] if value else None


async def connect(kubeconfig: str | None) -> Connection:
    """The connection of a kubeconfig, or of the pod's ServiceAccount, whose token is re-read."""
    told = Connection()
    if kubeconfig:
        await config.load_kube_config(  # type: ignore[no-untyped-call]  # half typed package
            config_file=kubeconfig, client_configuration=told
        )
    else:
        config.load_incluster_config(client_configuration=told)  # type: ignore[no-untyped-call]  # same
    return told


class KubeCluster:
    """`Cluster` over the real API server."""

    def __init__(self, connection: Connection) -> None:
        self._api = ApiClient(connection)
        self._not_before: dict[tuple[str, str], float] = {}
        """What the server asked to wait for, in the seconds of the event loop."""

    async def close(self) -> None:
        await self._api.close()  # type: ignore[no-untyped-call]  # same

    async def list(self, kind: Kind) -> Listing | None:
        found: list[Seen] = []
        query = {"limit": str(_CHUNK)}
        if kind.selector:
            query["labelSelector"] = kind.selector
        while True:
            status, body = await self.request("GET", kind.path(None), query)
            if status == HTTPStatus.NOT_FOUND:
                return None
            if status == HTTPStatus.GONE and query.pop("continue", ""):
                found.clear()  # the listing took so long that its version is forgotten
                continue
            _must(status, body, f"list {kind.plural}")
            found += [wire.seen(kind, item) for item in body["items"]]
            query["continue"] = body["metadata"].get("continue", "")
            if not query["continue"]:
                return Listing(tuple(found), int(body["metadata"].get("resourceVersion", 0)))

    async def apply(self, manifest: Manifest, *, subresource: str | None = None) -> Seen:
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
            raise GoneError(f"{manifest.key.told()} is gone")
        if _without_namespace(status, body):
            raise GoneError(f"{manifest.key.told()}: its namespace is going or gone")
        _must(status, body, f"apply {manifest.key.told()}")
        return wire.seen(manifest.kind, body)

    async def delete(self, kind: Kind, key: Key) -> None:
        path = kind.path(key.namespace, key.name)
        status, body = await self.request("DELETE", path, {"propagationPolicy": "Background"})
        if status != HTTPStatus.NOT_FOUND:
            _must(status, body, f"delete {key.told()}")

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
        url = f"{self._api.configuration.host}{path}"
        if query:
            url = f"{url}?{urlencode(query)}"
        loop = asyncio.get_running_loop()
        deadline = loop.time() + _TIMEOUT_SECONDS
        while True:
            due = self._not_before.pop((method, path), 0.0)
            if due >= deadline:
                self._not_before[method, path] = due
                raise ClusterError(f"{method} {path}: the API server is busy and asked to wait")
            await asyncio.sleep(max(0.0, due - loop.time()))
            status, text, wait = await self._send(method, url, body, content_type, deadline)
            if status not in _BUSY or wait is None:
                return status, _decoded(text)
            now = loop.time()
            self._not_before = {key: at for key, at in self._not_before.items() if at > now}
            self._not_before[method, path] = now + wait

    async def _send(
        self,
        method: str,
        url: str,
        body: Mapping[str, Any] | None,
        content_type: str,
        deadline: float,
    ) -> tuple[int, bytes, float | None]:
        """Status, body, and the seconds to wait that the server asks for."""
        headers = {"Accept": "application/json", "Content-Type": content_type}
        try:
            async with asyncio.timeout_at(deadline):
                await self._api.update_params_for_auth(
                    headers, [], ["BearerToken"], url, method, body
                )
                answer = await self._api.call_api(method, url, header_params=headers, body=body)
                text: bytes = await answer.read()  # type: ignore[no-untyped-call]  # same
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            path, told = urlsplit(url).path, str(error) or type(error).__name__
            raise ClusterError(f"{method} {path}: the API server did not answer: {told}") from error
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
        merge = "application/merge-patch+json"
        status, body = await self.request("PATCH", path, query, manifest.body, merge)
        if status != HTTPStatus.OK:
            return status, body
        return await self._apply(manifest, subresource, force=True)

    async def _managers(self, manifest: Manifest) -> set[str]:
        """Who owns fields of the object; only what this operator made is ever taken back."""
        path = manifest.kind.path(manifest.namespace, manifest.name)
        status, body = await self.request("GET", path)
        if status == HTTPStatus.NOT_FOUND:
            raise GoneError(f"{manifest.key.told()} is gone")
        _must(status, body, f"get {manifest.key.told()}")
        if manifest.body["metadata"].get("uid", body["metadata"]["uid"]) != body["metadata"]["uid"]:
            raise GoneError(f"{manifest.key.told()} is another object now")
        return {entry["manager"] for entry in body["metadata"].get("managedFields", ())}


def _seconds(retry_after: str | None) -> float | None:
    """The API server sends whole seconds; a date, which others may send, is not waited for."""
    return float(retry_after) if retry_after is not None and retry_after.isdecimal() else None


def _decoded(text: bytes) -> Any:
    try:
        return json.loads(text)
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


def _must(status: int, body: Any, deed: str) -> None:
    if status >= HTTPStatus.BAD_REQUEST:
        raise ClusterError(f"{deed}: {status} {body.get('message', '')}".strip())
