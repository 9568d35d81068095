"""Which addresses a provider may have: public ones, and those of ranges that are allowed."""

import socket
from collections.abc import Collection
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address

from aiohttp.connector import AddrInfoType

_NAT64 = IPv6Network("64:ff9b::/96")
# All that hosts may have anywhere; the rest stands for IPv4 addresses, or means something at one
# site only.
_UNICAST = IPv6Network("2000::/3")
# Clouds answer each machine there with its credentials: Azure at what looks public, Oracle within
# what no host has.
_METADATA = (IPv4Network("168.63.129.16/32"), IPv4Network("192.0.0.0/24"))


class AddressRefusedError(OSError):
    """An address is neither public nor allowed."""


class AddressRules:
    """Opens sockets to addresses that are public or allowed, and to no other one.

    The address of a socket is judged, so that none comes between a look-up and a connection.
    """

    def __init__(self, allowed_ranges: Collection[IPv4Network | IPv6Network]) -> None:
        self._allowed = allowed_ranges

    def allow(self, text: str) -> bool:
        """Return whether connections go to an address; it is judged by the one that it embeds."""
        address = _embedded(ip_address(text))
        return _is_public(address) or any(address in allowed for allowed in self._allowed)

    def allow_host(self, host: str) -> bool:
        """Return whether a proxy may be asked for a host: a name, which it looks up, or an address
        that is allowed, in any spelling that a resolver takes.
        """
        try:
            address = str(ip_address(host))
        except ValueError:
            try:
                address = socket.inet_ntoa(socket.inet_aton(host))
            except OSError:
                return True
        return self.allow(address)

    def open_socket(self, info: AddrInfoType) -> socket.socket:
        """Return a socket for a connection to an address; raises AddressRefusedError."""
        family, kind, protocol, _, where = info
        if not self.allow(str(where[0])):
            # The same words for each of a name's addresses, of which no client learns.
            raise AddressRefusedError("refused")
        return socket.socket(family, kind, protocol)


def _is_public(address: IPv4Address | IPv6Address) -> bool:
    """Return whether an address is that of one host of the internet."""
    if isinstance(address, IPv6Address):
        return address in _UNICAST and address.is_global
    is_metadata = any(address in network for network in _METADATA)
    return address.is_global and not (address.is_multicast or is_metadata)


def _embedded(address: IPv4Address | IPv6Address) -> IPv4Address | IPv6Address:
    """Return the IPv4 address to which packets go, where one of IPv6 stands for it."""
    if isinstance(address, IPv4Address):
        return address
    if address in _NAT64:
        return IPv4Address(int(address) & 0xFFFFFFFF)
    return address.ipv4_mapped or address.sixtofour or address
