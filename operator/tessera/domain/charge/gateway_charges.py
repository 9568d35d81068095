"""Money in one gateway: requests are reserved from what accounts lent it, without waiting."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from zoneinfo import ZoneInfo

from tessera.domain.budget.periods import period_at
from tessera.domain.charge.account import window_at
from tessera.domain.charge.exchange import AccountKey, ChargeAnswer, ChargeAsk, LendingOutcome
from tessera.domain.charge.scopes import OTHER_MONTH, ChargeLimit, ChargeScope, is_outside
from tessera.domain.charge.throttle import BURST_SECONDS, ThrottleBucket

# Ahead of requests a gateway has no more than it reserved in so long.
AHEAD_SECONDS = 5.0

# Sooner than `account.LIVE_SECONDS`: who holds money takes part in rounds of returns.
RENEWAL_SECONDS = 2.0
QUICK_RENEWAL_SECONDS = 0.4

# The limit has so many times left what this gateway has ahead: no other lacks it.
PLENTY = 32

# An ask without an answer is repeated after so long, and what is not used is forgotten.
ANSWER_SECONDS = 1.0

# So long after an answer its limit and charges stand: what they refuse asks no account.
STANDING_SECONDS = 1.0

# What was reserved by others is asked for again after so long.
RESERVED_SECONDS = 0.25

# Between two asks in a round of returns, and at a border of windows.
ROUND_RETRY_SECONDS = 0.1

# So long what was lent for a need waits for its request.
PICKUP_SECONDS = 0.25

# The least that requests need is that of those which came in so long a time.
LEAST_SECONDS = 60.0

# New requests let a running one go first that asked for more so long ago.
TOP_UP_SECONDS = 0.5

# For the answer to another request's ask.
_RETRY_SECONDS = 0.01

_MAX_SEEN = 10_000
_UTC = ZoneInfo("UTC")
_NEVER = float("-inf")


@dataclass(slots=True, eq=False)
class LentCharges:
    """What a gateway has of one account; in nano-units, sums since the gateway first asked."""

    scope: ChargeScope
    limit: ChargeLimit
    start: int
    end: int
    used: int = 0
    reserved: int = 0
    free: int = 0
    """Of the ceiling, beyond `used` and `reserved`."""
    taken: int = 0
    """Reserved since `taken_at`."""
    taken_before: int = 0
    """Reserved in as long a time before that."""
    taken_at: float = _NEVER
    waiting: int = 0
    """Needs of requests since the last ask, for which another one was under way."""
    needed_at: float = _NEVER
    ask: ChargeAsk | None = None
    """The last one; only its answer counts, since each says the whole state."""
    asked_at: float = _NEVER
    is_answered: bool = False
    answer: ChargeAnswer | None = None
    answered_at: float = _NEVER
    granted_at: float = _NEVER
    denied: int = 0
    """So much was not to be had at `denied_at`, since running requests have it reserved."""
    denied_at: float = _NEVER
    missing: int = 0
    """The least that one request needed and did not get; 0 once it was free here."""
    missing_at: float = _NEVER
    """When the first of them came."""
    least: int = 0
    """The least that a request needed lately, was it admitted or refused."""
    least_at: float = _NEVER
    wait_until: float = _NEVER
    top_up_at: float = _NEVER
    bucket: ThrottleBucket | None = None
    """Where the limit is spread over the rest of its window."""
    throttled_until: float = _NEVER

    @property
    def ceiling(self) -> int:
        return self.used + self.reserved + self.free

    @property
    def is_scarce(self) -> bool:
        return self.answer is not None and self.answer.scarce

    @property
    def is_lent_ahead(self) -> bool:
        """Say whether it may hold more than requests need."""
        return not self.is_scarce and self.bucket is None

    def is_asked(self, now: float) -> bool:
        """Say whether an answer is under way."""
        return not self.is_answered and now - self.asked_at < ANSWER_SECONDS

    def lately(self, now: float) -> int:
        """Return what was reserved in the last 5 seconds, or in half as long at least."""
        passed = now - self.taken_at
        if passed >= AHEAD_SECONDS / 2:
            self.taken_before = self.taken if passed < AHEAD_SECONDS else 0
            self.taken, self.taken_at = 0, now
        return self.taken + self.taken_before

    def is_picked_up(self, now: float) -> bool:
        """Say whether the request came for what was lent for its need, or is late."""
        return now - self.granted_at >= PICKUP_SECONDS

    def is_idle(self, now: float) -> bool:
        """Say whether the account knows all, and this gateway has nothing of it."""
        is_empty = not (self.reserved or self.free or self.taken or self.taken_before)
        is_unused = now - self.needed_at >= AHEAD_SECONDS
        return is_empty and self.is_said and is_unused and self.is_bucket_full(now)

    def is_bucket_full(self, now: float) -> bool:
        """Say whether a new bucket would be no fuller."""
        if self.bucket is None:
            return True
        return now - max(self.throttled_until, self.bucket.at) >= BURST_SECONDS

    @property
    def is_said(self) -> bool:
        """Say whether the account knows what is charged and reserved."""
        ask = self.ask
        if ask is None or not self.is_answered or (self.limit.is_lowered and not self.is_lowered):
            return False
        return self.used == ask.used and self.reserved == ask.reserved

    @property
    def is_lowered(self) -> bool:
        """Say whether the account has an amount that the operator lowered."""
        return self.answer is not None and self.answer.generation >= self.limit.generation

    def is_reserved(self, amount: int, now: float) -> bool:
        """Say whether running requests have so much reserved, as an account said just now."""
        is_denied = amount >= self.denied and now - self.denied_at < RESERVED_SECONDS
        return is_denied and amount > self.free

    def left(self, now: float) -> int | None:
        """Return what charges leave of the limit for one request; None if that is long ago."""
        if self.answer is None or now - self.answered_at >= STANDING_SECONDS:
            return None
        return max(self.answer.limit - self.answer.settled, self.free)

    @property
    def settled(self) -> int:
        """Return the nano-units that ended requests of all gateways were charged, as known here."""
        answer = self.answer
        return self.used if answer is None else answer.settled + self.used - answer.used

    def remaining(self) -> int:
        """Return what charges and other reservations left for one request at the last answer."""
        answer = self.answer
        beyond = 0 if answer is None else answer.limit - answer.settled - answer.lent
        return max(beyond, 0) + self.free


@dataclass(slots=True, eq=False)
class ChargeReservation:
    """What a request may be charged in all its scopes; `settle` ends it."""

    scopes: tuple[ChargeScope, ...]
    nanos: int
    parts: list[tuple[list[LentCharges], int, int]]
    """In the order in which they were reserved, with the month: each pays in its own windows."""
    charges: tuple[tuple[str, int, int], ...] | None = None
    """Key of a scope, start of a window, nano-units; None until it is settled."""

    def other_months(self, month: int, charge: int) -> tuple[tuple[str, int, int], ...]:
        """Return what of a charge is of other months than this one, under OTHER_MONTH."""
        paid = []
        for _, nanos, start in self.parts:
            pay = min(charge, nanos)
            charge -= pay
            if pay and start != month:
                paid.append((OTHER_MONTH, start, pay))
        return tuple(paid)


@dataclass(frozen=True, slots=True, kw_only=True)
class ChargesNeeded:
    """Send the asks, or wait so long where others are under way; then try again."""

    asks: tuple[ChargeAsk, ...]
    wait_seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ChargeRefusal:
    """The scope that refuses a request; of several the one of which the window ends last."""

    scope: ChargeScope
    left: int
    """Of the limit after all charges."""
    end: int
    """Of the window, in Unix seconds."""
    is_reserved: bool
    """Running requests have it reserved and may leave some: it may be tried again."""
    throttled_seconds: float = 0.0
    """Where the limit is spread over the rest of its window: until it may be tried again."""


@dataclass(slots=True, kw_only=True)
class GatewayCharges:
    """Decides in one gateway which requests are within their limits of charges.

    All `now` are of one monotonic clock. The caller sends the accounts what `renewal` returns
    twice per second, and at once what `receive` and `ChargesNeeded` have.
    """

    clock_offset: float = 0.0
    """Unix seconds of the accounts' clock less `now`; a first guess, corrected by answers."""
    seen: dict[AccountKey, int] = field(default_factory=dict)
    """Most that accounts said was settled; to be stored, and passed to the next process."""
    _lent: dict[AccountKey, LentCharges] = field(default_factory=dict)
    _current: dict[str, LentCharges] = field(default_factory=dict)
    """By key of the scope, of the window in which it was last used."""
    _windows: dict[tuple[str, str], tuple[int, int]] = field(default_factory=dict)
    _month: tuple[int, int] = (0, 0)
    """Start and end of the last one that was asked for."""
    _number: int = 0
    _top_up_at: float = _NEVER

    def reserve(
        self, scopes: tuple[ChargeScope, ...], nanos: int, least: int, now: float
    ) -> ChargeReservation | ChargesNeeded | ChargeRefusal:
        """Reserve for a request in all scopes, or in none of them.

        Where charges leave less than `nanos` it is what is left, at least `least`.
        """
        if not scopes:
            return UNLIMITED
        lent, is_enough = self._lent_of(scopes, nanos, now)
        if least:
            for each in lent:
                if least <= each.least or now - each.least_at >= LEAST_SECONDS:
                    each.least, each.least_at = least, now
        if not is_enough or now - self._top_up_at < TOP_UP_SECONDS:
            amount = self._decide(lent, nanos, least, now, is_top_up=False)
            if not isinstance(amount, int):
                return amount
            nanos = amount
        for each in lent:
            each.free -= nanos
            each.reserved += nanos
            each.taken += nanos
        month = self.month_at(now + self.clock_offset)
        return ChargeReservation(scopes, nanos, [(lent, nanos, month)])

    def top_up(
        self, reservation: ChargeReservation, nanos: int, now: float
    ) -> ChargeReservation | ChargesNeeded | ChargeRefusal:
        """Reserve more for a running request, in the windows of now; what it has it keeps.

        Until it is tried no more, new requests do not get what it waits for.
        """
        if not reservation.scopes or reservation.charges is not None:
            return reservation
        lent, is_enough = self._lent_of(reservation.scopes, nanos, now)
        if not is_enough:
            amount = self._decide(lent, nanos, nanos, now, is_top_up=True)
            if not isinstance(amount, int):
                return amount
        for each in lent:
            each.free -= nanos
            each.reserved += nanos
            each.taken += nanos
            each.top_up_at = _NEVER
        before, amount, month = reservation.parts[-1]
        month_now = self.month_at(now + self.clock_offset)
        if lent == before and month == month_now:
            reservation.parts[-1] = before, amount + nanos, month
        else:
            reservation.parts.append((lent, nanos, month_now))
        reservation.nanos += nanos
        return reservation

    def shrink(self, reservation: ChargeReservation, nanos: int) -> None:
        """Give back what a running request cannot need, beginning with what it reserved last."""
        if reservation.charges is not None:
            return
        nanos = min(nanos, reservation.nanos)
        reservation.nanos -= nanos
        for index in range(len(reservation.parts) - 1, -1, -1):
            lent, amount, month = reservation.parts[index]
            back = min(amount, nanos)
            nanos -= back
            reservation.parts[index] = lent, amount - back, month
            for each in lent:
                each.reserved -= back
                each.free += back

    def settle(
        self, reservation: ChargeReservation, charge: int
    ) -> tuple[tuple[str, int, int], ...]:
        """End a request with its charge, at most what it has reserved; a second time no more.

        Returns what it pays: key of a scope, start of a window, nano-units.
        """
        if reservation.charges is not None:
            return reservation.charges
        left = charge
        paid: list[tuple[str, int, int]] = []
        for lent, nanos, _ in reservation.parts:
            pay = left if left < nanos else nanos
            left -= pay
            back = nanos - pay
            for each in lent:
                each.reserved -= nanos
                each.used += pay
                each.free += back
            if pay:
                paid += [(each.scope.key, each.start, pay) for each in lent]
        if len(reservation.parts) > 1:
            paid = _merged(paid)
        reservation.charges = tuple(paid)
        return reservation.charges

    def month_at(self, at: float) -> int:
        """Return the month of statements that a moment is of; both in Unix seconds."""
        start, end = self._month
        if not start <= at < end:
            month = period_at("Month", datetime.fromtimestamp(at, UTC), _UTC)
            start = int(month.start.timestamp())
            self._month = start, int(month.end.timestamp())
        return start

    def known(self, scope: ChargeScope, now: float) -> LentCharges:
        """Return what it has of the current window of a scope."""
        ((lent,), _) = self._lent_of((scope,), 0, now)
        return lent

    def renewal(self, now: float) -> tuple[ChargeAsk, ...]:
        """Return what to say to accounts now: what is given back, and wanted for 5 seconds."""
        at = now + self.clock_offset
        asks = [
            ask for each in self._lent.values() if (ask := self._renew(each, now, at)) is not None
        ]
        for key in [key for key, each in self._lent.items() if each.is_idle(now)]:
            each = self._lent.pop(key)
            if self._current.get(key.scope) is each:
                del self._current[key.scope]
        return tuple(asks)

    def receive(self, answers: Iterable[ChargeAnswer], now: float) -> tuple[ChargeAsk, ...]:
        """Take what accounts answered; returns what to send them at once: returns in a round."""
        asks = []
        for answer in answers:
            lent = self._lent.get(answer.account)
            if lent is None or lent.ask is None or lent.is_answered:
                continue
            if answer.number == lent.ask.number:
                self._take(lent, lent.ask, answer, now)
                if answer.scarce and lent.free > 0 and lent.is_picked_up(now):
                    asks.append(self._renewed(lent, now, ahead=0))
        return tuple(asks)

    def answered(self) -> Iterator[tuple[ChargeScope, ChargeAnswer]]:
        """Yield what accounts answered last, of those that this gateway uses."""
        for lent in self._lent.values():
            if lent.answer is not None:
                yield lent.scope, lent.answer

    def needs(self) -> Mapping[AccountKey, int]:
        """Return the least that single requests need of each account.

        Of what is lent for providers that is what they did not get.
        """
        return {
            key: lent.missing if is_outside(key.scope) else lent.least
            for key, lent in self._lent.items()
            if not is_outside(key.scope) or lent.remaining() < lent.missing
        }

    def _lent_of(
        self, scopes: tuple[ChargeScope, ...], nanos: int, now: float
    ) -> tuple[list[LentCharges], bool]:
        """Return what it has for the scopes in their windows, and whether that is enough."""
        at = now + self.clock_offset
        current = self._current
        is_enough = True
        all_lent = []
        for scope in scopes:
            lent = current.get(scope.key)
            if lent is None or lent.limit is not scope.limit or not lent.start <= at < lent.end:
                lent = self._enter(scope, at)
            if lent.free < nanos:
                is_enough = False
            all_lent.append(lent)
        return all_lent, is_enough

    def _enter(self, scope: ChargeScope, at: float) -> LentCharges:
        """Return what it has of the window of now, by the limit that holds now."""
        limit = scope.limit
        name = limit.window, limit.time_zone
        start, end = self._windows.get(name, (0, 0))
        if not start <= at < end:
            start, end = self._windows[name] = window_at(limit, at)
        lent = self._lent.get(key := AccountKey(scope.key, start))
        if lent is None:
            lent = self._lent[key] = LentCharges(scope, limit, start, end)
        elif lent.limit != limit:
            # What was answered is of another limit.
            lent.answered_at = lent.denied_at = lent.wait_until = _NEVER
        lent.scope, lent.limit, lent.end = scope, limit, end
        self._current[scope.key] = lent
        return lent

    def _decide(
        self, all_lent: list[LentCharges], nanos: int, least: int, now: float, *, is_top_up: bool
    ) -> int | ChargesNeeded | ChargeRefusal:
        """Return how much is reserved, or what refuses it or is needed for it."""
        amount = nanos
        refusals = []
        for each in all_lent:
            left = each.left(now)
            if left is not None and left < nanos:
                if left < least:
                    refusals.append(_refusal(each, is_reserved=False))
                amount = min(amount, max(least, min(left, each.remaining())))
        for each in all_lent:
            if now < each.throttled_until and not is_top_up:
                seconds = each.throttled_until - now
                refusals.append(_refusal(each, is_reserved=True, throttled_seconds=seconds))
            if each.is_reserved(amount, now) or (
                not is_top_up and now - each.top_up_at < TOP_UP_SECONDS
            ):
                refusals.append(_refusal(each, is_reserved=True))
        if refusals:
            return max(refusals, key=lambda each: (not each.is_reserved, each.end))
        return self._need(all_lent, amount, now, is_top_up=is_top_up)

    def _need(
        self, all_lent: list[LentCharges], amount: int, now: float, *, is_top_up: bool
    ) -> int | ChargesNeeded:
        """Return the amount if it has that, or what it must ask for it."""
        short = [each for each in all_lent if each.free < amount]
        if not short:
            return amount
        wait_seconds = max(each.wait_until for each in short) - now
        if wait_seconds > 0:
            return ChargesNeeded(asks=(), wait_seconds=wait_seconds)
        asks = []
        for each in short:
            each.needed_at = now
            if is_top_up:
                self._top_up_at = each.top_up_at = now
            if each.is_asked(now) and each.ask is not None and each.ask.need:
                each.waiting += amount
            else:
                need = amount - each.free
                want = need + each.waiting + (0 if each.bucket else each.lately(now))
                asks.append(self._say(each, now, need=need, want=want, is_top_up=is_top_up))
        return ChargesNeeded(asks=tuple(asks), wait_seconds=0.0 if asks else _RETRY_SECONDS)

    def _renew(self, lent: LentCharges, now: float, at: float) -> ChargeAsk | None:
        """Return the ask that is due, if any."""
        if lent.is_asked(now):
            return None
        lately = lent.lately(now)
        is_current = lent.start <= at < lent.end
        ahead = lately if is_current and lent.is_lent_ahead else 0
        is_surplus = lent.free > ahead and lent.is_picked_up(now)
        is_short = 4 * lent.free < ahead
        if is_short or (is_surplus and not (is_current and lent.is_lent_ahead)):
            return self._renewed(lent, now, ahead)
        # What it has ahead is returned within a second where others may lack it.
        is_plenty = lent.remaining() > PLENTY * lent.free
        if now - lent.asked_at < (RENEWAL_SECONDS if is_plenty else QUICK_RENEWAL_SECONDS):
            return None
        # Who has money reserved is heard, so that no other frees it.
        is_heard = not lent.reserved or now - lent.asked_at < RENEWAL_SECONDS
        if lent.is_said and not lent.free and is_heard:
            return None
        return self._renewed(lent, now, ahead)

    def _renewed(self, lent: LentCharges, now: float, ahead: int) -> ChargeAsk:
        if lent.is_picked_up(now):
            lent.free = min(lent.free, ahead)
        wanted = lent.lately(now) if ahead or lent.is_scarce else 0
        return self._say(lent, now, need=0, want=max(0, wanted - lent.free), is_top_up=False)

    def _say(
        self, lent: LentCharges, now: float, *, need: int, want: int, is_top_up: bool
    ) -> ChargeAsk:
        self._number += 1
        lent.waiting = 0
        lent.asked_at, lent.is_answered = now, False
        lent.ask = ChargeAsk(
            scope=lent.scope,
            start=lent.start,
            number=self._number,
            ceiling=lent.ceiling,
            used=lent.used,
            reserved=lent.reserved,
            need=need,
            want=want,
            seen=self.seen.get(AccountKey(lent.scope.key, lent.start), 0),
            is_top_up=is_top_up,
        )
        return lent.ask

    def _take(self, lent: LentCharges, ask: ChargeAsk, answer: ChargeAnswer, now: float) -> None:
        self._set_clock(answer.at - now)
        if lent.answer is None:
            # It had forgotten this account, or comes to it first.
            lent.used = answer.used
        lent.free = answer.ceiling - lent.used - lent.reserved
        lent.answer, lent.is_answered, lent.answered_at = answer, True, now
        self._see(answer)
        _throttle(lent, answer, now)
        if lent.free >= lent.missing:
            lent.missing = 0
        if ask.need and answer.outcome in (LendingOutcome.RESERVED, LendingOutcome.NOTHING):
            # The least, or a request that needs more than there is would hide all others.
            missing = ask.need + lent.free
            lent.missing_at = lent.missing_at if lent.missing else now
            lent.missing = min(lent.missing or missing, missing)
        match answer.outcome:
            case LendingOutcome.GRANTED if ask.need:
                lent.granted_at = now
            case LendingOutcome.RESERVED:
                lent.denied, lent.denied_at = ask.need + ask.ceiling - ask.used - ask.reserved, now
            case LendingOutcome.WAIT | LendingOutcome.ENDED:
                lent.wait_until = now + ROUND_RETRY_SECONDS
            case LendingOutcome.OLD_GENERATION:
                # The newer budget is on its way to this gateway.
                lent.wait_until = now + RESERVED_SECONDS
            case LendingOutcome.GRANTED | LendingOutcome.NOTHING:
                pass

    def _set_clock(self, offset: float) -> None:
        # The answer was under way: a later clock is the better guess, an earlier one was set.
        if not self.clock_offset - ANSWER_SECONDS < offset < self.clock_offset:
            self.clock_offset = offset

    def _see(self, answer: ChargeAnswer) -> None:
        before = self.seen.pop(answer.account, 0)
        self.seen[answer.account] = max(before, answer.settled)
        if len(self.seen) > _MAX_SEEN:
            del self.seen[next(iter(self.seen))]


