"""The writing requests of the operator, and what becomes of those that are refused."""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial
from typing import Concatenate, Generic, ParamSpec, TypeAlias, TypeVar

from pydantic import BaseModel

from tessera.api.api_resource import ApiResource
from tessera.domain.observed.snapshot import Ref
from tessera.domain.steps import error_text
from tessera.ports import Cluster, ClusterError, ClusterObject, NotFoundError
from tessera.reconcile.store import Store
from tessera.resources.api_resources import DEPLOYMENTS, NODES, PODS
from tessera.resources.manifest import ObjectKey, ObjectManifest, partial_manifest, wire_format

log = logging.getLogger("tessera")

S = TypeVar("S")
P = ParamSpec("P")

RecordEvents: TypeAlias = Callable[[ApiResource, ClusterObject, BaseModel], None]

# A leader stops writing this long before another process may acquire the lease, so a request that
# began while it led ends before the other one writes (see leader_election).
MAX_REQUEST_SECONDS = 5.0
_completes_writes: ContextVar[bool] = ContextVar("completes_writes", default=False)


class WritingStoppedError(Exception):
    """Nothing more is written of what was decided."""


class NotLeadingError(WritingStoppedError):
    """The process may not be the leader anymore."""


class SupersededError(WritingStoppedError):
    """A newer plan is being decided."""


async def _refusals(name: str, write: Callable[[], Awaitable[list[str] | None]]) -> list[str]:
    try:
        return await write() or []
    except WritingStoppedError:
        raise
    except NotFoundError:
        return []  # it is deleted: nothing more to do
    except ClusterError as error:
        return [str(error)]
    except Exception as error:
        log.exception("%s raised %s", name, error_text(error))
        return [defect_text(name, error)]


def defect_text(name: str, error: Exception) -> str:
    """Return how a status tells of a defect of the operator."""
    return f"{name} raised {error_text(error)}; please report it with the log of the operator"


class WriteStep(Generic[S, P]):
    """A method that writes what the plan decided for one object; it returns what was refused.

    Whatever else it raises is refused in the same way, so that it stops no other object.
    """

    def __init__(self, function: Callable[Concatenate[S, P], Awaitable[list[str] | None]]) -> None:
        self.function = function

    def __get__(self, instance: S, owner: type[S]) -> Callable[P, Awaitable[list[str]]]:
        del owner
        return partial(self._write, instance)

    async def _write(self, instance: S, *arguments: P.args, **named: P.kwargs) -> list[str]:
        name = self.function.__name__.strip("_")
        return await _refusals(name, partial(self.function, instance, *arguments, **named))


async def attempt(write: Awaitable[object]) -> list[str]:
    """Send one write; return what was refused."""

    async def send() -> None:
        await write

    return await _refusals("write", send)


@dataclass(frozen=True, slots=True)
class _AppliedObject:
    """The body that was last applied, and the digest of the fields that Tessera then owned."""

    body: Mapping[str, object]
    owned: str | None


