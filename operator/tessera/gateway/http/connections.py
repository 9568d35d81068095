"""The connections of clients: where places or bytes are short, those that wait end.

A connection counts from the moment it is accepted, before its TLS handshake. In the order of
`ConnectionStage` they give way: a handshake or a client that has said nothing for a second, then
whatever has no accepted key, then those with one that send or read too slowly. A body with an
accepted key that keeps its pace, and a request that is complete, give way to no new connection.
"""

import resource
import time
from collections import Counter
from collections.abc import Callable
from enum import IntEnum, StrEnum
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_network
from typing import Protocol

from uvicorn.server import ServerState

# Each takes 7 to 15 KB, and another descriptor while an engine answers it.
MAX_CONNECTIONS = 10_000
MAX_DESCRIPTORS = 65_536
# Of all connections, beside what tenants share: handshakes, heads of requests, requests that wait
# behind another of their connection, and bodies whose sender is not known yet.
MAX_CONNECTION_BYTES = 64 * 2**20
# A new connection, and a client after its last response, are silent for so long without harm.
PATIENCE_SECONDS = 1.0
# Addresses of IPv4 as a socket for both shows them, and as NAT64 does.
_EMBEDDED_IPV4 = (IPv6Network("::ffff:0:0/96"), IPv6Network("64:ff9b::/96"))
# For the API server, the operator, the database and pages of engines.
_OWN_DESCRIPTORS = 256


class ConnectionEnd(StrEnum):
    """How a connection ended that was too many."""

    EVICTED = "Evicted"
    """It gave way to others while it waited for its client."""
    REFUSED = "Refused"
    """It was new, and none waited of an address with as many."""


class ConnectionStage(IntEnum):
    """For what a connection waits; the first give way first."""

    HANDSHAKE = 0
    """For the end of its TLS handshake."""
    SILENT = 1
    """For the first byte of a request."""
    WITHOUT_KEY = 2
    """For a key that is accepted: the request may be complete, or not."""
    WITH_KEY = 3
    """For a body that does not keep its pace, or for its client to read; its key is accepted."""


class OpenConnection(Protocol):
    """A connection that can be ended."""

    def abort(self) -> None:
        """Close the connection, and drop what waits for the client."""
        ...


class _Waiters:
    """Connections that wait in one stage, by address; those that wait longest first."""

    def __init__(self) -> None:
        self._by_address: dict[str, dict[OpenConnection, None]] = {}
        self._by_count: dict[int, dict[str, None]] = {}
        self._most = 0

    def add(self, connection: OpenConnection, address: str) -> None:
        connections = self._by_address.setdefault(address, {})
        connections[connection] = None
        self._recount(address, len(connections) - 1, len(connections))

    def remove(self, connection: OpenConnection, address: str) -> None:
        connections = self._by_address[address]
        del connections[connection]
        self._recount(address, len(connections) + 1, len(connections))
        if not connections:
            del self._by_address[address]

    def first(self) -> OpenConnection | None:
        """Return the one that waits longest, of the address of which most wait; None if none do.

        All clients behind a proxy have its address.
        """
        if not self._most:
            return None
        address = next(iter(self._by_count[self._most]))
        return next(iter(self._by_address[address]))

    def _recount(self, address: str, before: int, count: int) -> None:
        if count:
            self._by_count.setdefault(count, {})[address] = None
        if before:
            del self._by_count[before][address]
            if not self._by_count[before]:
                del self._by_count[before]
        if count > self._most or (before == self._most and before not in self._by_count):
            self._most = count


