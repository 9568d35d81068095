"""Polls the engines of services that have traffic."""

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from http import HTTPStatus

from tessera.api.ref import Ref
from tessera.domain.gateway.directory import EngineReplica, ModelChanges
from tessera.domain.picking.engine_page import MAX_PAGE_BYTES, engine_load
from tessera.domain.picking.replica_state import EngineLoad
from tessera.gateway.http.engine_connection import (
    ConnectionLostError,
    EngineSession,
    InvalidHttpError,
)

POLL_SECONDS = 0.25
# A service without requests for so long is not polled.
_ACTIVE_SECONDS = 60.0
# Engines of one namespace that hang cannot keep those of others from being polled.
_MAX_POLLS, _MAX_POLLS_OF_NAMESPACE = 256, 32
PAGE_SECONDS = 2.0


@dataclass(slots=True)
class _Target:
    replica: EngineReplica
    service: Ref
    polled_at: float = float("-inf")
    polling: bool = False


class EnginePoller:
    """Keeps the load of replicas that have traffic."""

    def __init__(
        self,
        read: Callable[[str], Awaitable[bytes | None]],
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """Take `read`, which returns the metrics page of an address, or None."""
        self._read = read
        self._monotonic = monotonic
        self._targets: dict[str, _Target] = {}
        self._active_at: dict[Ref, float] = {}
        self._loads: dict[str, EngineLoad] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def update(self, changes: ModelChanges) -> None:
        """Poll the replicas of changed models as they are now."""
        former = {
            replica.uid: self._targets.pop(replica.uid)
            for model in changes.old
            for replica in model.replicas
            if replica.uid in self._targets
        }
        for model in changes.new:
            for replica in model.replicas:
                if replica.ready_since is not None:
                    target = former.get(replica.uid) or _Target(replica, model.service)
                    # A version that was tried is the service's own once it passed.
                    target.replica, target.service = replica, model.service
                    self._targets[replica.uid] = target

    def saw_traffic(self, services: Iterable[Ref]) -> None:
        """Note that these services have requests now."""
        now = self._monotonic()
        self._active_at |= dict.fromkeys(services, now)
        self._active_at = {
            service: at for service, at in self._active_at.items() if now - at <= _ACTIVE_SECONDS
        }

    def poll(self) -> None:
        """Begin to read the pages that are due, those first that were read longest ago."""
        now = self._monotonic()
        polls = Counter(
            target.service.namespace for target in self._targets.values() if target.polling
        )
        due = [
            target
            for target in self._targets.values()
            if not target.polling
            and now - self._active_at.get(target.service, float("-inf")) <= _ACTIVE_SECONDS
        ]
        for target in sorted(due, key=lambda target: target.polled_at):
            namespace = target.service.namespace
            if polls.total() >= _MAX_POLLS:
                break
            if polls[namespace] < _MAX_POLLS_OF_NAMESPACE:
                polls[namespace] += 1
                target.polling, target.polled_at = True, now
                task = asyncio.create_task(self._poll(target))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)

    def take(self) -> dict[str, EngineLoad]:
        """Return what was read since the last time, by the UIDs of pods."""
        loads, self._loads = self._loads, {}
        return loads

    async def _poll(self, target: _Target) -> None:
        replica = target.replica
        try:
            page = await self._read(replica.address)
        finally:
            target.polling = False
        load = engine_load(page, self._monotonic()) if page is not None else None
        if load is not None:
            self._loads[replica.uid] = load


async def read_page(
    engines: EngineSession, address: str, seconds: float = PAGE_SECONDS
) -> bytes | None:
    """Return an engine's metrics page, or the beginning of a long one; None without one in time."""
    page = bytearray()
    try:
        async with asyncio.timeout(seconds):
            connection = await engines.connect(address)
            try:
                await connection.send(f"GET /metrics HTTP/1.1\r\nHost: {address}\r\n\r\n".encode())
                if connection.status != HTTPStatus.OK:
                    return None

                def collect(part: bytes) -> bool:
                    page.extend(part)
                    # As sent: a page may come in chunks of one byte, which cost more than the page.
                    return connection.received_bytes < MAX_PAGE_BYTES

                await connection.forward(collect)
            finally:
                engines.release(connection, address)
    except (OSError, ConnectionLostError, InvalidHttpError):
        return None
    return bytes(page)
