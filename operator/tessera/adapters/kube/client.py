"""Client of the API server: list, watch, server-side apply, delete; raw JSON in and out.

Typed models cost half a millisecond and 36 KiB per pod, so responses are parsed straight from JSON
into the values of the domain.
"""

import asyncio
import contextlib
import copy
import logging
import re
import time
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from typing import Any
from urllib.parse import urlencode

import aiohttp
from kubernetes.aio.client import ApiClient
from kubernetes.aio.client.rest import RESTResponse

from tessera.adapters.kube import object_parsing as wire
from tessera.adapters.kube.connection import Connection
from tessera.adapters.kube.disruption_budgets import HAS_SEVERAL, refusal, several_budgets
from tessera.adapters.kube.nested_json import read_json
from tessera.api.api_resource import ApiResource
from tessera.api.ref import Ref
from tessera.api.service_class import BUILT_IN_CLASSES, ServiceClasses
from tessera.domain.names import FIELD_MANAGER
from tessera.domain.observed.snapshot import PodEvent
from tessera.ports import (
    ClockReading,
    ClusterError,
    ClusterObject,
    DisruptionBudgetError,
    NotFoundError,
    ObjectList,
    ResourceExpiredError,
    WatchEvent,
)
from tessera.resources.api_resources import (
    CONFIG_MAPS,
    DEPLOYMENTS,
    DISRUPTION_BUDGETS,
    EVENTS,
    FOREIGN_AUTOSCALERS,
    NODES,
    PODS,
)
from tessera.resources.manifest import ObjectKey, ObjectManifest
from tessera.resources.mig_objects import node_patch

log = logging.getLogger("tessera")

# At most as long as a leader without a connection still counts as leader (see leader_election). All
# retries that the server asks for happen within this time.
_TIMEOUT_SECONDS = 5
_RETRYABLE_STATUSES = (HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE)
_PAGE_SIZE = 500
_SLICE_SECONDS = 0.005
_WATCH_SECONDS = 300
# The API server sends a bookmark every minute; a watch that is silent for longer is broken.
_WATCH_IDLE_SECONDS = 90
# How many of our own writes may be ahead of their watch events.
_MAX_OWN_VERSIONS = 4096
_RESOURCE_VERSION = re.compile(rb'"resourceVersion":"(\d+)"')
_APPLY_PATCH = "application/apply-patch+yaml"
_MERGE_PATCH = "application/merge-patch+json"
_STRATEGIC_MERGE_PATCH = "application/strategic-merge-patch+json"
# How often a write is tried when it conflicts with other writers.
_MAX_ATTEMPTS = 5


class _ForbiddenError(ClusterError):
    """RBAC does not grant the request."""


