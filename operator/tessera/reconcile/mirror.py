"""Keeps the store true: a full list at the start, what watches tell, and full lists again.

A watch goes on exactly where the list or the last watch ended. Where that is forgotten, the kind is
listed again, since a watch that began anew would say nothing of what vanished meanwhile; and every
kind is listed again from time to time.
"""

import asyncio
import logging
from collections.abc import Callable

from tessera.ports import Cluster, ClusterError, ObjectList, ResourceExpiredError, WatchEvent
from tessera.reconcile.observe import Senses
from tessera.reconcile.store import Store
from tessera.resources.kinds import KINDS, POD_MONITORS, WATCHED, Kind

log = logging.getLogger("tessera")

RELIST_SECONDS = 600.0
POLL_SECONDS = 4.0
"""What cannot be watched is repaired within five seconds too."""
_RETRY_SECONDS = 2.0


class RewoundError(Exception):
    """The API server knows less than it told before: nothing that is remembered can be trusted."""


class Mirror:
    """The store's only writer besides the answers to our own writes."""

    def __init__(
        self, cluster: Cluster, store: Store, senses: Senses, wake: Callable[[], None]
    ) -> None:
        self._cluster = cluster
        self._store = store
        self._senses = senses
        self._wake = wake
        self._reached: dict[tuple[Kind, str | None], int] = {}

    async def seed(self) -> None:
        """List every kind once, however long the API server takes to answer."""
        for kind in KINDS:
            await self._surely_list(kind)

    async def keep(self) -> None:
        """Watch, list again what is only polled, and everything from time to time."""
        async with asyncio.TaskGroup() as group:
            for kind in WATCHED:
                for scope in self._cluster.scopes(kind):
                    group.create_task(self._follow(kind, scope))
            group.create_task(self._every(POLL_SECONDS, (POD_MONITORS,)))
            group.create_task(self._every(RELIST_SECONDS, KINDS))

    async def watch(self, kind: Kind, scope: str | None = None) -> None:
        """One watch, from where the last one stopped until its end."""
        async for change in self._cluster.watch(kind, self._reached[kind, scope], scope):
            self._reached[kind, scope] = change.version
            if self._take(kind, change):
                self._wake()

    async def _follow(self, kind: Kind, scope: str | None) -> None:
        broken = False
        while True:
            try:
                await self.watch(kind, scope)
                broken = False
            except ResourceExpiredError:
                self._reached[kind, scope] = 0
                await self._surely_list(kind)
                self._wake()
                await asyncio.sleep(_RETRY_SECONDS)
            except ClusterError as error:
                if not broken:
                    log.warning("will be watched again: %s", error)
                broken = True
                await asyncio.sleep(_RETRY_SECONDS)

    def _take(self, kind: Kind, change: WatchEvent) -> bool:
        if change.cluster_object is None:
            return False
        if change.deleted:
            return self._store.drop(kind, change.cluster_object.key, change.version)
        return self._store.put(kind, change.cluster_object)

    async def _every(self, seconds: float, kinds: tuple[Kind, ...]) -> None:
        while True:
            await asyncio.sleep(seconds)
            for kind in kinds:
                try:
                    changed = await self._list(kind)
                except ClusterError as error:
                    log.warning("%s could not be listed: %s", kind.plural, error)
                else:
                    if changed:
                        self._wake()

    async def _surely_list(self, kind: Kind) -> None:
        while True:
            try:
                await self._list(kind)
            except ClusterError as error:
                log.warning("waiting for the API server: %s", error)
                await asyncio.sleep(_RETRY_SECONDS)
            else:
                return

    async def _list(self, kind: Kind) -> bool:
        scopes = [(kind, scope) for scope in self._cluster.scopes(kind)]
        known = max(self._reached.get(scope, 0) for scope in scopes)
        found = await self._cluster.list(kind)
        if kind is POD_MONITORS:
            appeared = self._senses.monitored != (found is not None)
            self._senses.monitored = found is not None
            return self._store.replace(kind, found or ObjectList()) or appeared
        if found is None:
            raise ClusterError(f"the API server does not know {kind.plural}: install the CRDs")
        if found.version < known:
            raise RewoundError(
                f"{kind.plural} are at version {found.version} and were at {known} before: etcd "
                "was restored; the process ends and begins anew"
            )
        for scope in scopes:
            self._reached[scope] = max(found.version, self._reached.get(scope, 0))
        return self._store.replace(kind, found)
