"""Keeps the store true: a full list at the start, events, and full lists again where they may lie.

A watch that begins anew lists what exists, and says nothing of what vanished meanwhile. So a
listed event that names a known object makes its kind be listed again by ourselves, and every kind
is listed again from time to time.
"""

import asyncio
import logging
from collections.abc import Callable

from tessera.ports import Cluster, ClusterError, Listing, Seen
from tessera.reconcile.observe import Senses
from tessera.reconcile.store import Store
from tessera.resources.kinds import KINDS, POD_MONITORS, Kind

log = logging.getLogger("tessera")

RELIST_SECONDS = 600.0
POLL_SECONDS = 2.0
_RETRY_SECONDS = 2.0


class Mirror:
    """The store's only writer besides the answers to our own writes."""

    def __init__(
        self, cluster: Cluster, store: Store, senses: Senses, wake: Callable[[], None]
    ) -> None:
        self._cluster = cluster
        self._store = store
        self._senses = senses
        self._wake = wake
        self._doubtful: set[Kind] = set()
        self._doubt = asyncio.Event()

    async def seed(self) -> None:
        """List every kind once, however long the API server takes to answer."""
        for kind in KINDS:
            while True:
                try:
                    await self._list(kind)
                    break
                except ClusterError as error:
                    log.warning("waiting for the API server: %s", error)
                    await asyncio.sleep(_RETRY_SECONDS)

    def take(self, kind: Kind, event: str | None, seen: Seen) -> None:
        """One watch event; None as its type means that a watch began by listing."""
        if event == "DELETED":
            changed = self._store.drop(kind, seen.key, seen.version)
        else:
            if event is None and seen.key in self._store.all(kind):
                self._doubtful.add(kind)
                self._doubt.set()
            changed = self._store.put(kind, seen)
        if changed:
            self._wake()

    async def keep(self) -> None:
        """List again what is doubtful, what is only polled, and everything from time to time."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._settle_doubts())
            group.create_task(self._every(POLL_SECONDS, (POD_MONITORS,)))
            group.create_task(self._every(RELIST_SECONDS, KINDS))

    async def settle(self) -> tuple[str, ...]:
        """List again every kind that a new watch made doubtful; which they were."""
        doubtful, self._doubtful = self._doubtful, set()
        for kind in doubtful:
            await self._refresh(kind)
        return tuple(sorted(kind.plural for kind in doubtful))

    async def _settle_doubts(self) -> None:
        while True:
            await self._doubt.wait()
            await asyncio.sleep(_RETRY_SECONDS)  # the events of one listing come together
            self._doubt.clear()
            await self.settle()

    async def _every(self, seconds: float, kinds: tuple[Kind, ...]) -> None:
        while True:
            await asyncio.sleep(seconds)
            for kind in kinds:
                await self._refresh(kind)

    async def _refresh(self, kind: Kind) -> None:
        try:
            changed = await self._list(kind)
        except ClusterError as error:
            log.warning("%s could not be listed: %s", kind.plural, error)
        else:
            if changed:
                self._wake()

    async def _list(self, kind: Kind) -> bool:
        found = await self._cluster.list(kind)
        if kind is POD_MONITORS:
            appeared = self._senses.monitored != (found is not None)
            self._senses.monitored = found is not None
            return self._store.replace(kind, found or Listing()) or appeared
        if found is None:
            raise ClusterError(f"the API server does not know {kind.plural}: install the CRDs")
        return self._store.replace(kind, found)
