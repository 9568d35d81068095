"""The shared accounts of limits, in memory, and gateways that borrow from them."""

from dataclasses import dataclass, field
from typing import Any

from tessera.domain.gateway.requests import RequestShape
from tessera.domain.limits.account import Account, BorrowRequest, Lease, SlotAccount
from tessera.domain.limits.gateway_limits import Admitted, GatewayLimits, LimitRefusal
from tessera.domain.limits.scopes import ApplicableLimits, Meter, ScopedLimit, ScopeKind


def a_limit(
    meter: Meter, amount: int, period_seconds: int = 60, scope: ScopeKind = ScopeKind.TENANT
) -> ScopedLimit:
    return ScopedLimit(
        key=f"{scope}/team-a/{meter}/{period_seconds}",
        scope=scope,
        name="team-a",
        meter=meter,
        amount=amount,
        period_seconds=period_seconds,
    )


def slots_limit(amount: int, scope: ScopeKind = ScopeKind.TENANT) -> ScopedLimit:
    return a_limit(Meter.CONCURRENT_REQUESTS, amount, period_seconds=0, scope=scope)


def limits_of(*limits: ScopedLimit, **fields: Any) -> ApplicableLimits:
    return ApplicableLimits(limits=limits, **fields)


@dataclass(slots=True)
class Accounts:
    """Accounts by the key of their limit; every exchange arrives unless it is lost."""

    rates: dict[str, Account] = field(default_factory=dict)
    slots: dict[str, SlotAccount] = field(default_factory=dict)
    exchanges: int = 0
    lent: float = 0.0
    clock_offset: float = 0.0
    """Of the accounts' clock to that of the gateways."""

    def exchange(
        self,
        gateway: GatewayLimits,
        request: BorrowRequest,
        now: float,
        *,
        name: str = "a",
        answer_is_lost: bool = False,
    ) -> float:
        """Return what was lent and arrived."""
        self.exchanges += 1
        clock = now + self.clock_offset
        portions = tuple(
            self.rates.setdefault(
                each.limit.key, Account(level=each.limit.amount, updated_at=clock)
            ).borrow(each, clock)
            for each in request.portions
        )
        grants = tuple(
            self.slots.setdefault(each.limit.key, SlotAccount()).lease(name, each, clock)
            for each in request.slots
        )
        if answer_is_lost:
            return 0.0
        gateway.receive(Lease(portions=portions, slots=grants), now)
        lent = sum(portion.amount for portion in portions)
        self.lent += lent
        return lent

    def take(
        self,
        gateway: GatewayLimits,
        limits: ApplicableLimits,
        request: RequestShape,
        now: float,
        name: str = "a",
    ) -> Admitted | LimitRefusal:
        for _ in range(3):
            answer = gateway.take(limits, request, now)
            if not isinstance(answer, BorrowRequest):
                return answer
            self.exchange(gateway, answer, now, name=name)
        raise AssertionError(answer)

    def admit(
        self,
        gateway: GatewayLimits,
        limits: ApplicableLimits,
        request: RequestShape,
        now: float,
        name: str = "a",
    ) -> Admitted:
        answer = self.take(gateway, limits, request, now, name)
        assert isinstance(answer, Admitted), answer
        return answer

    def refuse(
        self,
        gateway: GatewayLimits,
        limits: ApplicableLimits,
        request: RequestShape,
        now: float,
        name: str = "a",
    ) -> LimitRefusal:
        answer = self.take(gateway, limits, request, now, name)
        assert isinstance(answer, LimitRefusal), answer
        return answer
