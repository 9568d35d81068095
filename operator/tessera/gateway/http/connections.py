"""The connections of clients: where places or bytes are short, those that wait end.

A connection counts from the moment it is accepted, before its TLS handshake. In the order of
`ConnectionStage` they give way: a handshake or a client that has said nothing for a second, then
whatever has no accepted key, then those with one that send or read too slowly. A body with an
accepted key that keeps its pace, and a request that is complete, give way to no new connection.
"""

import heapq
import resource
import time
from collections import Counter, OrderedDict
from collections.abc import Callable
from enum import IntEnum, StrEnum
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_network
from typing import Protocol

# Each takes 7 to 15 KB, and another descriptor while an engine answers it.
MAX_CONNECTIONS = 10_000
MAX_DESCRIPTORS = 65_536
# Of all connections, beside what tenants share: handshakes, heads of requests, requests that wait
# behind another of their connection, and bodies whose sender is not known yet.
MAX_CONNECTION_BYTES = 64 * 2**20
# As much of one is part of what any connection takes, and not counted there.
SMALL_BYTES = 4 * 2**10
# A new connection, and a client after its last response, are silent for so long without harm.
PATIENCE_SECONDS = 1.0
# Addresses of IPv4 as a socket for both shows them, and as NAT64 does.
_EMBEDDED_IPV4 = (IPv6Network("::ffff:0:0/96"), IPv6Network("64:ff9b::/96"))
# For the API server, the operator, the database and pages of engines.
_OWN_DESCRIPTORS = 256
# Beside one for each address, before all that is no longer true is dropped.
_STALE_ENTRIES = 64


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


# Of those that wait for no client, and give way last.
_RUNNING = len(ConnectionStage)


class OpenConnection(Protocol):
    """A connection that can be ended."""

    def abort(self) -> None:
        """Close the connection, and drop what waits for the client."""
        ...


class _Queue:
    """Connections by address, those that came first in front, and which address has most of them.

    Each has a weight: 1, or its bytes. All takes a time that does not grow with their number.
    """

    def __init__(self) -> None:
        self._by_address: dict[str, OrderedDict[OpenConnection, int]] = {}
        self._weights: dict[str, int] = {}
        # Also what was true before: the weight of an address and its number there, the most first.
        self._heaviest: list[tuple[int, int, str]] = []
        self._numbers: dict[str, int] = {}
        self._next_number = 0

    def add(self, connection: OpenConnection, address: str, weight: int = 1) -> None:
        connections = self._by_address.setdefault(address, OrderedDict())
        self._weigh(address, weight - connections.get(connection, 0))
        connections[connection] = weight

    def remove(self, connection: OpenConnection, address: str) -> None:
        connections = self._by_address[address]
        self._weigh(address, -connections.pop(connection))
        if not connections:
            del self._by_address[address], self._weights[address], self._numbers[address]

    def first(self) -> OpenConnection | None:
        """Return the one that is there longest, of the address with most; None without any.

        All clients behind a proxy have its address.
        """
        while self._heaviest:
            _, number, address = self._heaviest[0]
            if self._numbers.get(address) == number:
                return next(iter(self._by_address[address]))
            heapq.heappop(self._heaviest)
        return None

    def _weigh(self, address: str, more: int) -> None:
        self._weights[address] = self._weights.get(address, 0) + more
        self._numbers[address] = self._next_number = self._next_number + 1
        entry = (-self._weights[address], self._next_number, address)
        if len(self._heaviest) > 2 * len(self._weights) + _STALE_ENTRIES:
            self._heaviest = [
                (-weight, self._numbers[each], each) for each, weight in self._weights.items()
            ]
            heapq.heapify(self._heaviest)
        else:
            heapq.heappush(self._heaviest, entry)


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
        # By stage, the first that give way in front.
        self._waiters = [_Queue() for _ in ConnectionStage]
        # By stage, and those that run: the same for those that hold bytes.
        self._holders = [_Queue() for _ in range(_RUNNING + 1)]
        # Of those in the first two stages, which wait as if they were without a key, since when.
        self._young: OrderedDict[OpenConnection, float] = OrderedDict()
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
        if connection not in self._addresses or self._stages.get(connection) is stage:
            return
        self._forget_upload(connection)
        self._leave_queues(connection)
        self._stages[connection] = stage
        self._young.pop(connection, None)
        if stage <= ConnectionStage.SILENT:
            self._young[connection] = self._clock()
        self._join_queues(connection)

    def begin(self, connection: OpenConnection) -> None:
        """Note that a connection waits no more for its client."""
        if connection in self._stages:
            self._leave_queues(connection)
            del self._stages[connection]
            self._young.pop(connection, None)
            self._join_queues(connection)
        self._forget_upload(connection)

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
        address = self._addresses.get(connection)
        if address is None or size == self._held.get(connection, 0):
            return
        holders = self._holders[self._rank(connection)]
        self.held_bytes += size - self._held.get(connection, 0)
        if size:
            self._held[connection] = size
            holders.add(connection, address, size)
        else:
            del self._held[connection]
            holders.remove(connection, address)
        if size and self.held_bytes > self._byte_limit:
            self._free_bytes()

    def evict(self, connection: OpenConnection) -> None:
        """End a connection, in whose place another one goes on."""
        self._end(connection, ConnectionEnd.EVICTED)

    def remove(self, connection: OpenConnection) -> None:
        """Forget a connection that ended."""
        self.hold(connection, 0)
        self.begin(connection)
        address = self._addresses.pop(connection, None)
        if address is not None:
            self._by_address[address] -= 1
            if not self._by_address[address]:
                del self._by_address[address]

    def _forget_upload(self, connection: OpenConnection) -> None:
        tenant = self._uploads.pop(connection, None)
        if tenant is not None:
            self._uploads_by_tenant[tenant] -= 1
            if not self._uploads_by_tenant[tenant]:
                del self._uploads_by_tenant[tenant]

    def _rank(self, connection: OpenConnection) -> int:
        if connection in self._young:
            return ConnectionStage.WITHOUT_KEY
        return self._stages.get(connection, _RUNNING)

    def _leave_queues(self, connection: OpenConnection) -> None:
        rank, address = self._rank(connection), self._addresses[connection]
        if rank < _RUNNING:
            self._waiters[rank].remove(connection, address)
        if connection in self._held:
            self._holders[rank].remove(connection, address)

    def _join_queues(self, connection: OpenConnection) -> None:
        rank, address = self._rank(connection), self._addresses[connection]
        if rank < _RUNNING:
            self._waiters[rank].add(connection, address)
        if connection in self._held:
            self._holders[rank].add(connection, address, self._held[connection])

    def _make_room(self, address: str) -> bool:
        """End a connection for a new one of this address; False if none gives way to it."""
        self._age()
        for stage, waiters in enumerate(self._waiters):
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
            self._leave_queues(connection)
            del self._young[connection]
            self._join_queues(connection)

    def _free_bytes(self) -> None:
        """End connections until the bytes are within their limit, and no more.

        In each stage that of the address that holds most in it comes first.
        """
        self._age()
        for holders in self._holders:
            while self.held_bytes > self._byte_limit and (first := holders.first()) is not None:
                self.evict(first)

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


def raise_descriptor_limit() -> int:
    """Raise the limit of descriptors as far as is allowed; return the clients that it is for."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = MAX_DESCRIPTORS if hard == resource.RLIM_INFINITY else min(hard, MAX_DESCRIPTORS)
    if soft != resource.RLIM_INFINITY and soft < most:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
    return min(MAX_CONNECTIONS, (most - _OWN_DESCRIPTORS) // 2)
