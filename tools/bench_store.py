"""Measures how many rows of PostgreSQL a charged request writes, in all tables together.

Four gateways of one process take 2,000 requests a second of 300 keys; each key and its tenant have
a limit of a month. What is counted are inserts, updates and deletions of two minutes, as the server
counts them, with the sums that become rows after each of them. The last line is `BENCH` and JSON.
"""

import argparse
import asyncio
import itertools
import json
import random
import sys
import tempfile
import time
from collections import deque
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import timedelta
from pathlib import Path

from sqlalchemy import text

from tessera.domain.charge.exchange import ChargeAsk
from tessera.domain.charge.gateway_charges import (
    ChargeReservation,
    ChargesNeeded,
    GatewayCharges,
)
from tessera.domain.charge.scopes import ChargeLimit, ChargeScope, MemberKind
from tessera.domain.gateway.usage_record import Phase, UsageRecord
from tessera.domain.limits.account import BorrowRequest
from tessera.gateway.store.store import GatewayStore
from tessera.gateway.usage.metrics import GatewayMetrics
from tessera.gateway.usage.recording import Recording
from tests.gateway.store.postgresql import postgresql_server

GATEWAYS, REQUESTS_PER_SECOND, KEYS = 4, 2000, 300
_TICK_SECONDS, _RUNNING_SECONDS, _RENEWAL_SECONDS = 0.01, 1.0, 0.5
_WARM_SECONDS, _COUNTED_SECONDS = 10.0, 120.0
_RESERVED_NANOS, _MEAN_NANOS = 2_000_000, 1_000_000
_COUNTS = text(
    "SELECT relname, n_tup_ins + n_tup_upd + n_tup_del FROM pg_stat_user_tables ORDER BY relname"
)


def _limit(tenant: str, name: str, kind: MemberKind | None) -> ChargeLimit:
    return ChargeLimit(
        budget=tenant,
        generation=1,
        name=name,
        window="Month",
        amount=10**15,
        currency="USD",
        time_zone="UTC",
        kind=kind,
    )


