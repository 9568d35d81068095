"""How many gateways there are, and the secret that they share."""

import secrets

from sqlalchemy import LargeBinary, cast, delete, func, select
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.asyncio import AsyncConnection

from tessera.domain.picking.owners import GatewayPeers
from tessera.gateway.store.leases import clock
from tessera.gateway.store.schema import GATEWAYS, SECRETS

MEET_SECONDS = 10.0
# A gateway that did not come for so long is gone.
_GONE_SECONDS = 3 * MEET_SECONDS
_SECRET, _SECRET_BYTES = "owners", 32


async def meet(connection: AsyncConnection, gateway: str) -> GatewayPeers:
    """Note in the transaction of the connection that a gateway is there; return who is."""
    insert = sqlite.insert if connection.dialect.name == "sqlite" else postgresql.insert
    now = await clock(connection)
    seen = insert(GATEWAYS).values(name=gateway, seen_at=now)
    await connection.execute(
        seen.on_conflict_do_update(index_elements=["name"], set_={"seen_at": now})
    )
    await connection.execute(delete(GATEWAYS).where(GATEWAYS.c.seen_at < now - _GONE_SECONDS))
    secret = insert(SECRETS).values(name=_SECRET, value=secrets.token_bytes(_SECRET_BYTES))
    # What somebody else wrote may be no key, and each request would fail by it.
    present = cast(SECRETS.c.value, LargeBinary)
    await connection.execute(
        secret.on_conflict_do_update(
            index_elements=["name"],
            set_={"value": secret.excluded.value},
            where=func.length(present) != _SECRET_BYTES,
        )
    )
    count = await connection.scalar(select(func.count()).select_from(GATEWAYS))
    value = await connection.scalar(select(present).where(SECRETS.c.name == _SECRET))
    return GatewayPeers(count=count or 1, secret=value or b"")
