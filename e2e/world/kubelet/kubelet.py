"""All kubelets of a world: which pods are on which node, and what becomes of them."""

import asyncio
import logging
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from world.api import PODS, Json
from world.control_plane import HeartBeats
from world.informer import Informer, Key
from world.kubelet import node
from world.kubelet.container import Container
from world.kubelet.host import Host
from world.kubelet.pod import PodWorker

END_SECONDS = 5
log = logging.getLogger(__name__)


@dataclass(slots=True)
class Kubelet:
    """The kubelet of one node."""

    host: Host
    beats: HeartBeats
    log_port: int
    informer: Informer = field(init=False)
    workers: dict[str, PodWorker] = field(default_factory=dict)
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)
    _finished: set[str] = field(default_factory=set)
    """Pods that are done, while the API still shows them: a finalizer may hold them."""

    def __post_init__(self) -> None:
        self.informer = Informer(
            api=self.host.machine.api,
            path=PODS.path(),
            changed=self._changed,
            selector={"fieldSelector": f"spec.nodeName={self.host.node.name}"},
        )

    async def run(self) -> None:
        self.host.connected.set()
        async with asyncio.TaskGroup() as group:
            group.create_task(self.informer.follow())
            group.create_task(node.send_heartbeats(self.host, self.beats, self.resync))

    async def register(self) -> None:
        host = self.host
        spec = replace(host.node, gpus=host.hardware.layouts())
        manifest = node.manifest(
            spec,
            host.address,
            self.log_port,
            host.capacity(),
            host.allocatable(),
            discovered=not host.new,
        )
        await node.register(host.machine.api, manifest)

    def silence(self) -> None:
        """No heart-beat, no status, no ear; the containers go on."""
        self.host.connected.clear()

    async def wake(self) -> None:
        """Back after a silence, or after a reboot when the node was ended."""
        await self.register()
        self.host.connected.set()
        self._report_pods()

    async def resync(self) -> None:
        """Tell the API again how the node and its pods are."""
        await self.register()
        self._report_pods()

    def _report_pods(self) -> None:
        known_uids = {pod["metadata"]["uid"] for pod in self.informer.values()}
        for uid, worker in self.workers.items():
            worker.reporter.resend()
            if uid not in known_uids:
                worker.abandon()
        for pod in list(self.informer.values()):
            self._sync(pod)

    async def end(self) -> None:
        """The node dies with all its containers, also with those that wait for the API."""
        self.silence()
        for worker in self.workers.values():
            worker.abandon()
        if self._tasks:
            _, late = await asyncio.wait(self._tasks, timeout=END_SECONDS)
            for task in late:
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)
        self._finished.clear()
        self.host.hardware.energy.reset()

    def containers(self) -> Iterator[tuple[PodWorker, Container]]:
        for worker in self.workers.values():
            for container in worker.containers():
                yield worker, container

    def _changed(self, key: Key, pod: Json | None) -> None:
        if not self.host.connected.is_set():
            return
        for worker in self.workers.values():
            deleted = pod is None or worker.uid != pod["metadata"]["uid"]
            if worker.key == key and deleted:
                worker.abandon()
        if pod is not None:
            self._sync(pod)

    def _sync(self, pod: Json) -> None:
        uid = pod["metadata"]["uid"]
        if uid in self._finished:
            return
        if uid not in self.workers:
            self._start_worker(PodWorker(pod, self.host))
        self.workers[uid].update(pod)

    def _start_worker(self, worker: PodWorker) -> None:
        self.workers[worker.uid] = worker
        task = asyncio.create_task(worker.run())
        self._tasks.add(task)
        task.add_done_callback(lambda done: self._forget_worker(worker, done))

    def _forget_worker(self, worker: PodWorker, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        self.workers.pop(worker.uid, None)
        self._finished.add(worker.uid)
        self.host.machine.tokens.forget(worker.uid)
        if not task.cancelled() and (error := task.exception()):
            log.error("the worker of pod %s failed", worker.key, exc_info=error)
