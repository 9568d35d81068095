"""What a batch has reserved and which of its rows are settled, as the store of gateways has it.

A batch borrows from accounts of charges as a gateway does, under a name of its attempt. Its rows
are settled by block, attempt and a bitmap, so a message that comes late or again changes nothing.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

from tessera.domain.charge.account import ChargeAccount, GatewayBalance, window_at
from tessera.domain.charge.batch_rows import BatchOutcome, BlockUse, token_charge
from tessera.domain.charge.exchange import ChargeAnswer, ChargeAsk, LendingOutcome
from tessera.domain.charge.prices import RequestPrice
from tessera.domain.charge.scopes import ChargeScope

# Of what the scarcest limit has left, a batch reserves one part in so many, or a row.
SHARE = 20
# So long after its window what was reserved there is returned: the rows of then have ended.
LATE_SECONDS = 3600
# What is reserved for a runner is returned once nothing was heard of it for so long: it says
# something each minute.
SILENT_SECONDS = 600

Key = tuple[str, int]


@dataclass(slots=True)
class ReservedPart:
    """What is reserved in the windows of one time, alike in each account."""

    accounts: list[Key]
    end: int
    """Of the first window that ends, in Unix seconds."""
    nanos: int


@dataclass(slots=True, kw_only=True)
class BatchAccount:
    """What the store has of a batch beside its blocks."""

    attempt: int = 0
    former: str = ""
    """The attempt before, as accounts know it; empty once it was closed."""
    price: RequestPrice | None = None
    """When the attempt began."""
    records: int = 0
    """Those of this attempt."""
    parts: list[ReservedPart] = field(default_factory=list)
    """The oldest first."""

    @classmethod
    def from_json(cls, state: Mapping[str, Any]) -> "BatchAccount":
        """Return the account of a state that `to_json` returned."""
        parts = [
            ReservedPart(
                [(key, start) for key, start in part["accounts"]], part["end"], part["nanos"]
            )
            for part in state["parts"]
        ]
        price = state["price"] and RequestPrice(**state["price"])
        return cls(**{**state, "parts": parts, "price": price})

    def to_json(self) -> dict[str, Any]:
        """Return the state in types of JSON."""
        return asdict(self)

    @property
    def reserved(self) -> int:
        """Return what rows that are not settled may be charged."""
        return sum(part.nanos for part in self.parts)

    @property
    def keys(self) -> set[Key]:
        """Return the accounts in which something is reserved."""
        return {key for part in self.parts for key in part.accounts}

    def reserved_in(self, key: Key) -> int:
        """Return what is reserved in one account."""
        return sum(part.nanos for part in self.parts if key in part.accounts)

    def pay(self, due: int) -> tuple[tuple[str, int, int], ...]:
        """Take a charge off what is reserved, the oldest first, and no more than that.

        Returns who pays: key of a scope, start of a window, nano-units.
        """
        paid: dict[Key, int] = {}
        for part in self.parts:
            nanos = min(due, part.nanos)
            due -= nanos
            part.nanos -= nanos
            for key in part.accounts if nanos else ():
                paid[key] = paid.get(key, 0) + nanos
        return tuple((key, start, nanos) for (key, start), nanos in sorted(paid.items()))


class SettledRows(NamedTuple):
    """What a message adds to a batch."""

    rows: int = 0
    input: int = 0
    output: int = 0
    nanos: int = 0

    def plus(self, more: "SettledRows") -> "SettledRows":
        """Return both together."""
        return SettledRows(*map(sum, zip(self, more, strict=True)))


@dataclass(slots=True, kw_only=True)
class BatchBlock:
    """One block, as far as it is settled."""

    done: int = 0
    """A bit for each row that is settled."""
    attempt: int = 0
    """The last one that settled something."""
    cut_input: int = 0
    """What it cut, as far as that is settled."""
    cut_output: int = 0

    @classmethod
    def from_json(cls, state: Mapping[str, Any]) -> "BatchBlock":
        """Return the block of a state that `to_json` returned."""
        return cls(**{**state, "done": int(state["done"], 16)})

    def to_json(self) -> dict[str, Any]:
        """Return the state in types of JSON."""
        return {**asdict(self), "done": f"{self.done:x}"}

    def settle(self, use: BlockUse, attempt: int, price: RequestPrice) -> SettledRows:
        """Settle what is new in a message of an attempt; that of an older one has nothing new."""
        if attempt < self.attempt:
            return SettledRows()
        if attempt > self.attempt:
            self.attempt, self.cut_input, self.cut_output = attempt, 0, 0
        done, before = self.done, self.done.bit_count()
        prompts = answers = nanos = 0
        for row, prompt, answer in use.rows:
            bit = 1 << row
            if not done & bit:
                done |= bit
                prompts, answers = prompts + prompt, answers + answer
                nanos += price.per_batch_row + token_charge(price, prompt, answer)
        self.done = done
        total = SettledRows(done.bit_count() - before, prompts, answers, nanos)
        cut_input = max(0, use.cut_input - self.cut_input)
        cut_output = max(0, use.cut_output - self.cut_output)
        self.cut_input += cut_input
        self.cut_output += cut_output
        # An answer that was cut is no row yet: it pays its tokens alone.
        nanos = token_charge(price, cut_input, cut_output)
        return total.plus(SettledRows(0, cut_input, cut_output, nanos))


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchLoan:
    """The accounts that a batch borrows from in one transaction."""

    borrower: str
    """Its attempt, as accounts know it."""
    accounts: Mapping[Key, ChargeAccount]
    """Those of its parts, and those of now."""
    scopes: Mapping[Key, ChargeScope]
    """Of the windows of now."""
    now: float
    """Unix seconds of the store's clock."""
    answers: dict[Key, ChargeAnswer] = field(default_factory=dict)
    """The last ones of accounts."""

    def lend(self, batch: BatchAccount, need: int, want: int) -> BatchOutcome:
        """Reserve what a batch would have in all, at most its share, and its need at least.

        What it has beyond that is returned.
        """
        self._drop_late(batch)
        part = self._current_part(batch)
        part.nanos -= max(0, min(part.nanos, batch.reserved - max(want, need)))
        self._ask(batch, 0)
        left = min(map(self._left, self.scopes)) + part.nanos
        for total in (max(need, min(want, left // SHARE)), need):
            if total > batch.reserved:
                self._ask(batch, total - batch.reserved)
        if need <= batch.reserved:
            return BatchOutcome.GRANTED
        more = need - batch.reserved
        is_over = any(self._uncharged(batch, key) < more for key in self.scopes)
        return BatchOutcome.EXCEEDED if is_over else BatchOutcome.WAIT

    def free(self, batch: BatchAccount) -> None:
        """Return all that is reserved, of a runner that is silent: it may reserve more later."""
        self._drop(batch, batch.parts)

    def _drop_late(self, batch: BatchAccount) -> None:
        self._drop(batch, [part for part in batch.parts if part.end + LATE_SECONDS <= self.now])

    def _drop(self, batch: BatchAccount, parts: Sequence[ReservedPart]) -> None:
        for part in tuple(parts):
            batch.parts.remove(part)
            for account in map(self.accounts.get, part.accounts):
                balance = None if account is None else account.gateways.get(self.borrower)
                if balance is not None:
                    balance.ceiling, balance.reserved = balance.settled, 0

    def _current_part(self, batch: BatchAccount) -> ReservedPart:
        keys = sorted(self.scopes)
        if not batch.parts or batch.parts[-1].accounts != keys:
            ends = [window_at(scope.limit, self.now)[1] for scope in self.scopes.values()]
            batch.parts.append(ReservedPart(keys, min(ends), 0))
        return batch.parts[-1]

    def _left(self, key: Key) -> int:
        account = self.accounts[key]
        return account.limit - account.settled - account.lent

    def _uncharged(self, batch: BatchAccount, key: Key) -> int:
        """Return what charges, and what the batch has itself, leave of a limit."""
        account = self.accounts[key]
        return account.limit - account.settled - batch.reserved_in(key)

    def _ask(self, batch: BatchAccount, more: int) -> None:
        """Reserve more in all accounts of now, or in none of them."""
        outcomes = {self._exchange(batch, key, more) for key in sorted(self.scopes)}
        if outcomes == {LendingOutcome.GRANTED}:
            batch.parts[-1].nanos += more
            return
        for key in sorted(self.scopes):
            self._exchange(batch, key, 0)

    def _exchange(self, batch: BatchAccount, key: Key, more: int) -> LendingOutcome:
        """Say to an account what is reserved there, and ask for more."""
        account = self.accounts[key]
        balance = account.gateways.get(self.borrower, GatewayBalance())
        reserved = batch.reserved_in(key)
        ask = ChargeAsk(
            scope=self.scopes[key],
            start=key[1],
            number=balance.number + 1,
            ceiling=balance.settled + reserved,
            used=balance.settled,
            reserved=reserved,
            need=more,
            want=more,
        )
        self.answers[key] = account.exchange(self.borrower, ask, self.now)
        return self.answers[key].outcome
