"""Lends portions of limits to gateways, and bridges a store that fails for a minute."""

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Protocol

from tessera.domain.limits.account import (
    Account,
    BorrowRequest,
    Lease,
    Portion,
    PortionRequest,
    SlotGrant,
    SlotRequest,
)
from tessera.domain.limits.scopes import ScopedLimit
from tessera.gateway.store.database import StoreError

log = logging.getLogger("tessera.gateway")

BRIDGE_SECONDS = 60
_PROBE_SECONDS = 1.0
_LENDER = "lender"


class LeaseStore(Protocol):
    """Where limits have their accounts."""

    async def borrow(self, gateway: str, request: BorrowRequest) -> Lease:
        """Lend portions of limits to a gateway; raises StoreError."""

    async def check(self) -> None:
        """Raise StoreError while the store does not answer."""


@dataclass(slots=True)
class _Bridge:
    """What this gateway got of one limit lately, and what it lends while the store fails."""

    limit: ScopedLimit
    since: float
    amount: int = 0
    """Within the minute that began at `since`."""
    amount_before: int = 0
    """Within the minute before."""
    account: Account | None = None
    debt: int = 0
    """Lent while the store failed; the account in the store does not know of it."""

    def add(self, amount: int, now: float) -> None:
        if now - self.since >= BRIDGE_SECONDS:
            is_next = now - self.since < 2 * BRIDGE_SECONDS
            self.amount_before = self.amount if is_next else 0
            self.since, self.amount = now, 0
        self.amount += amount

    def lend(self, request: PortionRequest, now: float) -> Portion:
        granted = max(self.amount, self.amount_before)
        amount = min(granted, request.limit.amount)
        if not amount:
            return Portion(key=request.limit.key, amount=0, left=0.0)
        period = max(1, round(BRIDGE_SECONDS * amount / granted))
        if self.account is None:
            self.account = Account(level=float(amount), updated_at=now)
        limit = replace(request.limit, amount=amount, period_seconds=period)
        portion = self.account.borrow(replace(request, limit=limit), now)
        self.debt += portion.amount - request.returned
        return portion


class Lender:
    """Lends from the store.

    While it fails, this gateway goes on for BRIDGE_SECONDS at the rate at which it was lent to in
    the minute before: of each limit at most twice what it got in that minute. Then it lends
    nothing until the store answers, and books what it lent.
    """

    def __init__(
        self, store: LeaseStore, *, monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        self._store, self._monotonic = store, monotonic
        self._bridges: dict[str, _Bridge] = {}
        self._slots: dict[str, tuple[int, float]] = {}
        """The slots that were granted, and when."""
        self._forgot_at = monotonic()
        self._probe: asyncio.Task[None] | None = None
        self.failing_since: float | None = None
        """Monotonic seconds; None while the store lends."""

    async def borrow(self, gateway: str, request: BorrowRequest) -> Lease:
        """Return what the store lends, or without it what the gateway may lend itself.

        Raises nothing.
        """
        if self.failing_since is None:
            try:
                lease = await self._store.borrow(gateway, request)
            except StoreError as error:
                self.failing_since = self._monotonic()
                log.error("limits are lent without the store for %d s: %s", BRIDGE_SECONDS, error)
            else:
                self._remember(request, lease)
                return lease
        if self._probe is None or self._probe.done():
            self._probe = asyncio.create_task(self._book())
        now = self._monotonic()
        is_over = now - self.failing_since >= BRIDGE_SECONDS
        return Lease(
            portions=tuple(
                Portion(key=each.limit.key, amount=0, left=0.0)
                if is_over or (bridge := self._bridges.get(each.limit.key)) is None
                else bridge.lend(each, now)
                for each in request.portions
            ),
            slots=tuple(self._bridge_slots(each, is_over) for each in request.slots),
        )

    def _bridge_slots(self, request: SlotRequest, is_over: bool) -> SlotGrant:
        granted, _ = (0, 0.0) if is_over else self._slots.get(request.limit.key, (0, 0.0))
        slots = max(request.in_use, min(request.want, granted))
        return SlotGrant(key=request.limit.key, slots=slots)

    def _remember(self, request: BorrowRequest, lease: Lease) -> None:
        now = self._monotonic()
        for asked, portion in zip(request.portions, lease.portions, strict=True):
            bridge = self._bridges.setdefault(portion.key, _Bridge(limit=asked.limit, since=now))
            bridge.add(portion.amount, now)
        for grant in lease.slots:
            self._slots[grant.key] = grant.slots, now
        if now - self._forgot_at >= BRIDGE_SECONDS:
            self._forgot_at = oldest = now
            oldest -= 2 * BRIDGE_SECONDS
            self._bridges = {
                k: bridge for k, bridge in self._bridges.items() if bridge.since > oldest
            }
            self._slots = {k: grant for k, grant in self._slots.items() if grant[1] > oldest}

    async def _book(self) -> None:
        """Try the store every second until it has booked all that was lent without it."""
        while self.failing_since is not None:
            debts = {key: bridge.debt for key, bridge in self._bridges.items() if bridge.debt}
            requests = (
                PortionRequest(limit=self._bridges[key].limit, returned=-debt)
                for key, debt in debts.items()
            )
            try:
                await self._store.check()
                await self._store.borrow(_LENDER, BorrowRequest(portions=tuple(requests)))
            except StoreError:
                await asyncio.sleep(_PROBE_SECONDS)
                continue
            for key, debt in debts.items():
                self._bridges[key].debt -= debt
            if not any(bridge.debt for bridge in self._bridges.values()):
                self.failing_since = None
                for bridge in self._bridges.values():
                    bridge.account = None
                log.warning("the store lends limits again")
