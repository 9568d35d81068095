"""Which addresses a provider may have."""

import socket
from ipaddress import ip_network

import pytest

from tessera.gateway.outside.addresses import AddressRefusedError, AddressRules

NONE = AddressRules(())


@pytest.mark.parametrize(
    "address",
    [
        *("127.0.0.1", "127.255.255.254", "0.0.0.0", "10.0.0.1", "172.16.0.1", "192.168.1.1"),
        *("100.64.0.1", "100.100.100.200", "169.254.169.254", "168.63.129.16", "192.0.0.192"),
        *("224.0.0.1", "239.1.2.3", "255.255.255.255", "240.0.0.1", "198.18.0.1", "192.0.2.1"),
        *("::1", "::", "fe80::1", "fe80::1%1", "fd00:ec2::254", "fc00::1", "fec0::1", "ff02::1"),
        *("2001:db8::1", "100::1", "5f00::1", "ff0e::1"),
        # Those that stand for addresses of IPv4.
        *("::ffff:127.0.0.1", "::ffff:a9fe:a9fe", "::ffff:168.63.129.16", "::127.0.0.1"),
        *("64:ff9b::127.0.0.1", "64:ff9b::a00:1", "64:ff9b:1::a00:1", "::ffff:0:127.0.0.1"),
        *("2002:7f00:1::1", "2002:a00:1::1", "2001:0:7f00:1::1"),
    ],
)
def test_an_address_that_is_not_public_is_refused(address: str) -> None:
    assert not NONE.allow(address)


@pytest.mark.parametrize(
    "address",
    [
        *("8.8.8.8", "104.18.6.192", "172.15.0.1", "172.32.0.1", "2606:4700::6812:7c0"),
        *("64:ff9b::808:808", "::ffff:8.8.8.8", "2002:808:808::1"),
    ],
)
def test_a_public_address_is_allowed(address: str) -> None:
    assert NONE.allow(address)


def test_a_range_opens_its_addresses_and_those_that_stand_for_them() -> None:
    rules = AddressRules((ip_network("10.20.0.0/16"), ip_network("fd12::/16")))
    for address in ("10.20.0.1", "::ffff:10.20.0.1", "64:ff9b::10.20.0.1", "fd12::1"):
        assert rules.allow(address)
    for address in ("10.21.0.1", "127.0.0.1", "::ffff:10.21.0.1", "fd13::1"):
        assert not rules.allow(address)


def test_a_socket_is_opened_for_an_address_that_is_allowed_alone() -> None:
    def info(address: str) -> tuple[int, int, int, str, tuple[str, int]]:
        return socket.AF_INET, socket.SOCK_STREAM, 0, "", (address, 443)

    with AddressRules((ip_network("127.0.0.0/8"),)).open_socket(info("127.0.0.1")) as opened:
        assert opened.family == socket.AF_INET
    with pytest.raises(AddressRefusedError):
        NONE.open_socket(info("127.0.0.1"))
