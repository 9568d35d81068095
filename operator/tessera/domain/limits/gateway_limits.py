"""Limits in one gateway: it admits requests from the portions that it borrowed."""

from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import ceil
from typing import TypeAlias

from tessera.domain.gateway.reasons import RequestReason
from tessera.domain.gateway.requests import RequestShape
from tessera.domain.limits.account import (
    ROUNDING,
    SLOT_LEASE_SECONDS,
    BorrowRequest,
    Lease,
    OwnAccounts,
    PortionRequest,
    SlotRequest,
)
from tessera.domain.limits.limit_shares import LimitShares
from tessera.domain.limits.scopes import ApplicableLimits, Meter, ScopedLimit, ScopeKind

# A portion is used within a second.
PORTION_SECONDS = 1.0

# Other gateways take and return at any moment, so a refusal is for what an account said just now.
REFUSAL_SECONDS = 0.2

# When a concurrent request ends is unknown; clients wait at least this long.
SLOT_RETRY_SECONDS = 1.0

# The state of a limit that is not used is forgotten.
IDLE_SECONDS = 10.0


_EXCEEDED = {
    Meter.REQUESTS: RequestReason.TOO_MANY_REQUESTS,
    Meter.INPUT_TOKENS: RequestReason.TOO_MANY_INPUT_TOKENS,
    Meter.OUTPUT_TOKENS: RequestReason.TOO_MANY_OUTPUT_TOKENS,
    Meter.TOTAL_TOKENS: RequestReason.TOO_MANY_TOKENS,
    Meter.CONCURRENT_REQUESTS: RequestReason.TOO_MANY_CONCURRENT_REQUESTS,
}
_REQUEST_METERS = frozenset({Meter.REQUESTS})
_TOKEN_METERS = frozenset({Meter.INPUT_TOKENS, Meter.OUTPUT_TOKENS, Meter.TOTAL_TOKENS})


@dataclass(frozen=True, slots=True, kw_only=True)
class Allowance:
    """The state of one limit, for the headers `x-ratelimit-*`."""

    limit: int
    remaining: int
    reset_seconds: float
    """Until the whole limit is available again, if it is not used."""


@dataclass(slots=True, kw_only=True)
class Admitted:
    """A request within all limits; `settle` ends it."""

    applicable: ApplicableLimits
    input_tokens: int
    max_output_tokens: int
    """The request's own maximum, reduced to what the limits allow of one request."""
    requests: Allowance | None
    """The scarcest limit of requests; None without any."""
    tokens: Allowance | None
    settled: bool = False

    @property
    def limits(self) -> tuple[ScopedLimit, ...]:
        """Return the limits that it is within."""
        return self.applicable.limits


@dataclass(frozen=True, slots=True, kw_only=True)
class LimitRefusal:
    """The limit that refuses a request; of several, the one that takes longest to allow it."""

    reason: RequestReason
    exceeded: ScopedLimit | None = None
    """None for the context of one request."""
    limit: int
    remaining: int = 0
    needed: int
    """What the request takes of the limit at least, or at most where it fits another time."""
    retry_after_seconds: float | None = None
    """Until the request fits at the earliest; None where it never does."""
    requests: Allowance | None = None
    """The scarcest limit of requests; None without any, or where the request never fits."""
    tokens: Allowance | None = None