# What a request without limits of charges reserves; it is shared and never changes.
UNLIMITED = ChargeReservation(scopes=(), nanos=0, parts=[], charges=())


def _throttle(lent: LentCharges, answer: ChargeAnswer, now: float) -> None:
    """Spread what a limit has left over its window, where its budget asks for that."""
    terms, rate = lent.limit.throttle, None
    if terms is not None:
        rate = terms.rate(answer.settled, answer.limit, answer.end - answer.at)
    if rate is None:
        lent.bucket, lent.throttled_until = None, _NEVER
        return
    if lent.bucket is None:
        lent.bucket = ThrottleBucket(rate * BURST_SECONDS, answer.settled, now)
    taken = answer.settled + answer.lent
    lent.throttled_until = now + lent.bucket.wait_seconds(taken, rate, now)


def _refusal(
    lent: LentCharges, *, is_reserved: bool, throttled_seconds: float = 0.0
) -> ChargeRefusal:
    answer = lent.answer
    left = 0 if answer is None else max(0, answer.limit - answer.settled)
    return ChargeRefusal(
        scope=lent.scope,
        left=left,
        end=lent.end,
        is_reserved=is_reserved,
        throttled_seconds=throttled_seconds,
    )


def _merged(paid: Iterable[tuple[str, int, int]]) -> list[tuple[str, int, int]]:
    sums: dict[tuple[str, int], int] = {}
    for key, start, nanos in paid:
        sums[key, start] = sums.get((key, start), 0) + nanos
    return [(key, start, nanos) for (key, start), nanos in sums.items()]
