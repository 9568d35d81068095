"""The moments at which a process can be killed: before and after each write and each NVML call."""

from collections.abc import AsyncGenerator, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from tessera.api.api_resource import ApiResource
from tessera.api.node_layout import NodeLayoutStatus
from tessera.api.ref import Ref
from tessera.domain.observed.node_layout import ObservedNodeLayout
from tessera.domain.observed.snapshot import PodEvent
from tessera.ports import Cluster, ClusterObject, ObjectList, OwnLayout, WatchEvent
from tessera.resources.manifest import ObjectKey, ObjectManifest

Moment: TypeAlias = Literal["before", "after"]
State: TypeAlias = tuple[object, ...]


class KilledError(BaseException):
    """The process ends here, as after a kill -9."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CrashPoint:
    """A moment at which a process may be killed."""

    number: int
    moment: Moment
    process: str
    what: str
    state: State
    """The process, its cycle, and all changes until then: kills at two points with an equal state
    leave the same behind."""


@dataclass(slots=True, kw_only=True)
class CrashInjector:
    """Counts the calls of all processes, and kills the caller at the selected ones."""

    state: Callable[[], State]
    armed: bool = False
    selects: Callable[[CrashPoint], bool] = lambda _point: False
    count: int = 0
    points: list[CrashPoint] = field(default_factory=list)

    def should_crash(self, process: str, what: str, moment: Moment) -> bool:
        """Count a call, and return whether the caller is killed at it."""
        if not self.armed:
            return False
        if moment == "before":
            self.count += 1
        state = (process, *self.state())
        point = CrashPoint(
            number=self.count, moment=moment, process=process, what=what, state=state
        )
        self.points.append(point)
        return self.selects(point)


@dataclass(slots=True)
class KillableProcess:
    """One process: after its kill it does nothing more, not even in its other tasks."""

    name: str
    injector: CrashInjector
    killed: bool = False

    def check(self, what: str, moment: Moment) -> None:
        if not self.killed:
            self.killed = self.injector.should_crash(self.name, what, moment)
        if self.killed:
            raise KilledError(f"{self.name}, {moment} {what}")

    @contextmanager
    def around_write(self, what: str) -> Iterator[None]:
        self.check(what, "before")
        yield
        self.check(what, "after")


@dataclass(frozen=True, slots=True)
class KillableCluster:
    """The cluster for a process that can be killed at any write."""

    cluster: Cluster
    process: KillableProcess

    async def list(self, kind: ApiResource) -> ObjectList | None:
        return await self.cluster.list(kind)

    def scopes(self, kind: ApiResource) -> Sequence[str | None]:
        return self.cluster.scopes(kind)

    def watch(
        self, kind: ApiResource, version: int, scope: str | None = None
    ) -> AsyncGenerator[WatchEvent, None]:
        return self.cluster.watch(kind, version, scope)

    async def apply(
        self, manifest: ObjectManifest, *, subresource: str | None = None
    ) -> ClusterObject:
        with self.process.around_write(f"apply {manifest.key.describe()} {subresource or ''}"):
            return await self.cluster.apply(manifest, subresource=subresource)

    async def delete(
        self,
        kind: ApiResource,
        key: ObjectKey,
        *,
        uid: str | None = None,
        grace_seconds: int | None = None,
    ) -> None:
        with self.process.around_write(f"delete {key.describe()}"):
            await self.cluster.delete(kind, key, uid=uid, grace_seconds=grace_seconds)

    async def patch_node(
        self,
        node: str,
        labels: Mapping[str, str | None],
        taints: Mapping[str, bool],
        annotations: Mapping[str, str | None] | None = None,
    ) -> ClusterObject:
        with self.process.around_write(f"mark {node} {labels} {taints}"):
            return await self.cluster.patch_node(node, labels, taints, annotations)

    async def scale(self, deployment: Ref, replicas: int) -> ClusterObject:
        with self.process.around_write(f"resize {deployment} {replicas}"):
            return await self.cluster.scale(deployment, replicas)

    async def read_uid(self, kind: ApiResource, ref: Ref) -> str | None:
        return await self.cluster.read_uid(kind, ref)

    async def pod_events(self, pod: Ref, uid: str) -> Sequence[PodEvent]:
        return await self.cluster.pod_events(pod, uid)

    async def pod_refusal(self, job: Ref, uid: str) -> str | None:
        return await self.cluster.pod_refusal(job, uid)

    async def list_autoscalers(self, namespace: str) -> Mapping[str, str]:
        return await self.cluster.list_autoscalers(namespace)

    async def config_data(self, key: ObjectKey) -> Mapping[str, str]:
        return await self.cluster.config_data(key)

    async def evict(self, pod: Ref, uid: str) -> None:
        with self.process.around_write(f"evict {pod}"):
            await self.cluster.evict(pod, uid)


@dataclass(frozen=True, slots=True)
class KillableLayout:
    """`OwnLayout` of an agent that can be killed at any write."""

    layout: OwnLayout
    process: KillableProcess

    async def read(self) -> ObservedNodeLayout:
        return await self.layout.read()

    async def write(self, status: NodeLayoutStatus) -> None:
        with self.process.around_write("write the status of a NodeLayout"):
            await self.layout.write(status)

    async def wait_for_change(self) -> None:
        await self.layout.wait_for_change()