class Writer:
    """Sends writing requests while the process leads, counts them, and stores the responses.

    The next cycle knows each response without waiting for the watch. Nothing is sent while
    `is_superseded` returns True, save in a block of `completing`.
    """

    def __init__(
        self,
        cluster: Cluster,
        store: Store,
        is_leader: Callable[[], bool],
        *,
        is_superseded: Callable[[], bool] = lambda: False,
        record_events: RecordEvents = lambda *_: None,
    ) -> None:
        self._cluster = cluster
        self._store = store
        self._is_leader = is_leader
        self._record_events = record_events
        self._is_superseded = is_superseded
        self._applied: dict[ObjectKey, _AppliedObject] = {}
        self._refused_statuses: dict[ObjectKey, ApiResource] = {}
        self.requests = 0
        """Writing requests since the start of the process."""

    @contextmanager
    def completing(self) -> Iterator[None]:
        """Send the requests of this block even if a newer plan is being decided.

        It is for writes that a plan would misread if only the ones before them were sent.
        """
        token = _completes_writes.set(True)
        try:
            yield
        finally:
            _completes_writes.reset(token)

    async def send(self, manifest: ObjectManifest, subresource: str | None = None) -> ClusterObject:
        """Apply an object of a kind that is not observed."""
        async with self._request(f"apply {manifest.key.describe()}"):
            return await self._cluster.apply(manifest, subresource=subresource)

    async def apply(
        self, manifest: ObjectManifest, subresource: str | None = None
    ) -> ClusterObject:
        observed = await self.send(manifest, subresource)
        self._store.put(manifest.kind, observed)
        return observed

    async def apply_status(
        self, kind: ApiResource, ref: Ref, status: BaseModel, uid: str = ""
    ) -> list[str]:
        """Apply a status, and record what changed in it; return what was refused.

        A status that is refused cannot tell of it, so the log does, once. With `uid` it is that of
        no other object of the same name.
        """
        named = {"name": ref.name, "namespace": ref.namespace, "uid": uid}
        metadata = {field: value for field, value in named.items() if value}
        manifest = partial_manifest(kind, metadata, status=wire_format(status))
        observed = self._store.all(kind).get(manifest.key)
        refusals = await attempt(self.apply(manifest, "status"))
        if not refusals:
            self._refused_statuses.pop(manifest.key, None)
            if observed is not None:
                self._record_events(kind, observed, status)
        elif manifest.key not in self._refused_statuses:
            self._refused_statuses[manifest.key] = kind
            log.error("status refused: %s", "; ".join(refusals))
        return refusals

    async def apply_changed(self, manifests: Iterable[ObjectManifest]) -> tuple[list[str], bool]:
        """Apply the objects that are not as this process last applied them.

        An object was deleted, or lost a field, or its desired state changed. After a start
        everything is applied once, which changes nothing that is in place. Returns what was
        refused, and whether all objects were in place already.
        """
        problems, in_place = list[str](), True
        for manifest in manifests:
            if not self._is_in_place(manifest):
                in_place = False
                problems += await attempt(self._apply_and_remember(manifest))
        return problems, in_place

    def are_in_place(self, manifests: Iterable[ObjectManifest]) -> bool:
        """Return whether the objects are as this process last applied them."""
        return all(self._is_in_place(manifest) for manifest in manifests)

    def has_applied(self, key: ObjectKey) -> bool:
        """Return whether this process applied the object."""
        return key in self._applied

    def forget(self, is_forgotten: Callable[[ObjectKey], bool]) -> None:
        """Forget what was applied to objects that no plan needs anymore."""
        for key in [key for key in self._applied if is_forgotten(key)]:
            del self._applied[key]
        for key, kind in tuple(self._refused_statuses.items()):
            if key not in self._store.all(kind):
                del self._refused_statuses[key]

    async def delete(self, kind: ApiResource, key: ObjectKey) -> None:
        """Delete the object that was observed; one that replaced it under its name stays."""
        observed = self._store.all(kind).get(key)
        if observed is None:
            return
        async with self._request(f"delete {key.describe()}"):
            await self._cluster.delete(kind, key, uid=observed.uid)
        self._store.drop(kind, key)
        self._applied.pop(key, None)

    async def delete_pod(self, pod: Ref, uid: str, grace_seconds: int) -> None:
        key = ObjectKey(PODS.plural, pod.namespace, pod.name)
        async with self._request(f"delete {key.describe()}"):
            await self._cluster.delete(PODS, key, uid=uid, grace_seconds=grace_seconds)

    async def evict(self, pod: Ref, uid: str) -> None:
        """Evict a pod; raises DisruptionBudgetError when its PodDisruptionBudget forbids it."""
        async with self._request(f"evict pod {pod}"):
            await self._cluster.evict(pod, uid)

    async def scale(self, deployment: Ref, replicas: int) -> None:
        """Set the replicas of a Deployment and nothing else."""
        async with self._request(f"scale deployment {deployment}"):
            self._store.put(DEPLOYMENTS, await self._cluster.scale(deployment, replicas))

    async def patch_node(
        self, node: str, labels: Mapping[str, str | None], taints: Mapping[str, bool]
    ) -> None:
        """Set labels (None removes one) and NoSchedule taints of a node."""
        async with self._request(f"patch node {node}"):
            self._store.put(NODES, await self._cluster.patch_node(node, labels, taints))

    async def annotate_node(self, node: str, annotations: Mapping[str, str | None]) -> None:
        """Set annotations of a node; None removes one."""
        async with self._request(f"annotate node {node}"):
            self._store.put(NODES, await self._cluster.patch_node(node, {}, {}, annotations))

    def _is_in_place(self, manifest: ObjectManifest) -> bool:
        observed = self._store.all(manifest.kind).get(manifest.key)
        last = self._applied.get(manifest.key)
        return (
            observed is not None
            and last is not None
            and last.owned == observed.owned_fields_digest
            and last.body == manifest.body
        )

    async def _apply_and_remember(self, manifest: ObjectManifest) -> None:
        observed = await self.apply(manifest)
        self._applied[manifest.key] = _AppliedObject(manifest.body, observed.owned_fields_digest)

    @asynccontextmanager
    async def _request(self, operation: str) -> AsyncIterator[None]:
        if not self._is_leader():
            raise NotLeadingError
        if self._is_superseded() and not _completes_writes.get():
            raise SupersededError
        self.requests += 1
        try:
            async with asyncio.timeout(MAX_REQUEST_SECONDS):
                yield
        except TimeoutError as error:
            message = f"{operation}: no response within {MAX_REQUEST_SECONDS:g} s"
            raise ClusterError(message) from error
