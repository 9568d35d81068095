"""One window of one scope: what it is charged, and what it lends to gateways.

An account lends only while `settled + lent + more <= limit`, and what it lent to a gateway is not
lent again before that gateway returns it or is closed. Since every charge of a gateway is below
its ceiling, all of them together charge at most the highest limit that lent. A gateway that died
without its volume keeps what it was lent until the window ends. After a restore of an old backup
gateways that live claim what they had by their next ask, and what a gateway saw settled counts as
`missing`; what others had been lent since that backup may be lent a second time.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import Any
from zoneinfo import ZoneInfo

from tessera.domain.budget.periods import period_at, zone_of
from tessera.domain.charge.exchange import AccountKey, ChargeAnswer, ChargeAsk, LendingOutcome
from tessera.domain.charge.scopes import ChargeLimit

# A gateway that did not ask for so long is not waited for, and has no part in what is scarce.
LIVE_SECONDS = 3.0

# A round of returns takes no longer; the next one begins no sooner than twice this.
ROUND_SECONDS = 1.0

# Where less is left, nothing is lent ahead: so many times what all gateways would have.
SCARCE_PORTIONS = 2

# A message that comes after its gateway was closed is known as one of these.
CLOSED_NAMES = 64


@dataclass(slots=True, kw_only=True)
class GatewayBalance:
    """What an account has of one gateway; sums since that process began, in nano-units."""

    ceiling: int = 0
    """What it may be charged and have reserved, in all."""
    spent: int = 0
    """Charges of its records in the store."""
    used: int = 0
    """Charges of ended requests as it said; records come later."""
    reserved: int = 0
    """By running requests as it said, and what was lent for a need since."""
    portion: int = 0
    """What it would hold beyond `used`."""
    number: int = 0
    """Of its last ask."""
    renewed_at: float = 0.0
    """When that came."""

    @property
    def settled(self) -> int:
        return max(self.spent, self.used)

    @property
    def lent(self) -> int:
        return max(0, self.ceiling - self.settled)

    @property
    def unreserved(self) -> int:
        return max(0, self.lent - self.reserved)

    def is_live(self, now: float) -> bool:
        """Say whether it asks; in the future lies what came before a clock was set back."""
        return abs(now - self.renewed_at) < LIVE_SECONDS


@dataclass(slots=True, kw_only=True)
class ChargeAccount:
    """The state of one window of one scope; nano-units, and Unix seconds of the store's clock."""

    limit: int = 0
    generation: int = 0
    """Of the budget that set the limit."""
    closed: int = 0
    """Charges of gateways that were closed, and of its window before it was opened."""
    missing: int = 0
    """What a gateway saw settled, and no record and no gateway says to be its own.

    Above 0 it was restored from a backup, and the window is to be flagged.
    """
    unrecorded: int = 0
    """Part of `closed`: what gateways said that requests were charged, and no record has."""
    missing_at: float = 0.0
    """When that was seen: what is known of gateways from before is of the backup."""
    round_at: float = 0.0
    """When the last round of returns began."""
    top_up: int = 0
    """Need of a running request that waits, before new ones are served."""
    top_up_at: float = 0.0
    gateways: dict[str, GatewayBalance] = field(default_factory=dict)
    closed_names: list[str] = field(default_factory=list)

    @classmethod
    def from_json(cls, state: Mapping[str, Any]) -> "ChargeAccount":
        """Return the account of a state that `to_json` returned."""
        gateways = {name: GatewayBalance(**each) for name, each in state["gateways"].items()}
        return cls(**{**state, "gateways": gateways, "closed_names": list(state["closed_names"])})

    def to_json(self) -> dict[str, Any]:
        """Return the state in types of JSON; integers may have more than 64 bits."""
        return asdict(self)

    @property
    def settled(self) -> int:
        """Return what was charged, as far as is known here."""
        known = self.closed + sum(each.settled for each in self.gateways.values())
        return known + self.missing

    @property
    def lent(self) -> int:
        """Return what gateways may be charged beyond what is settled."""
        return sum(each.lent for each in self.gateways.values())

    @property
    def reserved(self) -> int:
        """Return what gateways said that running requests have reserved."""
        return sum(each.reserved for each in self.gateways.values())

    @property
    def restored(self) -> int:
        """Return what was charged of which no record is left, once those that are come."""
        awaited = sum(each.settled - each.spent for each in self.gateways.values())
        return self.missing + self.unrecorded + awaited

    def record(self, gateway: str, nanos: int) -> None:
        """Add the charge of a record that the store has now; once a record."""
        balance = self.gateways.get(gateway, GatewayBalance())
        self.take_spent(gateway, balance.spent + nanos)

    def take_spent(self, gateway: str, nanos: int) -> None:
        """Take the charges of all records of a gateway that the store has now."""
        balance = self.gateways.setdefault(gateway, GatewayBalance())
        self._explain(balance, nanos)
        balance.spent = nanos

    def close(self, gateway: str) -> None:
        """End a gateway of which the store has all records: what it did not use is free again.

        What it said that requests were charged stays settled, also where no record has it.
        """
        self.leave(gateway)
        names = [name for name in self.closed_names if name != gateway]
        self.closed_names = [*names, gateway][-CLOSED_NAMES:]

    def leave(self, gateway: str) -> None:
        """Forget one that has nothing and may come back, as a new one."""
        balance = self.gateways.pop(gateway, GatewayBalance())
        self.closed += balance.settled
        self.unrecorded += balance.settled - balance.spent

    def exchange(self, gateway: str, ask: ChargeAsk, now: float) -> ChargeAnswer:
        """Take what a gateway says of itself, and lend what it needs; a repetition changes nothing.

        `now` is of the clock that all callers share.
        """
        start, end = window_at(ask.scope.limit, ask.start)
        balance = GatewayBalance()
        if gateway in self.closed_names:
            outcome = LendingOutcome.NOTHING
        else:
            balance = self.gateways.setdefault(gateway, balance)
            if ask.number > balance.number:
                self._receive(balance, ask, now)
                is_now = start == ask.start and start <= now < end
                outcome = self._lend(balance, ask, now) if is_now else LendingOutcome.ENDED
            elif balance.ceiling >= ask.ceiling + ask.need:
                outcome = LendingOutcome.GRANTED
            else:
                outcome = LendingOutcome.WAIT
        return ChargeAnswer(
            account=AccountKey(ask.scope.key, ask.start),
            number=ask.number,
            ceiling=balance.ceiling,
            used=balance.settled,
            outcome=outcome,
            limit=self.limit,
            settled=self.settled,
            lent=self.lent,
            scarce=self._is_scarce(now),
            end=end,
            at=now,
            generation=self.generation,
        )

    def _receive(self, balance: GatewayBalance, ask: ChargeAsk, now: float) -> None:
        self._explain(balance, ask.used)
        balance.number, balance.renewed_at = ask.number, now
        balance.used, balance.reserved = max(balance.used, ask.used), ask.reserved
        # Below the ceiling it returns something; above, this account was restored. A gateway that
        # forgot an idle account begins at 0, and has what was settled by the answer.
        balance.ceiling = max(ask.ceiling, balance.settled)
        balance.portion = max(0, ask.ceiling + ask.want - ask.used)
        if ask.seen > self.settled:
            self.missing, self.missing_at = self.missing + ask.seen - self.settled, now
        limit = ask.scope.limit
        if limit.generation >= self.generation:
            self.limit, self.generation = limit.amount_at(now), limit.generation

    def _explain(self, balance: GatewayBalance, charged: int) -> None:
        """Count as no more missing what a gateway was charged and a backup does not know."""
        is_of_backup = balance.renewed_at < self.missing_at
        known = balance.settled if is_of_backup else max(balance.settled, balance.ceiling)
        self.missing -= max(0, min(self.missing, charged - known))

    def _lend(self, balance: GatewayBalance, ask: ChargeAsk, now: float) -> LendingOutcome:
        if ask.scope.limit.generation < self.generation:
            return LendingOutcome.OLD_GENERATION
        settled = self.settled
        left = self.limit - settled - self.lent
        if ask.need and ask.need > left - self._waiting_top_up(ask, now):
            if settled + balance.unreserved + ask.need > self.limit:
                return LendingOutcome.NOTHING
            if ask.is_top_up:
                self.top_up, self.top_up_at = ask.need, now
            is_over = self._is_round_over(balance, now)
            return LendingOutcome.RESERVED if is_over else LendingOutcome.WAIT
        if ask.is_top_up:
            self.top_up = 0
        ahead = max(0, min(ask.want, left) - ask.need)
        balance.ceiling += ask.need
        balance.reserved += ask.need
        if not self._is_scarce(now):
            balance.ceiling += ahead
        return LendingOutcome.GRANTED

    def _waiting_top_up(self, ask: ChargeAsk, now: float) -> int:
        is_waiting = 0 <= now - self.top_up_at < ROUND_SECONDS
        return self.top_up if is_waiting and not ask.is_top_up else 0

    def _is_round_over(self, asking: GatewayBalance, now: float) -> bool:
        """Say whether all others returned what no request has reserved; begin a round if not."""
        if not any(
            each is not asking and each.unreserved and each.is_live(now)
            for each in self.gateways.values()
        ):
            return True
        if not 0 <= now - self.round_at < 2 * ROUND_SECONDS:
            self.round_at = now
        return now - self.round_at >= ROUND_SECONDS

    def _is_scarce(self, now: float) -> bool:
        # What gateways hold ahead counts as left, or lending it would itself make it scarce.
        live = [each for each in self.gateways.values() if each.is_live(now)]
        left = self.limit - self.settled - self.lent + sum(each.unreserved for each in live)
        return left < SCARCE_PORTIONS * sum(each.portion for each in live)


def window_at(limit: ChargeLimit, at: float) -> tuple[int, int]:
    """Return start and end of the window of a limit that contains a moment; Unix seconds."""
    zone = zone_of(limit.time_zone) or ZoneInfo("UTC")
    period = period_at(limit.window, datetime.fromtimestamp(at, UTC), zone)
    return int(period.start.timestamp()), int(period.end.timestamp())
