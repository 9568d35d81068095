"""One pod on a live node, from its admission to its last status."""

import asyncio
import logging
import shutil
from collections.abc import Iterator
from pathlib import Path

import aiohttp

from world import clock
from world.api import ApiError, Json
from world.informer import key_of
from world.kubelet import specs
from world.kubelet.container import Container
from world.kubelet.devices import NoDeviceError
from world.kubelet.environment import MissingReferenceError, PodFacts
from world.kubelet.host import Host
from world.kubelet.launch import ContainerContext
from world.kubelet.reporter import Reporter, since
from world.kubelet.states import Terminated
from world.kubelet.status import PodView
from world.kubelet.volumes import Volumes
from world.kubelet.waits import first

RETRY_SECONDS = 0.5
REFRESH_SECONDS = 10
DEFAULT_GRACE = 30
ENDED = ("Succeeded", "Failed")
log = logging.getLogger(__name__)


class PodWorker:
    """Keeps a pod as its specification says; `run` ends when the pod is gone."""

    def __init__(self, pod: Json, host: Host) -> None:
        self.pod = pod
        self.uid: str = pod["metadata"]["uid"]
        self.key = key_of(pod)
        self.host = host
        self.address: str = pod.get("status", {}).get("podIP") or _address(pod, host)
        self._folder = host.machine.folder / "pods" / self.uid
        self._mounts: dict[str, Path] = {}
        self._mounted = False
        self._volumes = self._make_volumes()
        self._started = clock.now()
        self._deleted = asyncio.Event()
        self._deadline = 0.0
        self._abandoned = False
        self._finished = pod.get("status", {}).get("phase") in ENDED
        self._rejection: tuple[str, str] | None = None
        self.reporter = Reporter(host, self.view, since(pod))
        self.init = [
            self._container(spec, init=True) for spec in pod["spec"].get("initContainers", [])
        ]
        self.main = [self._container(spec) for spec in pod["spec"]["containers"]]

    async def run(self) -> None:
        if not self._finished:
            await self._run()
        await self._deleted.wait()
        if not self._abandoned:
            await self.reporter.remove()
        shutil.rmtree(self._folder, ignore_errors=True)

    async def _run(self) -> None:
        reporting = asyncio.create_task(self.reporter.run())
        try:
            if self._admitted():
                await self._run_containers()
            self._release()
            self.reporter.changed()
            await self._deleted.wait()
            if not self._abandoned:
                await self.reporter.send_final()
        finally:
            reporting.cancel()
            self._kill()
            self._release()

    @property
    def active(self) -> bool:
        """It was not refused, and has not ended."""
        return not self._finished and self._rejection is None

    def update(self, pod: Json) -> None:
        """The pod as the API has it now: perhaps it is to be deleted, or a gate has opened."""
        self.pod = pod
        self.reporter.changed()
        if "deletionTimestamp" in pod["metadata"]:
            self._end_after(pod["metadata"].get("deletionGracePeriodSeconds", DEFAULT_GRACE))

    def abandon(self) -> None:
        """The pod is gone from the API, or its node is dead: end it at once, without a status."""
        self._abandoned = True
        self._end_after(0)

    def containers(self) -> Iterator[Container]:
        yield from self.init
        yield from self.main

    def view(self) -> PodView:
        return PodView(
            pod=self.pod,
            init=[container.view for container in self.init],
            main=[container.view for container in self.main],
            started=self._started,
            ip=self.address if self._mounted else None,
            host_ip=self.host.address,
            refused=self._rejection,
            deleted=self._deleted.is_set(),
        )

    def _admitted(self) -> bool:
        """Devices are given before anything starts; the scheduler may have been wrong."""
        self.reporter.changed()
        try:
            self.host.devices.admit(self.pod)
        except NoDeviceError as error:
            reason, message = "UnexpectedAdmissionError", f"Pod was rejected: {error}"
            self.host.machine.events.record(self.pod, reason, message, warning=True)
            self._rejection = reason, message
            return False
        return True

    def _release(self) -> None:
        self.host.devices.release(self.uid)

    async def _run_containers(self) -> None:
        if await self._mount():
            async with asyncio.TaskGroup() as group:
                fresh = group.create_task(self._refresh_volumes())
                await self._run_in_order()
                fresh.cancel()

    async def _run_in_order(self) -> None:
        """Init containers one after the other, then all others side by side; sidecars last."""
        sidecars: list[tuple[Container, asyncio.Task[None]]] = []
        for container in self.init:
            if _is_sidecar(container):
                task = asyncio.create_task(container.run())
                sidecars.append((container, task))
                await first(container.begun.wait(), asyncio.wait({task}), self._deleted.wait())
            else:
                await container.run()
                if not _succeeded(container):
                    break
        else:
            async with asyncio.TaskGroup() as group:
                for container in self.main:
                    group.create_task(container.run())
        for container, task in reversed(sidecars):
            container.stop(self._grace_left())
            await task

    async def _mount(self) -> bool:
        """Wait for all that the volumes need; False when the pod is deleted before."""
        while not self._deleted.is_set():
            try:
                self._mounts.update(await self._volumes.make())
            except (MissingReferenceError, ApiError, aiohttp.ClientError) as error:
                self.host.machine.events.record(self.pod, "FailedMount", str(error), warning=True)
                await first(asyncio.sleep(RETRY_SECONDS), self._deleted.wait())
            else:
                self._mounted = True
                self.reporter.changed()
                return True
        return False

    async def _refresh_volumes(self) -> None:
        """ConfigMaps, Secrets and tokens of a running pod follow the API after a while."""
        while True:
            await asyncio.sleep(REFRESH_SECONDS)
            await self.host.connected.wait()
            try:
                await self._volumes.refresh()
            except (MissingReferenceError, ApiError, aiohttp.ClientError) as error:
                log.info("volumes of %s stay as they are: %s", self.pod["metadata"]["name"], error)
                continue
            for container in self.containers():
                container.renew_identity()

    def _end_after(self, seconds: float) -> None:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + seconds
        if not self._deleted.is_set():
            self._deadline = deadline
            self._deleted.set()
            for container in self.containers():
                if not _is_sidecar(container):
                    container.stop(seconds)
        elif deadline < self._deadline:  # deleted again with a shorter grace
            self._deadline = deadline
            loop.call_at(deadline, self._kill)

    def _kill(self) -> None:
        for container in self.containers():
            container.kill()

    def _grace_left(self) -> float:
        if not self._deleted.is_set():
            return float(self.pod["spec"].get("terminationGracePeriodSeconds", DEFAULT_GRACE))
        return max(self._deadline - asyncio.get_running_loop().time(), 0)

    def _make_volumes(self) -> Volumes:
        machine = self.host.machine
        facts = PodFacts(
            pod=self.pod,
            pod_ip=self.address,
            host_ip=self.host.address,
            allocatable=self.host.allocatable(),
            sources={},
        )
        return Volumes(
            api=machine.api,
            tokens=machine.tokens,
            folder=self._folder / "volumes",
            host_folder=self.host.files,
            facts=facts,
        )

    def _container(self, spec: Json, *, init: bool = False) -> Container:
        context = ContainerContext(
            host=self.host,
            container=spec,
            address=self.address,
            folder=self._folder / "containers" / spec["name"],
            volumes=self._mounts,
        )
        return Container(
            pod=self.pod,
            context=context,
            view=specs.first_view(self.pod, spec),
            policy=specs.policy(self.pod, spec, init=init),
            logs=specs.log_folder(self.host.machine.folder, self.pod) / spec["name"],
            changed=self.reporter.changed,
        )


def _address(pod: Json, host: Host) -> str:
    return host.address if pod["spec"].get("hostNetwork") else host.machine.next_address()


def _is_sidecar(container: Container) -> bool:
    return specs.is_sidecar(container.context.container)


def _succeeded(container: Container) -> bool:
    state = container.view.state
    return isinstance(state, Terminated) and state.code == 0