@dataclass(slots=True, kw_only=True)
class _Balance:
    """What the gateway borrowed of one rate."""

    limit: ScopedLimit
    amount: int = 0
    left: float = 0.0
    """In the account when the last portion came."""
    updated_at: float = float("-inf")
    """When it came."""
    returned: int = 0
    """Refunds of settled requests, until the next exchange."""
    used: int = 0
    """Since the last renewal."""
    expected: int = 0
    """Use of the next second, as of the last renewal."""
    last_used: float = float("-inf")

    def available(self, now: float) -> int:
        return self.amount if now - self.updated_at < PORTION_SECONDS else 0

    def remaining(self, now: float) -> float:
        """Return what is available here and in the account, as far as is known.

        It is negative while the account owes.
        """
        limit = self.limit
        refilled = self.left + (now - self.updated_at) * limit.amount / limit.period_seconds
        total = self.available(now) + self.returned + refilled
        return min(float(limit.amount), total)

    def use(self, amount: int, now: float) -> None:
        self.amount -= amount
        self.used += amount
        self.last_used = now

    def request(self, need: int, keep: int, now: float) -> PortionRequest:
        """Ask for what is missing of `need` and expected soon; give back all but `keep`."""
        if need:
            self.last_used = now
        usable = min(self.available(now), keep)
        returned = self.returned + self.amount - usable
        self.amount, self.returned = usable, 0
        missing = max(0, need - self.amount)
        # A burst is not expected yet, so a request of it also asks for as much as went before.
        ahead = max(self.expected, self.used) if need else self.expected
        want = missing + max(0, ahead - self.amount)
        return PortionRequest(limit=self.limit, need=missing, want=want, returned=returned)

    def renewal(self, elapsed: float, now: float) -> PortionRequest | None:
        """Expect the use of the last seconds, or half of what was expected before."""
        self.expected = max(ceil(self.used / elapsed * PORTION_SECONDS), self.expected // 2)
        self.used = 0
        request = self.request(0, self.expected, now)
        return request if request.want or request.returned else None


@dataclass(slots=True, kw_only=True)
class _Slots:
    """The gateway's slots of one limit of concurrent requests."""

    limit: ScopedLimit
    in_use: int = 0
    granted: int = 0
    granted_at: float = float("-inf")
    wanted: int = 0
    denied_at: float = float("-inf")
    """When the account had fewer than were wanted."""
    asked: deque[float] = field(default_factory=deque)
    """When the questions without an answer were asked."""
    peak: int = 0
    """Most in use since the last renewal."""

    def available(self, now: float) -> int:
        lapsed = now - self.granted_at >= SLOT_LEASE_SECONDS
        return 0 if lapsed else self.granted - self.in_use

    @property
    def is_used(self) -> bool:
        return bool(self.granted or self.in_use or self.asked)

    def use(self) -> None:
        self.in_use += 1
        self.peak = max(self.peak, self.in_use)

    def request(self, more: int, now: float) -> SlotRequest:
        """Ask for slots for this request, and for those that asked before and got no answer."""
        return self._ask(max(self.granted, self.in_use + len(self.asked) + more), now)

    def renewal(self, now: float) -> SlotRequest:
        """Keep as many as were in use lately; what is given back is not used from now on."""
        while self.asked and now - self.asked[0] >= SLOT_LEASE_SECONDS:
            self.asked.popleft()
        # An answer that is under way would bring back what is given back now.
        want = max(self.granted, self.wanted) if self.asked else max(self.in_use, self.peak)
        self.peak = self.in_use
        self.granted = min(self.granted, want)
        return self._ask(want, now)

    def receive(self, granted: int, now: float) -> None:
        if not self.asked:
            return
        # The account counts the lease from the question on, or later.
        self.granted, self.granted_at = granted, self.asked.popleft()
        self.denied_at = now if granted < self.wanted else float("-inf")

    def _ask(self, want: int, now: float) -> SlotRequest:
        self.wanted = want
        self.asked.append(now)
        return SlotRequest(limit=self.limit, in_use=self.in_use, want=want)


_Shared: TypeAlias = tuple[ScopedLimit, LimitShares]


@dataclass(slots=True)
class GatewayLimits:
    """Decides in one gateway, without waiting, which requests are within their limits.

    All `now` are of one monotonic clock. The caller sends the accounts what `renewal` returns
    twice per second and a `BorrowRequest` of `take` at once, and gives the answers to `receive`.
    """

    _balances: dict[str, _Balance] = field(default_factory=dict)
    _slots: dict[str, _Slots] = field(default_factory=dict)
    _shares: dict[str, LimitShares] = field(default_factory=dict)
    """Of the limits of providers, by the limit."""
    _own: OwnAccounts = field(default_factory=OwnAccounts)
    _renewed_at: float = float("-inf")

    def take(
        self, limits: ApplicableLimits, request: RequestShape, now: float
    ) -> Admitted | LimitRefusal | BorrowRequest:
        """Admit the request within all limits, or within none of them.

        The input estimate and the longest answer are reserved; `settle` corrects both. After a
        `BorrowRequest` and its answer, take the request again.
        """
        max_output_tokens = _max_output(limits, request)
        if isinstance(max_output_tokens, LimitRefusal):
            return max_output_tokens
        amounts = _amounts(request.input_tokens, max_output_tokens)
        rates = [self._balance(limit) for limit in limits.limits if limit.period_seconds]
        slots = [self._slots_of(limit) for limit in limits.limits if not limit.period_seconds]
        short = [rate for rate in rates if rate.available(now) < amounts[rate.limit.meter]]
        full = [each for each in slots if each.available(now) < 1]
        shares = self._shares_of(limits) if limits.weights else ()
        for_others = {
            limit.key: needed
            for limit, each in shares
            if (needed := each.needed_by_others(limits.tenant, limits.weights, now))
        }
        if short or full or for_others:
            refusal = _refusal(rates, slots, amounts, for_others, now)
            if refusal is not None:
                _wait(limits, shares, refusal, now)
                return replace(
                    refusal,
                    requests=_scarcest(rates, _REQUEST_METERS, now),
                    tokens=_scarcest(rates, _TOKEN_METERS, now),
                )
        if short or full:
            borrow = BorrowRequest(
                portions=tuple(
                    rate.request(amounts[rate.limit.meter], rate.amount, now) for rate in short
                ),
                slots=tuple(each.request(1 + each.limit.amount // 64, now) for each in full),
            )
            shared = self._lend_own(borrow, now)
            is_answered = not shared.portions and not shared.slots
            return self.take(limits, request, now) if is_answered else shared
        for rate in rates:
            rate.use(amounts[rate.limit.meter], now)
        for each in slots:
            each.use()
        for limit, of_tenants in shares:
            of_tenants.take(limits.tenant, amounts[limit.meter], now)
        return Admitted(
            applicable=limits,
            input_tokens=request.input_tokens,
            max_output_tokens=max_output_tokens,
            requests=_scarcest(rates, _REQUEST_METERS, now),
            tokens=_scarcest(rates, _TOKEN_METERS, now),
        )

    def settle(self, admitted: Admitted, *, input_tokens: int, output_tokens: int) -> None:
        """Replace what was reserved by what was counted; a second time changes nothing.

        What a request took beyond its reservation is owed: the account subtracts it.
        """
        if admitted.settled:
            return
        admitted.settled = True
        reserved = _amounts(admitted.input_tokens, admitted.max_output_tokens)
        counted = _amounts(input_tokens, output_tokens)
        for limit in admitted.limits:
            if limit.period_seconds:
                difference = reserved[limit.meter] - counted[limit.meter]
                self._balance(limit).returned += difference
            else:
                difference = 1
                self._slots_of(limit).in_use -= 1
            if (shares := self._shares.get(limit.key)) is not None:
                shares.give_back(admitted.applicable.tenant, difference)

    def recount(self, admitted: Admitted, requests: int, *, was_asked: bool) -> None:
        """Count so many requests more, below 0 fewer, than were counted of one that is admitted.

        What a service was asked counts there in any case.
        """
        for limit in admitted.limits:
            is_used = was_asked and limit.scope is ScopeKind.SERVICE
            if limit.meter is Meter.REQUESTS and not is_used:
                self._balance(limit).amount -= requests

    def renewal(self, now: float) -> BorrowRequest:
        """Return what to exchange with the accounts now: unused portions for expected use."""
        elapsed = max(now - self._renewed_at, 1e-3)
        self._renewed_at = now
        portions = tuple(
            request
            for balance in self._balances.values()
            if (request := balance.renewal(elapsed, now)) is not None
        )
        slots = tuple(each.renewal(now) for each in self._slots.values() if each.is_used)
        self._forget_idle(now)
        return self._lend_own(BorrowRequest(portions=portions, slots=slots), now)

    def receive(self, lease: Lease, now: float) -> None:
        """Take the answers of the accounts; those of forgotten limits expire unused."""
        for portion in lease.portions:
            if (balance := self._balances.get(portion.key)) is not None:
                balance.amount += portion.amount
                balance.left, balance.updated_at = portion.left, now
        for grant in lease.slots:
            if (slots := self._slots.get(grant.key)) is not None:
                slots.receive(grant.slots, now)

    def _lend_own(self, request: BorrowRequest, now: float) -> BorrowRequest:
        """Lend what is asked of the gateway's own accounts; return what others have to lend."""
        own, shared = (
            BorrowRequest(
                portions=tuple(each for each in request.portions if each.limit.is_shared == others),
                slots=tuple(each for each in request.slots if each.limit.is_shared == others),
            )
            for others in (False, True)
        )
        self.receive(self._own.lease(own, now), now)
        return shared

    def _balance(self, limit: ScopedLimit) -> _Balance:
        balance = self._balances.get(limit.key)
        if balance is None:
            balance = self._balances[limit.key] = _Balance(limit=limit)
        balance.limit = limit
        return balance

    def _slots_of(self, limit: ScopedLimit) -> _Slots:
        slots = self._slots.get(limit.key)
        if slots is None:
            slots = self._slots[limit.key] = _Slots(limit=limit)
        slots.limit = limit
        return slots

    def _shares_of(self, limits: ApplicableLimits) -> Sequence[_Shared]:
        """Return the limits of a provider, and how tenants share each."""
        return [
            (limit, self._shares.setdefault(limit.key, LimitShares(limit.period_seconds)))
            for limit in limits.limits
            if limit.scope is ScopeKind.SERVICE
        ]

    def _forget_idle(self, now: float) -> None:
        self._balances = {
            key: balance
            for key, balance in self._balances.items()
            if balance.amount or now - balance.last_used < IDLE_SECONDS
        }
        self._slots = {key: slots for key, slots in self._slots.items() if slots.is_used}
        self._shares = {
            key: shares for key, shares in self._shares.items() if not shares.is_idle(now)
        }
        self._own.forget_full(now)


def _amounts(input_tokens: int, output_tokens: int) -> Mapping[Meter, int]:
    return {
        Meter.REQUESTS: 1,
        Meter.INPUT_TOKENS: input_tokens,
        Meter.OUTPUT_TOKENS: output_tokens,
        Meter.TOTAL_TOKENS: input_tokens + output_tokens,
        Meter.CONCURRENT_REQUESTS: 1,
    }


def _max_output(limits: ApplicableLimits, request: RequestShape) -> int | LimitRefusal:
    """Return the longest answer that the limits of one request allow."""
    longest = request.max_output_tokens
    least = min(request.choices, longest)
    if limits.max_output_tokens is not None:
        longest = min(longest, limits.max_output_tokens)
        if longest < least:
            return LimitRefusal(
                reason=RequestReason.TOO_MANY_CHOICES,
                limit=limits.max_output_tokens,
                needed=least,
            )
    context = limits.max_context_tokens
    if context is not None:
        longest = min(longest, context - request.input_tokens)
        if longest < least:
            return LimitRefusal(
                reason=RequestReason.CONTEXT_TOO_LONG,
                limit=context,
                needed=request.input_tokens + least,
            )
    smallest = _amounts(request.input_tokens, least)
    for limit in limits.limits:
        if limit.meter is Meter.OUTPUT_TOKENS:
            longest = min(longest, limit.amount)
        elif limit.meter is Meter.TOTAL_TOKENS:
            longest = min(longest, limit.amount - request.input_tokens)
        if longest < least or smallest[limit.meter] > limit.amount:
            return LimitRefusal(
                reason=RequestReason.REQUEST_TOO_LARGE,
                exceeded=limit,
                limit=limit.amount,
                needed=smallest[limit.meter],
            )
    return longest


def _refusal(
    rates: Iterable[_Balance],
    slots: Iterable[_Slots],
    amounts: Mapping[Meter, int],
    for_others: Mapping[str, int],
    now: float,
) -> LimitRefusal | None:
    """Return the limit that takes longest to allow the request; None if all of them may now.

    `for_others` has what is left to other tenants, by the limit.
    """
    refusals = []
    for rate in rates:
        limit, remaining, others = (
            rate.limit,
            rate.remaining(now),
            for_others.get(rate.limit.key, 0),
        )
        needed = amounts[limit.meter]
        is_short = rate.available(now) < needed and now - rate.updated_at < REFUSAL_SECONDS
        missing = needed + others - remaining
        if missing > ROUNDING and (is_short or others):
            seconds = missing * limit.period_seconds / limit.amount
            refusals.append((seconds, limit, max(0, int(remaining))))
    for each in slots:
        others, available = for_others.get(each.limit.key, 0), each.available(now)
        is_full = available < 1 and now - each.denied_at < REFUSAL_SECONDS
        if is_full or (others and available < 1 + others):
            refusals.append((SLOT_RETRY_SECONDS, each.limit, 0))
    if not refusals:
        return None
    seconds, limit, remaining = max(refusals, key=lambda refusal: refusal[0])
    return LimitRefusal(
        reason=_EXCEEDED[limit.meter],
        exceeded=limit,
        limit=limit.amount,
        remaining=remaining,
        needed=amounts[limit.meter],
        retry_after_seconds=seconds,
    )


def _wait(
    limits: ApplicableLimits, shares: Iterable[_Shared], refusal: LimitRefusal, now: float
) -> None:
    """Let others leave what is missing of a limit that they share."""
    seconds = refusal.retry_after_seconds or 0.0
    for limit, each in shares:
        if limit is refusal.exceeded:
            each.wait(limits.tenant, refusal.needed, seconds, now)


def _scarcest(rates: Iterable[_Balance], meters: frozenset[Meter], now: float) -> Allowance | None:
    """Return the state of the limit of which the least share remains."""
    remaining = [(rate.remaining(now), rate.limit) for rate in rates if rate.limit.meter in meters]
    if not remaining:
        return None
    amount, limit = min(remaining, key=lambda pair: pair[0] / pair[1].amount)
    used_share = 1 - amount / limit.amount
    return Allowance(
        limit=limit.amount,
        remaining=max(0, int(amount)),
        reset_seconds=used_share * limit.period_seconds,
    )
