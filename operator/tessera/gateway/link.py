"""The Unix socket between the supervisor and the workers of one gateway.

A frame is its length in four bytes and a MessagePack map. Who reads slowly gets the newest state
instead of all states, so that memory stays bounded on both sides.
"""

import asyncio
import contextlib
import gc
import itertools
import logging
from collections import deque
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Generic, TypeVar

import msgspec

from tessera.api.text import counted
from tessera.gateway.frames import (
    DirectoryUpdate,
    EngineLoads,
    KeysUpdate,
    OtherLoads,
    ToSupervisor,
    ToWorker,
    WorkerReport,
)

log = logging.getLogger("tessera")

# A directory of 10,000 services and 100,000 keys has about 40 MiB.
_MAX_FRAME_BYTES = 256 * 2**20
_MAX_WAITING_FRAMES = 10_000
_RETRY_SECONDS = 0.25
# Only the newest of each counts.
_STATES = (KeysUpdate, DirectoryUpdate, EngineLoads, OtherLoads, WorkerReport)

OutT = TypeVar("OutT", bound=ToWorker | ToSupervisor)
InT = TypeVar("InT", bound=ToWorker | ToSupervisor)


class LinkError(Exception):
    """The other side sent something that is no frame."""


class Channel(Generic[OutT, InT]):
    """Frames to and from one peer."""

    def __init__(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        outbox: "Outbox[OutT]",
        incoming: Any,
    ) -> None:
        self._reader = reader
        self._writer = writer
        self._outbox = outbox
        self._decoder = msgspec.msgpack.Decoder(incoming)

    async def run(self, handle: Callable[[InT], None]) -> None:
        """Exchange frames until the peer is gone; raises LinkError for one that is none."""
        sending = asyncio.create_task(self._send())
        try:
            while True:
                frame = await self._receive()
                try:
                    handle(frame)
                except Exception:
                    log.exception("link: a %s cannot be handled", type(frame).__name__)
        except (EOFError, OSError):
            return
        finally:
            sending.cancel()
            self._writer.close()
            with contextlib.suppress(OSError):
                await self._writer.wait_closed()

    async def _receive(self) -> InT:
        size = int.from_bytes(await self._reader.readexactly(4))
        if size > _MAX_FRAME_BYTES:
            raise LinkError(f"a frame of {counted(size, 'byte')}")
        body = await self._reader.readexactly(size)
        # The collector would look at all objects several times while a large directory grows, and
        # streams wait meanwhile.
        gc.disable()
        try:
            frame: InT = self._decoder.decode(body)
        except msgspec.DecodeError as error:
            raise LinkError(str(error)) from error
        finally:
            gc.enable()
        return frame

    async def _send(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                frame = await self._outbox.next()
                self._writer.write(len(frame).to_bytes(4) + frame)
                await self._writer.drain()


class Outbox(Generic[OutT]):
    """Frames that wait to be sent: of each state the newest, and all others in order."""

    def __init__(self) -> None:
        self._states: dict[type, bytes] = {}
        self._events: deque[bytes] = deque()
        self._filled = asyncio.Event()
        self.dropped = 0
        """Frames that were given up since the peer did not take them."""

    def put(self, frame: OutT) -> None:
        """Send a frame soon."""
        self.put_encoded(type(frame), encode(frame))

    def put_encoded(self, kind: type, frame: bytes) -> None:
        """Send an encoded frame soon; the oldest gives way where too many wait."""
        if kind in _STATES:
            self._states[kind] = frame
        else:
            if len(self._events) == _MAX_WAITING_FRAMES:
                self._events.popleft()
                self.dropped += 1
            self._events.append(frame)
        self._filled.set()

    async def next(self) -> bytes:
        """Wait for the next frame; states go first."""
        while not self._states and not self._events:
            self._filled.clear()
            await self._filled.wait()
        if self._states:
            return self._states.pop(next(iter(self._states)))
        return self._events.popleft()


def encode(frame: ToWorker | ToSupervisor) -> bytes:
    """Return the bytes of a frame, without its length."""
    return msgspec.msgpack.encode(frame)


class LinkServer:
    """The supervisor's side."""

    def __init__(
        self,
        handle: Callable[[int, ToSupervisor], None],
        greeting: Callable[[], Iterable[ToWorker]],
        left: Callable[[int], None],
    ) -> None:
        """Call `handle` for each frame of a worker and `left` when it is gone.

        Every new worker gets the frames of `greeting` first. Workers are numbered as they come.
        """
        self._handle = handle
        self._greeting = greeting
        self._left = left
        self._outboxes: dict[int, Outbox[ToWorker]] = {}
        self._transports: set[asyncio.WriteTransport] = set()
        self._numbers = itertools.count()

    async def serve(self, path: Path) -> None:
        """Listen until cancelled, on a path in a folder that only this user may enter."""
        server = await asyncio.start_unix_server(self._connected, path)
        try:
            await server.serve_forever()
        finally:
            server.close()
            for transport in self._transports:
                transport.abort()

    def send(self, worker: int, frame: ToWorker) -> None:
        """Send a frame to one worker, if it is still there."""
        if worker in self._outboxes:
            self._outboxes[worker].put(frame)

    def broadcast(self, frame: ToWorker) -> None:
        """Send a frame to all workers."""
        encoded = encode(frame)
        for outbox in self._outboxes.values():
            outbox.put_encoded(type(frame), encoded)

    @property
    def workers(self) -> tuple[int, ...]:
        """Return the workers that are connected."""
        return tuple(self._outboxes)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        worker = next(self._numbers)
        outbox = self._outboxes[worker] = Outbox[ToWorker]()
        self._transports.add(writer.transport)
        for frame in self._greeting():
            outbox.put(frame)
        channel = Channel[ToWorker, ToSupervisor](reader, writer, outbox, ToSupervisor)
        try:
            await channel.run(lambda frame: self._handle(worker, frame))
        except LinkError as error:
            log.error("link: worker %d: %s", worker, error)
        finally:
            del self._outboxes[worker]
            self._transports.discard(writer.transport)
            self._left(worker)


class WorkerLink:
    """A worker's side: it connects again whenever the supervisor was gone."""

    def __init__(
        self,
        path: Path,
        handle: Callable[[ToWorker], None],
        greeting: Callable[[], Iterable[ToSupervisor]] = tuple,
    ) -> None:
        """Call `handle` for each frame; every new supervisor gets those of `greeting` first."""
        self._path = path
        self._handle = handle
        self._greeting = greeting
        self._outbox: Outbox[ToSupervisor] | None = None

    def send(self, frame: ToSupervisor) -> None:
        """Send a frame soon; it is lost where the supervisor is away."""
        if self._outbox is not None:
            self._outbox.put(frame)

    async def run(self) -> None:
        """Exchange frames until cancelled."""
        while True:
            try:
                reader, writer = await asyncio.open_unix_connection(self._path)
            except OSError:
                await asyncio.sleep(_RETRY_SECONDS)
                continue
            outbox = self._outbox = Outbox[ToSupervisor]()
            for frame in self._greeting():
                outbox.put(frame)
            try:
                channel = Channel[ToSupervisor, ToWorker](reader, writer, outbox, ToWorker)
                await channel.run(self._handle)
            except LinkError as error:
                log.error("link: supervisor: %s", error)
            finally:
                self._outbox = None
            await asyncio.sleep(_RETRY_SECONDS)
