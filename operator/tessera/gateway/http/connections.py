"""The connections of clients: of too many, one that waits for its client makes room."""

import resource
from collections import Counter
from collections.abc import Callable
from enum import StrEnum
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_network
from typing import Protocol

from uvicorn.server import ServerState

# Each takes 7 to 15 KB, and another descriptor while an engine answers it.
MAX_CONNECTIONS = 10_000
MAX_DESCRIPTORS = 65_536
# Addresses of IPv4 as a socket for both shows them, and as NAT64 does.
_EMBEDDED_IPV4 = (IPv6Network("::ffff:0:0/96"), IPv6Network("64:ff9b::/96"))
# For the API server, the operator, the database and pages of engines.
_OWN_DESCRIPTORS = 256


class ConnectionEnd(StrEnum):
    """How a connection ended that was too many."""

    EVICTED = "Evicted"
    """It was the one that waited longest."""
    REFUSED = "Refused"
    """It was new, and none waited of an address with as many."""


class OpenConnection(Protocol):
    """A connection that can be ended."""

    def abort(self) -> None:
        """Close the connection, and drop what waits for the client."""
        ...


class Connections:
    """All connections of clients, and which of them wait: for a whole request, or to be read."""

    def __init__(
        self,
        limit: int = MAX_CONNECTIONS,
        note_end: Callable[[ConnectionEnd], None] = lambda _: None,
    ) -> None:
        self._limit = limit
        self._note_end = note_end
        self._addresses: dict[OpenConnection, str] = {}
        self._by_address: Counter[str] = Counter()
        # By address, those that wait longest first.
        self._waiting: dict[str, dict[OpenConnection, None]] = {}

    def __len__(self) -> int:
        return len(self._addresses)

    def add(self, connection: OpenConnection, address: str) -> None:
        """Take a new connection, which waits for its first request."""
        address = address_owner(address)
        self._addresses[connection] = address
        self._by_address[address] += 1
        self.wait(connection)
        if len(self._addresses) > self._limit:
            self._make_room(connection, address)

    def wait(self, connection: OpenConnection) -> None:
        """Note that a connection waits for its client, from now on unless it did before."""
        address = self._addresses.get(connection)
        if address is not None:
            self._waiting.setdefault(address, {})[connection] = None

    def begin(self, connection: OpenConnection) -> None:
        """Note that a connection waits no more for its client."""
        address = self._addresses.get(connection)
        waiting = self._waiting.get(address) if address is not None else None
        if address is not None and waiting is not None:
            waiting.pop(connection, None)
            if not waiting:
                del self._waiting[address]

    def remove(self, connection: OpenConnection) -> None:
        """Forget a connection that ended."""
        self.begin(connection)
        address = self._addresses.pop(connection, None)
        if address is not None:
            self._by_address[address] -= 1
            if not self._by_address[address]:
                del self._by_address[address]

    def _make_room(self, new: OpenConnection, address: str) -> None:
        """End the one that waits longest, of the address that has most connections.

        All clients behind a proxy have its address.
        """
        self.begin(new)
        most = max(self._waiting, key=self._by_address.__getitem__, default=None)
        if most is None or self._by_address[most] < self._by_address[address]:
            self._end(new, ConnectionEnd.REFUSED)
        else:
            self._end(next(iter(self._waiting[most])), ConnectionEnd.EVICTED)
            self.wait(new)

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