def _scopes(tenants: int) -> list[tuple[str, str, tuple[ChargeScope, ...]]]:
    """Return tenant, key and scopes of each key."""
    keys: list[tuple[str, str, tuple[ChargeScope, ...]]] = []
    for tenant in (f"team-{number}" for number in range(tenants)):
        limits = _limit(tenant, "all", None), _limit(tenant, "each", MemberKind.KEY)
        of_tenant = ChargeScope(key=f"{tenant}/all", limit=limits[0])
        for number in range(KEYS // tenants):
            of_key = ChargeScope(key=f"{tenant}/each/Key/key-{number}", limit=limits[1])
            keys.append((tenant, f"key-{number}", (of_tenant, of_key)))
    return keys


class LoadedGateway:
    """Reserves, settles and records as a gateway does, without its clients and engines."""

    def __init__(self, name: str, recording: Recording, tenants: int) -> None:
        self.name, self.recording = name, recording
        self.charges = GatewayCharges(clock_offset=time.time() - time.monotonic())
        self.requests = 0
        self._keys = _scopes(tenants)
        self._random = random.Random(name)  # noqa: S311 - a load
        self._numbers = itertools.count()
        self._asks: list[ChargeAsk] = []
        self._running = deque[tuple[float, str, str, ChargeReservation]]()

    async def run(self) -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(self._serve())
            group.create_task(self._lend())

    async def _serve(self) -> None:
        due = time.monotonic()
        renewed_at = due
        while True:
            now = time.monotonic()
            while due <= now:
                due += GATEWAYS / REQUESTS_PER_SECOND
                self._admit(now)
            while self._running and self._running[0][0] <= now:
                self._end(*self._running.popleft()[1:])
            if now - renewed_at >= _RENEWAL_SECONDS:
                renewed_at = now
                self._asks += self.charges.renewal(now)
            await asyncio.sleep(_TICK_SECONDS)

    def _admit(self, now: float) -> None:
        tenant, key, scopes = self._random.choice(self._keys)
        reserved = self.charges.reserve(scopes, _RESERVED_NANOS, _RESERVED_NANOS, now)
        if isinstance(reserved, ChargesNeeded):
            self._asks += reserved.asks
        elif isinstance(reserved, ChargeReservation):
            self._running.append((now + _RUNNING_SECONDS, tenant, key, reserved))

    def _end(self, tenant: str, key: str, reserved: ChargeReservation) -> None:
        nanos = self._random.randrange(2 * _MEAN_NANOS)
        self.requests += 1
        self.recording.add(
            UsageRecord(
                record_id=f"{self.name}-{next(self._numbers)}",
                request_id="request",
                started_at_ns=time.time_ns(),
                tenant=tenant,
                key=key,
                service="platform/chat",
                model="chat",
                path="/v1/chat/completions",
                phase=Phase.COMPLETED,
                status=200,
                reason="",
                input_tokens=1200,
                output_tokens=250,
                total_ns=10**9,
                charge_nanos=nanos,
                currency="USD",
                price_list="standard@0123456789ab",
                charges=self.charges.settle(reserved, nanos),
                owner="platform",
                service_class="Interactive",
            )
        )

    async def _lend(self) -> None:
        while True:
            await asyncio.sleep(_TICK_SECONDS)
            if self._asks:
                request, self._asks = BorrowRequest(charges=tuple(self._asks)), []
                lease = await self.recording.lender.borrow(self.name, request)
                self._asks += self.charges.receive(lease.charges, time.monotonic())


@asynccontextmanager
async def _gateways(url: str, folder: Path, tenants: int) -> AsyncIterator[list[LoadedGateway]]:
    async with AsyncExitStack() as stack:
        gateways = []
        for number in range(GATEWAYS):
            own = folder / f"{number}"
            own.mkdir()
            name = f"g{number}"
            recording = await Recording.open(
                url, own, GatewayMetrics(), retention=timedelta(days=90), name=name
            )
            stack.push_async_callback(recording.close)
            gateway = LoadedGateway(name, recording, tenants)
            for part in (recording.run, gateway.run):
                task = asyncio.create_task(part())
                stack.callback(task.cancel)
            gateways.append(gateway)
        yield gateways


async def _rows(store: GatewayStore) -> dict[str, int]:
    # A connection tells the server its counts once a second at most.
    await asyncio.sleep(2.0)
    async with store.read() as connection:
        return {name: rows for name, rows in await connection.execute(_COUNTS)}


async def _measure(tenants: int, seconds: float) -> dict[str, float]:
    with postgresql_server() as server, tempfile.TemporaryDirectory() as folder:
        url = await server.create_database()
        counter = await GatewayStore.open(url)
        async with _gateways(url, Path(folder), tenants) as gateways:
            await asyncio.sleep(_WARM_SECONDS)
            before, begun = await _rows(counter), sum(each.requests for each in gateways)
            await asyncio.sleep(seconds)
            after, ended = await _rows(counter), sum(each.requests for each in gateways)
            waiting = sum(each.recording.writer.waiting for each in gateways)
        await counter.close()
    requests = ended - begun
    figures = {
        f"{name}_rows_per_request": round((rows - before.get(name, 0)) / requests, 4)
        for name, rows in after.items()
        if rows > before.get(name, 0)
    }
    figures["store_rows_per_request"] = round(sum(figures.values()), 4)
    return figures | {"requests_per_second": round(requests / (seconds + 2.0)), "waiting": waiting}


def main() -> None:
    """Measure, and print a table and the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tenants", type=int, default=1, help="among whom the keys are divided")
    parser.add_argument("--seconds", type=float, default=_COUNTED_SECONDS)
    options = parser.parse_args()
    figures = asyncio.run(_measure(options.tenants, options.seconds))
    for name, value in figures.items():
        sys.stdout.write(f"{name:40} {value:g}\n")
    sys.stdout.write(f"BENCH {json.dumps(figures)}\n")


if __name__ == "__main__":
    main()
