"""Leader election by a Lease.

A lease expires when it has not changed for `LEASE_DURATION` on the local monotonic clock, which has
to go on while the machine is suspended. Times of day are never compared, so clock skew does no
harm. A leader that could not renew for `RENEW_DEADLINE` stops leading `LEASE_DURATION -
RENEW_DEADLINE` before another process may acquire the lease.
"""

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

from tessera.adapters.kube.client import KubeCluster
from tessera.ports import Clock, ClusterError

log = logging.getLogger("tessera")

LEASE_DURATION = 15.0
RENEW_DEADLINE = 10.0
RETRY_PERIOD = 2.0
# Attempts to take a lease that its leader renews at the same time.
_MAX_SEIZURES = 10
# Seconds between attempts of a leader that failed to renew.
_RENEW_RETRY_PERIOD = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class ObservedLease:
    """A version of the lease, and since when (monotonic seconds) it has not changed."""

    version: str
    observed_at: float


def can_acquire(spec: dict[str, Any], identity: str, observed: ObservedLease, now: float) -> bool:
    """Return whether `identity` may acquire a lease that has not changed since `observed`."""
    holder = spec.get("holderIdentity")
    if not holder or holder == identity:
        return True
    return now - observed.observed_at > float(spec.get("leaseDurationSeconds", LEASE_DURATION))


class LeaderElector:
    """Takes part in the leader election until canceled."""

    def __init__(
        self,
        cluster: KubeCluster,
        *,
        namespace: str,
        name: str,
        identity: str,
        clock: Clock,
        monotonic: Callable[[], float],
    ) -> None:
        self._cluster = cluster
        self._path = f"/apis/coordination.k8s.io/v1/namespaces/{namespace}/leases"
        self._name = name
        self._namespace = namespace
        self._identity = identity
        self._clock = clock
        self._monotonic = monotonic
        self._observed: ObservedLease | None = None
        self._renewed: dict[str, Any] | None = None
        """The lease as the last renewal left it; None after one that failed."""
        self._valid_until = float("-inf")
        self.elected = asyncio.Event()
        """Set when this process becomes the leader for the first time."""

    def is_leader(self) -> bool:
        """Return whether this process may write now."""
        return self._monotonic() < self._valid_until

    async def run(self) -> None:
        """Acquire and renew the lease; return when leadership was acquired and lost."""
        while True:
            renewed = await self.try_acquire_or_renew()
            if not renewed and self.elected.is_set() and not self.is_leader():
                return
            await asyncio.sleep(
                _RENEW_RETRY_PERIOD if self.is_leader() and not renewed else RETRY_PERIOD
            )

    async def try_acquire_or_renew(self) -> bool:
        """Try once to acquire or renew the lease; an API server that hangs counts as a failure.

        A leader waits for at most half of its remaining time, so that one request without a
        response does not cost the leadership.
        """
        started = self._monotonic()
        remaining = self._valid_until - started if self.is_leader() else RENEW_DEADLINE
        try:
            async with asyncio.timeout(remaining / 2):
                renewed = await self._acquire_or_renew()
        except (ClusterError, TimeoutError):
            return False
        except Exception:
            log.exception("the lease cannot be read or renewed")
            return False
        if renewed:
            self._valid_until = started + RENEW_DEADLINE
            self.elected.set()
        return renewed

    async def release(self) -> None:
        """Release the lease, so that another process can lead at once."""
        if not self.is_leader():
            return
        self._valid_until = float("-inf")
        status, lease = await self._cluster.request("GET", f"{self._path}/{self._name}")
        if status == HTTPStatus.OK and lease["spec"].get("holderIdentity") == self._identity:
            await self._replace(lease, holder="")

    async def seize(self, seconds: int) -> None:
        """Take the lease from its holder, so that no other process leads for so many seconds.

        A former leader still leads for up to `RENEW_DEADLINE`.
        """
        for _ in range(_MAX_SEIZURES):
            status, lease = await self._cluster.request("GET", f"{self._path}/{self._name}")
            if status == HTTPStatus.NOT_FOUND:
                return
            if status == HTTPStatus.OK and await self._replace(lease, self._identity, seconds):
                return
        raise ClusterError(f"Lease/{self._name} in {self._namespace} cannot be taken: {status}")

    async def _acquire_or_renew(self) -> bool:
        # As in client-go: only the leader writes its lease, and another writer is noticed.
        last, self._renewed = self._renewed, None
        if last is not None and await self._replace(last, holder=self._identity):
            return True
        status, lease = await self._cluster.request("GET", f"{self._path}/{self._name}")
        if status == HTTPStatus.NOT_FOUND:
            status, _ = await self._cluster.request("POST", self._path, body=self._first_lease())
            return status == HTTPStatus.CREATED
        if status != HTTPStatus.OK:
            return False
        version, now = lease["metadata"]["resourceVersion"], self._monotonic()
        if self._observed is None or self._observed.version != version:
            self._observed = ObservedLease(version=version, observed_at=now)
        if not can_acquire(lease.get("spec", {}), self._identity, self._observed, now):
            return False
        return await self._replace(lease, holder=self._identity)

    async def _replace(
        self, lease: dict[str, Any], holder: str, seconds: int = int(LEASE_DURATION)
    ) -> bool:
        """Replace exactly the lease that was read.

        Of two concurrent writers the second one fails.
        """
        previous = lease.get("spec", {})
        spec = self._lease_spec(holder) | {
            "leaseDurationSeconds": seconds,
            "leaseTransitions": previous.get("leaseTransitions", 0),
        }
        if previous.get("holderIdentity") == holder:
            spec["acquireTime"] = previous.get("acquireTime", spec["acquireTime"])
        else:
            spec["leaseTransitions"] += 1
        path = f"{self._path}/{self._name}"
        status, renewed = await self._cluster.request("PUT", path, body=lease | {"spec": spec})
        if status != HTTPStatus.OK:
            return False
        self._renewed = renewed if holder == self._identity else None
        return True

    def _first_lease(self) -> dict[str, Any]:
        return {
            "apiVersion": "coordination.k8s.io/v1",
            "kind": "Lease",
            "metadata": {"name": self._name, "namespace": self._namespace},
            "spec": self._lease_spec(self._identity) | {"leaseTransitions": 0},
        }

    def _lease_spec(self, holder: str) -> dict[str, Any]:
        now = self._clock().strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        return {
            "holderIdentity": holder,
            "leaseDurationSeconds": int(LEASE_DURATION),
            "acquireTime": now,
            "renewTime": now,
        }