class Connections:
    """All connections of clients: their places, their bytes, and for what each of them waits."""

    def __init__(
        self,
        limit: int = MAX_CONNECTIONS,
        note_end: Callable[[ConnectionEnd], None] = lambda _: None,
        *,
        byte_limit: int = MAX_CONNECTION_BYTES,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Take the number of places and bytes, and seconds that never step."""
        self._limit, self._byte_limit = limit, byte_limit
        self._note_end = note_end
        self._clock = clock
        self._addresses: dict[OpenConnection, str] = {}
        self._by_address: Counter[str] = Counter()
        self._stages: dict[OpenConnection, ConnectionStage] = {}
        self._waiters = {stage: _Waiters() for stage in ConnectionStage}
        # Of those in the first two stages, which wait as if they were without a key, since when.
        self._young: dict[OpenConnection, float] = {}
        # By connection, its tenant.
        self._uploads: dict[OpenConnection, str] = {}
        self._uploads_by_tenant: Counter[str] = Counter()
        self._held: dict[OpenConnection, int] = {}
        self.held_bytes = 0
        """Bytes that all connections hold, beside what their tenants do."""

    def __len__(self) -> int:
        return len(self._addresses)

    def add(
        self,
        connection: OpenConnection,
        host: str,
        stage: ConnectionStage = ConnectionStage.SILENT,
    ) -> str:
        """Take a new connection of a host; return the address that it counts for."""
        address = address_owner(host)
        self._addresses[connection] = address
        self._by_address[address] += 1
        if len(self._addresses) > self._limit and not self._make_room(address):
            self._end(connection, ConnectionEnd.REFUSED)
        else:
            self.wait(connection, stage)
        return address

    def wait(self, connection: OpenConnection, stage: ConnectionStage) -> None:
        """Note for what a connection waits, from now on unless it did before."""
        address = self._addresses.get(connection)
        if address is None or self._stages.get(connection) is stage:
            return
        self.begin(connection)
        self._stages[connection] = stage
        if stage <= ConnectionStage.SILENT:
            self._young[connection] = self._clock()
        self._waiters[self._rank(connection)].add(connection, address)

    def begin(self, connection: OpenConnection) -> None:
        """Note that a connection waits no more for its client."""
        if connection in self._stages:
            self._waiters[self._rank(connection)].remove(connection, self._addresses[connection])
            del self._stages[connection]
            self._young.pop(connection, None)
        tenant = self._uploads.pop(connection, None)
        if tenant is not None:
            self._uploads_by_tenant[tenant] -= 1
            if not self._uploads_by_tenant[tenant]:
                del self._uploads_by_tenant[tenant]

    def upload(self, connection: OpenConnection, tenant: str) -> None:
        """Note that a tenant sends a body that keeps its pace, which gives way to no connection.

        Those of one tenant do where it has more of them than places are left: half of all with one
        such tenant, two thirds with two.
        """
        if self._uploads.get(connection) == tenant:
            return
        if self._uploads_by_tenant[tenant] >= self._limit - len(self._uploads):
            self.wait(connection, ConnectionStage.WITH_KEY)
        elif connection in self._addresses:
            self.begin(connection)
            self._uploads[connection] = tenant
            self._uploads_by_tenant[tenant] += 1

    def hold(self, connection: OpenConnection, size: int) -> None:
        """Note how many bytes a connection holds; it may have to end for it."""
        if connection in self._addresses:
            self.held_bytes += size - self._held.pop(connection, 0)
            if size:
                self._held[connection] = size
            if self.held_bytes > self._byte_limit:
                self._free_bytes()

    def evict(self, connection: OpenConnection) -> None:
        """End a connection, in whose place another one goes on."""
        self._end(connection, ConnectionEnd.EVICTED)

    def remove(self, connection: OpenConnection) -> None:
        """Forget a connection that ended."""
        self.begin(connection)
        self.held_bytes -= self._held.pop(connection, 0)
        address = self._addresses.pop(connection, None)
        if address is not None:
            self._by_address[address] -= 1
            if not self._by_address[address]:
                del self._by_address[address]

    def _rank(self, connection: OpenConnection) -> ConnectionStage:
        if connection in self._young:
            return ConnectionStage.WITHOUT_KEY
        return self._stages[connection]

    def _make_room(self, address: str) -> bool:
        """End a connection for a new one of this address; False if none gives way to it."""
        self._age()
        for stage, waiters in self._waiters.items():
            first = waiters.first()
            if first is not None and (
                stage <= ConnectionStage.SILENT
                or self._by_address[self._addresses[first]] >= self._by_address[address]
            ):
                self.evict(first)
                return True
        return False

    def _age(self) -> None:
        """Put those behind others that have said nothing for too long."""
        latest = self._clock() - PATIENCE_SECONDS
        while self._young:
            connection, since = next(iter(self._young.items()))
            if since > latest:
                break
            address = self._addresses[connection]
            self._waiters[self._rank(connection)].remove(connection, address)
            del self._young[connection]
            self._waiters[self._rank(connection)].add(connection, address)

    def _free_bytes(self) -> None:
        """End connections until an eighth of all bytes is free, so that few looks are enough.

        In each stage those of the address that holds most come first.
        """
        self._age()
        by_address: Counter[str] = Counter()
        for connection, size in self._held.items():
            by_address[self._addresses[connection]] += size

        def order(connection: OpenConnection) -> tuple[int, int]:
            waits = connection in self._stages
            rank = self._rank(connection) if waits else len(ConnectionStage)
            return rank, -by_address[self._addresses[connection]]

        for connection in sorted(self._held, key=order):
            if self.held_bytes <= self._byte_limit * 7 // 8:
                break
            self.evict(connection)

    def _end(self, connection: OpenConnection, end: ConnectionEnd) -> None:
        self.remove(connection)
        connection.abort()
        self._note_end(end)


def address_owner(address: str) -> str:
    """Return what one host has for sure: an IPv4 address, or a /64 of IPv6."""
    if ":" not in address:
        return address
    host = IPv6Address(address.partition("%")[0])
    if any(host in network for network in _EMBEDDED_IPV4):
        return str(IPv4Address(host.packed[-4:]))
    return str(ip_network((host, 64), strict=False))


class GatewayServerState(ServerState):
    """What the connections of a server share."""

    def __init__(self, clients: Connections) -> None:
        super().__init__()
        self.clients = clients


def raise_descriptor_limit() -> int:
    """Raise the limit of descriptors as far as is allowed; return the clients that it is for."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = MAX_DESCRIPTORS if hard == resource.RLIM_INFINITY else min(hard, MAX_DESCRIPTORS)
    if soft != resource.RLIM_INFINITY and soft < most:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
    return min(MAX_CONNECTIONS, (most - _OWN_DESCRIPTORS) // 2)
