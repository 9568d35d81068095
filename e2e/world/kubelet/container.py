"""One container through all its starts."""

import asyncio
import contextlib
import datetime
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import aiohttp

from world import clock
from world.api import ApiError, Json
from world.kubelet import backoff, images, launch, logs
from world.kubelet.environment import MissingReferenceError
from world.kubelet.images import ImageEntry, UnknownEntrypointError
from world.kubelet.launch import ContainerContext, Launch
from world.kubelet.running import Start
from world.kubelet.states import Running, State, Terminated, View, Waiting
from world.kubelet.tokens import MOUNT
from world.kubelet.waits import first

AGAIN_SECONDS = 0.5
# What a container waits for with the reason CreateContainerConfigError.
NOT_YET = (MissingReferenceError, UnknownEntrypointError, ApiError, aiohttp.ClientError)


@dataclass(slots=True)
class Container:
    """`run` starts it again and again, until it has ended for good or `stop` was called."""

    pod: Json
    context: ContainerContext
    view: View
    policy: str
    """Always, OnFailure or Never."""
    logs: Path
    changed: Callable[[], None]
    begun: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when it counts as started, which is when the next init container may go on."""
    _stopping: asyncio.Event = field(default_factory=asyncio.Event)
    _grace: float = 0
    _start: Start | None = None
    _failures: int = 0
    _killed_for: str = ""

    @property
    def pid(self) -> int | None:
        return None if self._start is None else self._start.instance.pid

    @property
    def running(self) -> bool:
        return self._start is not None

    async def run(self) -> None:
        image = await self._image()
        while image is not None and not self._stopping.is_set():
            code = await self._run_once(image)
            if code is None or self._stopping.is_set() or not self._restarts(code):
                return
            pause = backoff.pause(self._failures)
            self._record_event(
                "BackOff", f"Back-off restarting failed container {self.context.name}"
            )
            self._set_state(
                Waiting("CrashLoopBackOff", f"back-off {pause:g}s restarting container")
            )
            await self._wait(pause)

    def stop(self, grace: float) -> None:
        """No more starts, and what runs is ended within the grace; `run` returns then."""
        self._grace = grace
        self._stopping.set()

    def kill(self, reason: str = "") -> None:
        """End what runs at once, as the kernel might; the policy decides what follows."""
        if self._start is not None:
            self._killed_for = reason
            self._start.instance.kill()

    def freeze(self, *, frozen: bool) -> None:
        """Stop what runs by a signal, or let it go on."""
        if self._start is not None:
            self._start.instance.freeze(frozen=frozen)

    def log(self, *, previous: bool = False) -> Path:
        return self.logs / f"{self.view.restarts - previous}.log"

    def renew_identity(self) -> None:
        """The kubeconfig of a running container follows the token in its volume."""
        config = self.context.folder / "kubeconfig"
        if self._start is not None and config.exists():
            folder = self._start.launch.rewrite.mounts[MOUNT]
            self.context.host.machine.tokens.kubeconfig(config, folder)

    async def _image(self) -> ImageEntry | None:
        """The row of the image table; without one, the container waits until it is stopped."""
        reference = self.context.container["image"]
        image = images.find(self.context.host.machine.images, reference)
        problem = images.absent(reference) if image is None else image.missing
        if not problem:
            return image
        self._set_state(Waiting("ErrImagePull", problem))
        self._record_event("Failed", f"Failed to pull image: {problem}")
        await self._wait(AGAIN_SECONDS)
        self._set_state(Waiting("ImagePullBackOff", problem))
        await self._stopping.wait()
        return None

    async def _run_once(self, image: ImageEntry) -> int | None:
        """One start to its end, or None when it came to none."""
        prepared = await self._prepare(image)
        if prepared is None:
            return None
        restarts = self.view.restarts + bool(self.view.container_id)
        identity, since = f"world://{uuid.uuid4().hex}", clock.now()
        self.view = replace(self.view, container_id=identity, restarts=restarts)
        self.logs.mkdir(parents=True, exist_ok=True)
        self.context.termination_log.write_bytes(b"")
        with contextlib.ExitStack() as using:
            try:
                using.enter_context(self._on_devices())
                instance = await launch.start(prepared, image, self.context, self.log())
            except OSError as error:
                self.log().write_text(f"{error}\n")
                self._failures += 1
                self._end(128, "StartError", str(error), since)
                return 128
            self._set_state(Running(since))
            self._start = Start(
                pod=self.pod, context=self.context, launch=prepared, instance=instance
            )
            code = await self._run_instance(self._start)
        self._start = None
        ran = (clock.now() - since).total_seconds()
        self._failures = backoff.failures_after(self._failures, ran)
        self._end(code, self._killed_for or ("Error" if code else "Completed"), "", since)
        self._killed_for = ""
        return code

    @contextlib.contextmanager
    def _on_devices(self) -> Iterator[None]:
        """As long as it runs, it computes on what it holds."""
        host = self.context.host
        devices = host.devices.held_by(self.pod["metadata"]["uid"], self.context.name)
        process = host.hardware.begin(devices)
        try:
            yield
        finally:
            host.hardware.end(devices, process)

    async def _prepare(self, image: ImageEntry) -> Launch | None:
        """Everything for a start; waits for references that do not exist yet."""
        while not self._stopping.is_set():
            try:
                return await launch.prepare(self.context, image, self.pod)
            except NOT_YET as error:
                self._set_state(Waiting("CreateContainerConfigError", str(error)))
                self._record_event("Failed", f"Error: {error}")
            await self._wait(AGAIN_SECONDS)
        return None

    async def _run_instance(self, start: Start) -> int:
        """From the start to the end of one instance, with hooks and probes beside it."""
        start.record_event("Started", f"Started container {self.context.name}")
        async with asyncio.TaskGroup() as group:
            beside = group.create_task(start.run_hooks_and_probes(self._set_ready))
            await first(start.instance.ended(), self._stopping.wait())
            if self._stopping.is_set():
                beside.cancel()
                await start.end(self._grace)
            beside.cancel()
        return await start.instance.ended()

    def _restarts(self, code: int) -> bool:
        return self.policy == "Always" or (self.policy == "OnFailure" and code != 0)

    async def _wait(self, seconds: float) -> None:
        """Cut short by `stop`."""
        await first(asyncio.sleep(seconds), self._stopping.wait())

    def _record_event(self, reason: str, message: str) -> None:
        self.context.host.machine.events.record(self.pod, reason, message, warning=True)

    def _end(self, code: int, reason: str, message: str, since: datetime.datetime) -> None:
        ended = Terminated(
            code=code,
            reason=reason,
            message=message or self._last_words(code),
            started=since,
            finished=clock.now(),
            container_id=self.view.container_id,
        )
        self._set_state(ended)

    def _last_words(self, code: int) -> str:
        words = self.context.termination_log.read_bytes()[: logs.MESSAGE_BYTES]
        if words:
            return words.decode(errors="replace")
        policy = self.context.container.get("terminationMessagePolicy")
        return logs.last_words(self.log()) if code and policy == "FallbackToLogsOnError" else ""

    def _set_state(self, state: State) -> None:
        before = self.view.state
        last = before if isinstance(before, Terminated) else self.view.last
        self.view = replace(self.view, state=state, last=last, started=False, ready=False)
        self.changed()

    def _set_ready(self, ready: bool) -> None:
        self.view = replace(self.view, started=True, ready=ready)
        self.begun.set()
        self.changed()
