"""The moments at which a process can be killed: before and after each write and each NVML call."""

from collections.abc import AsyncGenerator, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from tessera.api.node_layout import NodeLayoutStatus
from tessera.api.ref import Ref
from tessera.domain.observed.node_layout import ObservedNodeLayout
from tessera.ports import Cluster, ClusterObject, ObjectList, OwnLayout, WatchEvent
from tessera.resources.api_resources import ApiResource
from tessera.resources.manifest import ObjectKey, ObjectManifest

Moment: TypeAlias = Literal["before", "after"]
State: TypeAlias = tuple[object, ...]


class KilledError(BaseException):
    """The process is gone, as after a kill -9."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """A moment at which a process may be killed."""

    number: int
    moment: Moment
    who: str
    what: str
    state: State
    """Who it is, in which turn, and all that was changed until then: of two points with the same
    one the later kill leaves the same behind."""


@dataclass(slots=True, kw_only=True)
class Fuse:
    """Counts the calls of all processes, and ends the caller at those that are chosen."""

    state: Callable[[], State]
    armed: bool = False
    burns: Callable[[Point], bool] = lambda _point: False
    count: int = 0
    points: list[Point] = field(default_factory=list)

    def pass_by(self, who: str, what: str, moment: Moment) -> bool:
        """Is it here that the caller ends?"""
        if not self.armed:
            return False
        if moment == "before":
            self.count += 1
        state = (who, *self.state())
        point = Point(number=self.count, moment=moment, who=who, what=what, state=state)
        self.points.append(point)
        return self.burns(point)


@dataclass(slots=True)
class Life:
    """That of one process: what is killed does nothing any more, not even in its other tasks."""

    name: str
    fuse: Fuse
    over: bool = False

    def call(self, what: str, moment: Moment) -> None:
        if not self.over:
            self.over = self.fuse.pass_by(self.name, what, moment)
        if self.over:
            raise KilledError(f"{self.name}, {moment} {what}")

    @contextmanager
    def writing(self, what: str) -> Iterator[None]:
        self.call(what, "before")
        yield
        self.call(what, "after")


@dataclass(frozen=True, slots=True)
class MortalCluster:
    """The cluster as a process sees it that may be killed at any write."""

    cluster: Cluster
    life: Life

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
        with self.life.writing(f"apply {manifest.key.describe()} {subresource or ''}"):
            return await self.cluster.apply(manifest, subresource=subresource)

    async def delete(
        self,
        kind: ApiResource,
        key: ObjectKey,
        *,
        uid: str | None = None,
        grace_seconds: int | None = None,
    ) -> None:
        with self.life.writing(f"delete {key.describe()}"):
            await self.cluster.delete(kind, key, uid=uid, grace_seconds=grace_seconds)

    async def patch_node(
        self, node: str, labels: Mapping[str, str | None], taints: Mapping[str, bool]
    ) -> ClusterObject:
        with self.life.writing(f"mark {node} {labels} {taints}"):
            return await self.cluster.patch_node(node, labels, taints)

    async def scale(self, deployment: Ref, replicas: int) -> ClusterObject:
        with self.life.writing(f"resize {deployment} {replicas}"):
            return await self.cluster.scale(deployment, replicas)

    async def evict(self, pod: Ref, uid: str) -> None:
        with self.life.writing(f"evict {pod}"):
            await self.cluster.evict(pod, uid)


@dataclass(frozen=True, slots=True)
class MortalLayout:
    """`OwnLayout` of an agent, likewise."""

    layout: OwnLayout
    life: Life

    async def read(self) -> ObservedNodeLayout:
        return await self.layout.read()

    async def write(self, status: NodeLayoutStatus) -> None:
        with self.life.writing("write the status of a NodeLayout"):
            await self.layout.write(status)

    async def wait_for_change(self) -> None:
        await self.layout.wait_for_change()
