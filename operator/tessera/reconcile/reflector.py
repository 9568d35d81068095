"""Reflector: keeps the store up to date by lists and watches.

A watch resumes exactly where the list or the last watch ended. When that version has expired, or
the connection was lost, the kind is listed again: a new watch would not report what was deleted
meanwhile, nor that etcd was restored from an older snapshot. Every kind is also listed again from
time to time.
"""

import asyncio
import logging
from collections.abc import Callable, Sequence

from tessera.api.api_resource import ApiResource
from tessera.ports import Cluster, ClusterError, ObjectList, ResourceExpiredError, WatchEvent
from tessera.reconcile.observe import Observations
from tessera.reconcile.store import Store
from tessera.resources.api_resources import KINDS, POD_MONITORS

log = logging.getLogger("tessera")

RELIST_SECONDS = 600.0
# Kinds that cannot be watched are repaired within five seconds too.
POLL_SECONDS = 4.0
_RETRY_SECONDS = 2.0


class VersionRollbackError(Exception):
    """The API server has an older state than before, so nothing in memory can be trusted."""


class Reflector:
    """The only writer of the store, besides the responses to our own writes."""

    def __init__(
        self,
        cluster: Cluster,
        store: Store,
        observations: Observations,
        wake: Callable[[ApiResource], None],
        kinds: Sequence[ApiResource] = KINDS,
    ) -> None:
        """Call `wake` with the kind after each change of an object of these kinds."""
        self._kinds = kinds
        self._cluster = cluster
        self._store = store
        self._observations = observations
        self._wake = wake
        self._versions: dict[tuple[ApiResource, str | None], int] = {}

    async def list_all(self) -> None:
        """List every kind once, and retry until the API server responds."""
        for kind in self._kinds:
            await self._list_with_retry(kind)

    async def run(self) -> None:
        """Watch all kinds, poll those that cannot be watched, and list everything periodically."""
        async with asyncio.TaskGroup() as group:
            for kind in self._kinds:
                for scope in self._cluster.scopes(kind) if kind.watched else ():
                    group.create_task(self._watch_forever(kind, scope))
            polled = [kind for kind in self._kinds if not kind.watched]
            group.create_task(self._relist_every(POLL_SECONDS, polled))
            group.create_task(self._relist_every(RELIST_SECONDS, self._kinds))

    async def watch(self, kind: ApiResource, scope: str | None = None) -> None:
        """Watch a kind from where the last watch stopped, until the stream ends."""
        async for change in self._cluster.watch(kind, self._versions[kind, scope], scope):
            self._versions[kind, scope] = change.version
            if self._store_change(kind, change):
                self._wake(kind)

    async def _watch_forever(self, kind: ApiResource, scope: str | None) -> None:
        interrupted = failing = False
        while True:
            try:
                if interrupted and await self._list(kind):
                    self._wake(kind)
                interrupted = False
                await self.watch(kind, scope)
                failing = False
            except ClusterError as error:
                if not failing and not isinstance(error, ResourceExpiredError):
                    log.warning("watch failed, retrying: %s", error)
                    failing = True
                interrupted = True
                await asyncio.sleep(_RETRY_SECONDS)
            except VersionRollbackError:
                raise
            except Exception:
                # It costs what this watch brings until the next one.
                log.exception("the watch of %s failed, retrying", kind.plural)
                interrupted = True
                await asyncio.sleep(_RETRY_SECONDS)

    def _store_change(self, kind: ApiResource, change: WatchEvent) -> bool:
        if change.cluster_object is None:
            return False
        if change.deleted:
            return self._store.drop(kind, change.cluster_object.key, change.version)
        return self._store.put(kind, change.cluster_object)

    async def _relist_every(self, seconds: float, kinds: Sequence[ApiResource]) -> None:
        while True:
            await asyncio.sleep(seconds)
            for kind in kinds:
                try:
                    changed = await self._list(kind)
                except ClusterError as error:
                    log.warning("list %s failed, retrying: %s", kind.plural, error)
                except VersionRollbackError:
                    raise
                except Exception:
                    log.exception("the list of %s failed, retrying", kind.plural)
                else:
                    if changed:
                        self._wake(kind)

    async def _list_with_retry(self, kind: ApiResource) -> None:
        while True:
            try:
                await self._list(kind)
            except ClusterError as error:
                log.warning("list failed, retrying: %s", error)
                await asyncio.sleep(_RETRY_SECONDS)
            else:
                return

    async def _list(self, kind: ApiResource) -> bool:
        scopes = [(kind, scope) for scope in self._cluster.scopes(kind)]
        known = max(self._versions.get(scope, 0) for scope in scopes)
        listing = await self._cluster.list(kind)
        if kind is POD_MONITORS:
            appeared = self._observations.monitored != (listing is not None)
            self._observations.monitored = listing is not None
            return self._store.replace(kind, listing or ObjectList()) or appeared
        if listing is None:
            raise ClusterError(f"the API server does not know {kind.plural}: install the CRDs")
        if listing.version < known:
            raise VersionRollbackError(
                f"{kind.plural} went back from version {known} to {listing.version}: etcd was "
                "restored; starting over"
            )
        for scope in scopes:
            self._versions[scope] = max(listing.version, self._versions.get(scope, 0))
        return self._store.replace(kind, listing)
