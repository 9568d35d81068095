"""Gateways that meet in their database."""

import asyncio
from pathlib import Path

from sqlalchemy import text

from tessera.gateway.store.store import GatewayStore


async def test_gateways_count_each_other_and_share_a_secret(store: GatewayStore) -> None:
    first = await store.meet("gateway-1/a")
    assert first.count == 1
    assert len(first.secret) == 32
    assert await store.meet("gateway-1/a") == first
    second = await store.meet("gateway-2/b")
    assert (second.count, second.secret) == (2, first.secret)
    assert await store.meet("gateway-1/a") == second


async def test_gateways_that_come_at_once_agree_on_the_secret(store: GatewayStore) -> None:
    met = await asyncio.gather(*(store.meet(f"gateway-{number}") for number in range(4)))
    assert len({peers.secret for peers in met}) == 1
    assert (await store.meet("gateway-0")).count == 4


async def test_a_gateway_that_did_not_come_again_is_gone(store: GatewayStore) -> None:
    await store.meet("gateway-1/a")
    async with store.write() as connection:
        await connection.execute(text("UPDATE gateways SET seen_at = seen_at - 31"))
    assert (await store.meet("gateway-2/b")).count == 1


async def test_what_is_no_key_is_replaced_once(store: GatewayStore) -> None:
    await store.meet("gateway")
    for value in (b"abc", b"", b"x" * 100):
        async with store.write() as connection:
            await connection.execute(text("UPDATE secrets SET value = :value"), {"value": value})
        met = await asyncio.gather(store.meet("gateway-1"), store.meet("gateway-2"))
        assert {len(peers.secret) for peers in met} == {32}
        assert len({peers.secret for peers in met}) == 1


async def test_a_text_in_place_of_the_secret_is_replaced(tmp_path: Path) -> None:
    """PostgreSQL takes none."""
    store = await GatewayStore.open(f"sqlite:///{tmp_path}/store.db")
    await store.meet("gateway")
    async with store.write() as connection:
        await connection.execute(text("UPDATE secrets SET value = 'a text'"))
    peers = await store.meet("gateway")
    await store.close()
    assert len(peers.secret) == 32
    assert isinstance(peers.secret, bytes)
    assert repr(peers.secret) not in repr(peers)


async def test_another_installation_has_another_secret(store: GatewayStore) -> None:
    secret = (await store.meet("gateway")).secret
    async with store.write() as connection:
        await connection.execute(text("DELETE FROM secrets"))
    assert (await store.meet("gateway")).secret != secret
