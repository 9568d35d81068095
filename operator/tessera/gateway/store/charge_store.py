"""What gateways share of charges: accounts that they borrow from, and statements."""

from collections.abc import Sequence

from tessera.domain.charge.exchange import ChargeAnswer, ChargeAsk
from tessera.domain.usage.statement import ChargeQuery, ChargeReport
from tessera.gateway.store import charges, statements
from tessera.gateway.store.database import Database


class ChargeStore(Database):
    """Accounts and sums of charges; every method raises StoreError."""

    async def exchange(self, gateway: str, asks: Sequence[ChargeAsk]) -> tuple[ChargeAnswer, ...]:
        """Answer the asks of a gateway, which may be repeated after a StoreError."""
        answers: tuple[ChargeAnswer, ...] = ()
        for start in range(0, len(asks), charges.MAX_ASKS):
            part = asks[start : start + charges.MAX_ASKS]
            while (more := await self._exchange(gateway, part)) is None:
                async with self.write() as connection:
                    await charges.open_accounts(connection, part)
            answers += more
        return answers

    async def _exchange(
        self, gateway: str, asks: Sequence[ChargeAsk]
    ) -> tuple[ChargeAnswer, ...] | None:
        async with self.write(seconds=2.0) as connection:
            return await charges.exchange(connection, gateway, asks)

    async def heard_at(self, gateway: str) -> tuple[float, float]:
        """Return when a gateway last asked, 0 if that is long ago, and the database's clock."""
        async with self.read(seconds=2.0) as connection:
            return await charges.heard_at(connection, gateway)

    async def close_gateway(self, gateway: str) -> None:
        """Free what was lent to a gateway that ended and did not use it.

        All its records must be in this store.
        """
        is_open = True
        while is_open:
            async with self.write() as connection:
                is_open = await charges.close(connection, gateway) == charges.MAX_ASKS

    async def charges(self, query: ChargeQuery) -> ChargeReport:
        """Return what groups of requests were charged in some hours, the largest charges first."""
        async with self.read() as connection:
            return await statements.report(connection, query)

    async def close_month(self) -> bool:
        """Close the months that ended a day ago; False if none did."""
        async with self.write(seconds=60.0) as connection:
            return await statements.close_month(connection)