class KubeCluster:
    """`Cluster` over a real API server."""

    def __init__(
        self,
        connection: Connection,
        namespaces: tuple[str, ...] = (),
        prepull_namespace: str | None = None,
        idle_seconds: float = _WATCH_IDLE_SECONDS,
        classes: ServiceClasses = BUILT_IN_CLASSES,
    ) -> None:
        """Restrict lists and watches of namespaced kinds to `namespaces`; empty means all.

        Cluster-scoped kinds are always listed; kinds of pre-pulls are listed only in
        `prepull_namespace`. A watch that is silent for more than `idle_seconds` is closed.
        What the spec of a service omits is that of its class in `classes`.
        """
        self._classes = classes
        self._api = ApiClient(connection)
        self._namespaces = namespaces
        self._prepull_namespace = prepull_namespace
        self._watches = ApiClient(_without_pool_limit(connection))
        """A client of its own for watches, since streams would use up the connection pool."""
        self._watch_timeout = aiohttp.ClientTimeout(total=None, sock_read=idle_seconds)
        self._own_writes = _OwnWrites()
        self._retry_at: dict[tuple[str, str], float] = {}
        """Times, on the event loop's clock, before which the server asked not to retry."""
        self.server_date: ClockReading | None = None
        """The `Date` of the latest response, on the event loop's clock, which is monotonic."""

    async def close(self) -> None:
        await self._api.close()  # type: ignore[no-untyped-call]  # same
        await self._watches.close()  # type: ignore[no-untyped-call]  # same
        for _ in range(2):
            await asyncio.sleep(0)  # aborted connections close in the next iterations of the loop

    async def list(self, kind: ApiResource) -> ObjectList | None:
        scopes = self.scopes(kind)
        if kind.in_prepull_namespace or scopes == (None,):
            return await self._list(kind, scopes[0])
        listings: list[ObjectList] = []
        for namespace in scopes:
            try:
                listing = await self._list(kind, namespace)
            except _ForbiddenError as error:
                # A Role is deleted with its namespace; the other namespaces stay readable.
                log.warning("%s in %s: %s", kind.plural, namespace, error)
                continue
            if listing is None:
                return None
            listings.append(listing)
        if not listings:
            raise ClusterError(f"list {kind.plural}: forbidden in all watched namespaces")
        return ObjectList(
            tuple(observed for listing in listings for observed in listing.items),
            # The oldest version, so that the list does not undo events that came after it.
            min(listing.version for listing in listings),
        )

    async def _list(self, kind: ApiResource, namespace: str | None) -> ObjectList | None:
        objects: list[ClusterObject] = []
        query = {"limit": str(_PAGE_SIZE)}
        if kind.selector:
            query["labelSelector"] = kind.selector
        while True:
            status, body = await self.request("GET", kind.path(namespace), query)
            if status == HTTPStatus.NOT_FOUND:
                return None
            if status == HTTPStatus.GONE and query.pop("continue", ""):
                objects.clear()  # the continue token expired: begin the list again
                continue
            if status == HTTPStatus.FORBIDDEN:
                raise _ForbiddenError(f"list {kind.plural}: {status} {body.get('message', '')}")
            raise_for_status(status, body, f"list {kind.plural}")
            slice_ends = time.monotonic() + _SLICE_SECONDS
            for item in body["items"]:
                observed = wire.parse_object(kind, item, self._classes)
                if not wire.is_unneeded(kind, observed):
                    objects.append(observed)
                if time.monotonic() > slice_ends:
                    # A page takes tenths of a second, and a gateway has streams beside it.
                    await asyncio.sleep(0)
                    slice_ends = time.monotonic() + _SLICE_SECONDS
            query["continue"] = body["metadata"].get("continue", "")
            if not query["continue"]:
                return ObjectList(tuple(objects), int(body["metadata"].get("resourceVersion", 0)))

    def scopes(self, kind: ApiResource) -> Sequence[str | None]:
        if kind.in_prepull_namespace:
            return (self._prepull_namespace,)
        return self._namespaces if kind.namespaced and self._namespaces else (None,)

    async def watch(
        self, kind: ApiResource, version: int, scope: str | None = None, *, name: str | None = None
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
                request = _ApiRequest("GET", kind.path(scope), query)
                stream = await _send(self._watches, request, self._watch_timeout)
            with contextlib.closing(stream.response):
                if stream.status != HTTPStatus.OK:
                    body = await _decode(await stream.response.read())
                    raise _watch_error(kind, stream.status, body)
                async for line in _lines(stream.response.content):
                    yield self._own_writes.change(line) or _to_change(
                        kind, await read_json(line), self._classes
                    )
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:
            message = str(error) or type(error).__name__
            raise ClusterError(f"watch {kind.plural}: {message}") from error

    async def apply(
        self, manifest: ObjectManifest, *, subresource: str | None = None
    ) -> ClusterObject:
        # An object that the operator never creates is the one meant: its fields there are its own.
        force = "create" not in manifest.kind.verbs
        status, body = await _send_apply(self, manifest, subresource, force=force)
        if status == HTTPStatus.CONFLICT:
            managers = await _field_managers(self, manifest)
            if managers and not force and FIELD_MANAGER not in managers:
                raise ClusterError(
                    f"{manifest.key.describe()} already exists and is managed by "
                    f"{', '.join(sorted(managers))}; rename it or the InferenceService"
                )
            if managers:
                status, body = await _send_apply(self, manifest, subresource, force=True)
        refused = status == HTTPStatus.UNPROCESSABLE_ENTITY
        if refused and FIELD_MANAGER in await _field_managers(self, manifest):
            status, body = await _replace(self, manifest, subresource)
        if subresource is not None and status == HTTPStatus.NOT_FOUND:
            raise NotFoundError(f"{manifest.key.describe()} not found")
        if _is_namespace_gone(status, body):
            raise NotFoundError(f"{manifest.key.describe()}: namespace terminating or not found")
        raise_for_status(status, body, f"apply {manifest.key.describe()}")
        return self._own_writes.remember(wire.parse_object(manifest.kind, body, self._classes))

    async def delete(
        self,
        kind: ApiResource,
        key: ObjectKey,
        *,
        uid: str | None = None,
        grace_seconds: int | None = None,
    ) -> None:
        options: dict[str, Any] = {"propagationPolicy": "Background"}
        if uid is not None:
            options["preconditions"] = {"uid": uid}
        if grace_seconds is not None:
            options["gracePeriodSeconds"] = grace_seconds
        path = kind.path(key.namespace, key.name)
        status, body = await self.request("DELETE", path, body=options)
        uid_conflict = uid is not None and status == HTTPStatus.CONFLICT
        if status != HTTPStatus.NOT_FOUND and not uid_conflict:
            raise_for_status(status, body, f"delete {key.describe()}")

    async def patch_node(
        self,
        node: str,
        labels: Mapping[str, str | None],
        taints: Mapping[str, bool],
        annotations: Mapping[str, str | None] | None = None,
    ) -> ClusterObject:
        path, query = NODES.path(None, node), {"fieldManager": FIELD_MANAGER}
        for _ in range(_MAX_ATTEMPTS):
            live = await read_object(self, path, f"get node {node}")
            if live is None:
                raise NotFoundError(f"node {node} not found")
            patch = node_patch(live, labels, taints, annotations or {})
            if patch is None:
                return wire.parse_object(NODES, live)
            status, body = await self.request("PATCH", path, query, patch, _MERGE_PATCH)
            if status != HTTPStatus.CONFLICT:
                break
        raise_for_status(status, body, f"patch node {node}")
        return self._own_writes.remember(wire.parse_object(NODES, body, self._classes))

    async def scale(self, deployment: Ref, replicas: int) -> ClusterObject:
        path = DEPLOYMENTS.path(deployment.namespace, deployment.name)
        query, patch = {"fieldManager": FIELD_MANAGER}, {"spec": {"replicas": replicas}}
        status, body = await self.request("PATCH", path, query, patch, _MERGE_PATCH)
        if status == HTTPStatus.NOT_FOUND:
            raise NotFoundError(f"deployment {deployment} not found")
        raise_for_status(status, body, f"scale deployment {deployment}")
        return self._own_writes.remember(wire.parse_object(DEPLOYMENTS, body, self._classes))

    async def read_uid(self, kind: ApiResource, ref: Ref) -> str | None:
        body = await read_object(
            self, kind.path(ref.namespace, ref.name), f"get {kind.plural} {ref}"
        )
        return None if body is None else str(body["metadata"]["uid"])

    async def pod_refusal(self, job: Ref, uid: str) -> str | None:
        selector = f"involvedObject.uid={uid},reason=FailedCreate"
        query = {"fieldSelector": selector, "limit": str(_PAGE_SIZE)}
        status, body = await self.request("GET", EVENTS.path(job.namespace), query)
        raise_for_status(status, body, f"list events of job {job}")
        return wire.last_event_message(body["items"])

    async def pod_events(self, pod: Ref, uid: str) -> tuple[PodEvent, ...]:
        events = await _list_events(self, pod.namespace, f"involvedObject.uid={uid}")
        if claim := wire.nominated_node_claim(events):
            # Karpenter's NodeClaims have no namespace: their events are in this one. Where the
            # operator watches some namespaces alone it may not read them.
            selector = f"involvedObject.kind=NodeClaim,involvedObject.name={claim},type=Warning"
            with contextlib.suppress(ClusterError):
                events = [*events, *await _list_events(self, "default", selector)]
        return wire.parse_pod_events(events)

    async def list_autoscalers(self, namespace: str) -> Mapping[str, str]:
        query, by_deployment = {"limit": str(_PAGE_SIZE)}, dict[str, str]()
        path, what = FOREIGN_AUTOSCALERS.path(namespace), f"list autoscalers of {namespace}"
        while True:
            status, body = await self.request("GET", path, query)
            if status == HTTPStatus.NOT_FOUND:
                return {}
            raise_for_status(status, body, what)
            # The API server returns them by name.
            for item in body["items"]:
                if (deployment := wire.scaled_deployment(item)) is not None:
                    by_deployment.setdefault(deployment, item["metadata"]["name"])
            query["continue"] = body["metadata"].get("continue", "")
            if not query["continue"]:
                return by_deployment

    async def config_data(self, key: ObjectKey) -> Mapping[str, str]:
        path = CONFIG_MAPS.path(key.namespace, key.name)
        body = await read_object(self, path, f"get {key.describe()}")
        return {} if body is None else dict(body.get("data") or {})

    async def record_event(self, event: ObjectManifest) -> None:
        if "series" in event.body:
            status, body = await _send_apply(self, event, None, force=True)
        else:  # creating takes half of the CPU time of applying
            path, query = event.kind.path(event.namespace), {"fieldManager": FIELD_MANAGER}
            status, body = await self.request("POST", path, query, event.body)
        raise_for_status(status, body, f"record {event.body['reason']}")

    async def evict(self, pod: Ref, uid: str) -> None:
        body = {
            "apiVersion": "policy/v1",
            "kind": "Eviction",
            "metadata": {"name": pod.name, "namespace": pod.namespace},
            "deleteOptions": {"preconditions": {"uid": uid}},
        }
        request = _ApiRequest("POST", f"{PODS.path(pod.namespace, pod.name)}/eviction", None, body)
        # A PodDisruptionBudget refuses with 429, as a busy server does; that is not retried here.
        deadline = asyncio.get_running_loop().time() + _TIMEOUT_SECONDS
        status, text, _ = await self._call(request, deadline)
        response = await _decode(text)
        if status in (HTTPStatus.NOT_FOUND, HTTPStatus.CONFLICT):
            return
        if message := refusal(response):
            raise DisruptionBudgetError(f"evict pod {pod}: {message}")
        if HAS_SEVERAL in str(response.get("message", "")):
            raise DisruptionBudgetError(f"evict pod {pod}: {await _budgets_of(self, pod)}")
        raise_for_status(status, response, f"evict pod {pod}")

    async def pod_log(self, pod: Ref, container: str, limit_bytes: int) -> str | None:
        """Return the beginning of a container's log; None if the API server refuses it."""
        query = {"container": container, "limitBytes": str(limit_bytes)}
        request = _ApiRequest("GET", f"{PODS.path(pod.namespace, pod.name)}/log", query)
        deadline = asyncio.get_running_loop().time() + _TIMEOUT_SECONDS
        status, text, _ = await self._call(request, deadline)
        return text.decode(errors="replace") if status == HTTPStatus.OK else None

    async def request(
        self,
        method: str,
        path: str,
        query: Mapping[str, str] | None = None,
        body: Mapping[str, Any] | None = None,
        content_type: str = "application/json",
    ) -> tuple[int, Any]:
        """Send one request; return the status code and the decoded body.

        A busy server says after how many seconds to retry (Retry-After). The request is retried if
        the deadline allows. Raises ClusterError without a response, or if there is no time to
        retry.
        """
        request = _ApiRequest(method, path, query, body, content_type)
        loop = asyncio.get_running_loop()
        deadline = loop.time() + _TIMEOUT_SECONDS
        while True:
            retry_at = self._retry_at.get((method, path), 0.0)
            if retry_at >= deadline:
                message = f"{method} {path}: the API server is busy and asks to retry later"
                raise ClusterError(message)
            await asyncio.sleep(max(0.0, retry_at - loop.time()))
            self._retry_at.pop((method, path), None)
            status, text, wait = await self._call(request, deadline)
            if status not in _RETRYABLE_STATUSES or wait is None:
                return status, await _decode(text)
            now = loop.time()
            self._retry_at = {key: at for key, at in self._retry_at.items() if at > now}
            self._retry_at[method, path] = now + wait

    async def _call(
        self, request: "_ApiRequest", deadline: float
    ) -> tuple[int, bytes, float | None]:
        """Return the status, the body, and the seconds of Retry-After."""
        try:
            async with asyncio.timeout_at(deadline):
                response = await _send(self._api, request)
                self.server_date = _read_date(response.headers.get("Date", "")) or self.server_date
                text: bytes = await response.read()  # type: ignore[no-untyped-call]  # same
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            message = f"{request.method} {request.path}: no response from the API server"
            raise ClusterError(f"{message}: {str(error) or type(error).__name__}") from error
        return response.status, text, _retry_seconds(response.headers.get("Retry-After"))


async def _send_apply(
    cluster: KubeCluster, manifest: ObjectManifest, subresource: str | None, *, force: bool
) -> tuple[int, Any]:
    path = manifest.kind.path(manifest.namespace, manifest.name)
    query = {"fieldManager": FIELD_MANAGER, "force": str(force).lower()}
    if subresource:
        path = f"{path}/{subresource}"
    if manifest.kind.plural == PODS.plural and subresource == "status":
        # Conditions are merged by type, as those of the kubelet: 8 ms of the API server's CPU
        # time, of which applying takes 13.
        del query["force"]
        return await cluster.request("PATCH", path, query, manifest.body, _STRATEGIC_MERGE_PATCH)
    return await cluster.request("PATCH", path, query, manifest.body, _APPLY_PATCH)


class _OwnWrites:
    """The resourceVersions that our own writes returned, whose events are still to come."""

    def __init__(self) -> None:
        self._versions: dict[int, None] = {}

    def remember(self, observed: ClusterObject) -> ClusterObject:
        """Return the object, as a write left it."""
        self._versions[observed.version] = None
        if len(self._versions) > _MAX_OWN_VERSIONS:
            del self._versions[next(iter(self._versions))]
        return observed

    def change(self, line: bytes) -> WatchEvent | None:
        """Return a bookmark for the event of our own write; None for any other event.

        The write's response had the same content, and half of all events are of this kind.
        """
        # The line is not decoded: an object's own resourceVersion comes first in its JSON.
        version_match = _RESOURCE_VERSION.search(line)
        version = int(version_match[1]) if version_match else 0
        if version_match is None or version not in self._versions:
            return None
        if _RESOURCE_VERSION.search(line, version_match.end()):
            # An annotation of a user may have that name, and come first.
            return None
        del self._versions[version]
        return WatchEvent(version=version)


@dataclass(frozen=True, slots=True)
class _ApiRequest:
    method: str
    path: str
    query: Mapping[str, str] | None = None
    body: Mapping[str, Any] | None = None
    content_type: str = "application/json"


async def _budgets_of(cluster: KubeCluster, pod: Ref) -> str:
    """Return why a pod with several PodDisruptionBudgets is not evicted, with their names."""
    _, listed = await cluster.request("GET", DISRUPTION_BUDGETS.path(pod.namespace))
    _, body = await cluster.request("GET", PODS.path(pod.namespace, pod.name))
    return several_budgets(listed.get("items", ()), body.get("metadata", {}).get("labels", {}))


async def _field_managers(cluster: KubeCluster, manifest: ObjectManifest) -> set[str]:
    """Return the field managers of the object; empty if it was never created.

    Only what this operator created is taken back.
    """
    path = manifest.kind.path(manifest.namespace, manifest.name)
    body = await read_object(cluster, path, f"get {manifest.key.describe()}")
    if body is None:
        if "uid" in manifest.body["metadata"]:
            raise NotFoundError(f"{manifest.key.describe()} not found")
        return set()
    if manifest.body["metadata"].get("uid", body["metadata"]["uid"]) != body["metadata"]["uid"]:
        raise NotFoundError(f"{manifest.key.describe()} was replaced: its UID differs")
    return {entry["manager"] for entry in body["metadata"].get("managedFields", ())}


async def _send(
    api: ApiClient,
    request: _ApiRequest,
    timeout: aiohttp.ClientTimeout | None = None,  # noqa: ASYNC109
) -> RESTResponse:
    """Send a request and return the response before its body is read."""
    headers = {"Accept": "application/json", "Content-Type": request.content_type}
    url = f"{api.configuration.host}{request.path}"
    if request.query:
        url = f"{url}?{urlencode(request.query)}"
    await api.update_params_for_auth(
        headers, [], ["BearerToken"], request.path, request.method, request.body
    )
    return await api.call_api(
        request.method, url, header_params=headers, body=request.body, _request_timeout=timeout
    )


def _without_pool_limit(connection: Connection) -> Connection:
    unlimited = copy.copy(connection)
    unlimited.connection_pool_maxsize = 0
    return unlimited


async def _lines(stream: aiohttp.StreamReader) -> AsyncIterator[bytes]:
    """Yield whole lines; an object may be longer than a StreamReader's line limit."""
    rest = b""
    async for part in stream.iter_any():
        *lines, rest = (rest + part).split(b"\n")
        for line in lines:
            yield line
            # One tenant can make hundreds of them that come at once: others have turns in between.
            await asyncio.sleep(0)


def _to_change(kind: ApiResource, event: Mapping[str, Any], classes: ServiceClasses) -> WatchEvent:
    body = event["object"]
    if event["type"] == "ERROR":
        raise _watch_error(kind, int(body.get("code", 0)), body)
    version = int(body["metadata"]["resourceVersion"])
    if event["type"] == "BOOKMARK":
        return WatchEvent(version=version)
    cluster_object = wire.parse_object(kind, body, classes)
    deleted = event["type"] == "DELETED" or wire.is_unneeded(kind, cluster_object)
    return WatchEvent(version=version, cluster_object=cluster_object, deleted=deleted)


def _watch_error(kind: ApiResource, status: int, body: Any) -> ClusterError:
    message = f"watch {kind.plural}: {status} {body.get('message', '')}".strip()
    return ResourceExpiredError(message) if status == HTTPStatus.GONE else ClusterError(message)


def _read_date(header: str) -> ClockReading | None:
    try:
        date = parsedate_to_datetime(header).astimezone(UTC)
    except ValueError:
        return None
    return ClockReading(date, asyncio.get_running_loop().time())


def _retry_seconds(retry_after: str | None) -> float | None:
    """Return the seconds of a Retry-After header.

    Returns None for a date, which the API server never sends.
    """
    return float(retry_after) if retry_after is not None and retry_after.isdecimal() else None


async def _decode(text: bytes) -> Any:
    try:
        return await read_json(text)
    except ValueError:
        return {"message": text.decode(errors="replace")[:300]}


def _is_namespace_gone(status: int, body: Any) -> bool:
    """Return whether the request was refused because its namespace is terminating or deleted."""
    details = body.get("details") or {}
    if status == HTTPStatus.NOT_FOUND:
        return bool(details.get("kind") == "namespaces")
    causes = details.get("causes") or ()
    return status == HTTPStatus.FORBIDDEN and any(
        cause.get("reason") == "NamespaceTerminating" for cause in causes
    )


async def _replace(
    cluster: KubeCluster, manifest: ObjectManifest, subresource: str | None
) -> tuple[int, Any]:
    """Replace the lists of the object by those of the manifest, then apply it."""
    # Renaming an item of a list leaves a foreign item behind. Where both items conflict (two
    # ports of one name), apply alone fails forever.
    path = manifest.kind.path(manifest.namespace, manifest.name)
    query = {"fieldManager": FIELD_MANAGER}
    status, body = await cluster.request("PATCH", path, query, manifest.body, _MERGE_PATCH)
    if status != HTTPStatus.OK:
        return status, body
    return await _send_apply(cluster, manifest, subresource, force=True)


async def _list_events(
    cluster: KubeCluster, namespace: str, selector: str
) -> Sequence[Mapping[str, Any]]:
    query = {"fieldSelector": selector, "limit": str(_PAGE_SIZE)}
    status, body = await cluster.request("GET", EVENTS.path(namespace), query)
    raise_for_status(status, body, f"list events in {namespace}")
    items: Sequence[Mapping[str, Any]] = body["items"]
    return items


async def read_object(cluster: KubeCluster, path: str, operation: str) -> Any | None:
    """Return one object, None if it does not exist; raise ClusterError for any other status."""
    status, body = await cluster.request("GET", path)
    if status == HTTPStatus.NOT_FOUND:
        return None
    raise_for_status(status, body, operation)
    return body


def raise_for_status(status: int, body: Any, operation: str) -> None:
    """Raise ClusterError for a response that is an error."""
    if status >= HTTPStatus.BAD_REQUEST:
        raise ClusterError(f"{operation}: {status} {body.get('message', '')}".strip())
