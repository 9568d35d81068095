"""Batches under limits of charges: rows are settled once, and no account is overrun."""

from collections import Counter
from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from tessera.api.tenant_budget import WindowName
from tessera.domain.charge.account import ChargeAccount, window_at
from tessera.domain.charge.batch_account import (
    LATE_SECONDS,
    SHARE,
    BatchAccount,
    BatchBlock,
    BatchLoan,
    Key,
)
from tessera.domain.charge.batch_rows import (
    BatchAnswer,
    BatchOutcome,
    BlockUse,
    RowPurse,
    RowTokens,
)
from tessera.domain.charge.prices import RequestPrice
from tessera.domain.charge.scopes import ChargeScope
from tests.domain.charge.fleet import a_scope

NOW = 1_800_000_000.0
HOUR = 3600.0
PRICE = RequestPrice(
    price_list="standard@1",
    currency="USD",
    input=10**6,
    cached_input=10**6,
    output=10**6,
    reasoning=10**6,
    per_request=7,
    per_batch_row=5,
)


def a_limited(name: str, amount: int, window: WindowName = "Month") -> ChargeScope:
    scope = a_scope(name=name, window=window)
    return replace(scope, limit=replace(scope.limit, amount=amount))


class Store:
    """Accounts, one batch, and its blocks; attempts are closed as in the store."""

    def __init__(self, *scopes: ChargeScope) -> None:
        self.scopes, self.now = scopes, NOW
        self.accounts: dict[Key, ChargeAccount] = {}
        self.batch = BatchAccount()
        self.blocks: dict[int, BatchBlock] = {}
        self.spent = Counter[tuple[Key, str]]()

    def begin(self, attempt: int) -> None:
        if attempt > self.batch.attempt:
            for account in self.accounts.values():
                account.close(str(self.batch.attempt))
            self.batch = BatchAccount(attempt=attempt, price=PRICE)

    def exchange(
        self, attempt: int, use: BlockUse | None = None, *, need: int = 0, want: int = 0
    ) -> BatchOutcome:
        self.begin(attempt)
        if attempt < self.batch.attempt:
            return BatchOutcome.FENCED
        self.batch = BatchAccount.from_json(self.batch.to_json())
        if use is not None:
            block = BatchBlock.from_json(self.blocks.get(use.number, BatchBlock()).to_json())
            self.blocks[use.number] = block
            due = block.settle(use, attempt, PRICE).nanos
            for scope, start, nanos in self.batch.pay(due):
                self.accounts[scope, start].record(str(attempt), nanos)
                self.spent[(scope, start), str(attempt)] += nanos
        scopes = {(scope.key, window_at(scope.limit, self.now)[0]): scope for scope in self.scopes}
        for key in scopes:
            self.accounts.setdefault(key, ChargeAccount())
        loan = BatchLoan(borrower=str(attempt), accounts=self.accounts, scopes=scopes, now=self.now)
        return loan.lend(self.batch, need, want)

    def check(self) -> None:
        for key, account in self.accounts.items():
            limit = next(scope.limit for scope in self.scopes if scope.key == key[0])
            paid = sum(nanos for (each, _), nanos in self.spent.items() if each == key)
            assert account.settled == paid
            assert account.settled + account.lent <= limit.amount
        for key in self.batch.keys:
            reserved = sum(part.nanos for part in self.batch.parts if key in part.accounts)
            assert self.accounts[key].gateways[str(self.batch.attempt)].lent == reserved


def test_of_what_the_scarcest_limit_has_left_a_batch_reserves_a_twentieth_and_a_row_at_least() -> (
    None
):
    store = Store(a_limited("wide", 10_000), a_limited("narrow", 1000, "Day"))
    assert store.exchange(1, want=900) is BatchOutcome.GRANTED
    assert store.batch.reserved == 1000 // SHARE

    assert store.exchange(1, need=400, want=900) is BatchOutcome.GRANTED
    assert store.batch.reserved == 400
    assert store.exchange(1, need=1001, want=1001) is BatchOutcome.EXCEEDED
    store.check()


def test_what_was_reserved_in_a_window_pays_there_after_its_end_and_then_returns() -> None:
    store = Store(a_limited("hour", 10_000, "Hour"))
    store.exchange(1, want=400)
    (first,) = store.accounts.values()

    store.now += HOUR
    store.exchange(1, BlockUse(number=0, rows=(RowTokens(0, 95, 0),)), want=500)

    assert (first.settled, first.lent) == (100, 300)
    assert [part.nanos for part in store.batch.parts] == [300, 200]
    store.check()

    store.now += LATE_SECONDS + HOUR
    store.exchange(1, want=500)
    assert (first.settled, first.lent, len(store.batch.parts)) == (100, 0, 1)


def test_a_limit_that_is_new_holds_for_what_is_reserved_from_then_on() -> None:
    store = Store(a_limited("wide", 10_000))
    store.exchange(1, want=300)
    store.scopes = (*store.scopes, a_limited("narrow", 20))

    assert store.exchange(1, want=300) is BatchOutcome.GRANTED
    assert store.exchange(1, need=400, want=400) is BatchOutcome.EXCEEDED
    assert store.batch.reserved == 300
    store.check()


rows_of_block = st.lists(
    st.builds(RowTokens, st.integers(0, 999), st.integers(0, 60), st.integers(0, 60)), max_size=6
).map(tuple)
messages = st.builds(
    BlockUse,
    number=st.integers(0, 2),
    rows=rows_of_block,
    cut_input=st.integers(0, 50),
    cut_output=st.integers(0, 50),
)
steps = st.tuples(
    st.integers(1, 3),
    st.none() | messages,
    st.integers(0, 300),
    st.integers(0, 900),
    st.sampled_from([0.0, 0.0, 60.0, HOUR, 5 * HOUR, -60.0]),
)


@given(st.lists(steps, max_size=25))
def test_whatever_runners_say_no_limit_is_overrun_and_each_row_pays_once(
    schedule: list[tuple[int, BlockUse | None, int, int, float]],
) -> None:
    store = Store(a_limited("hour", 700, "Hour"), a_limited("month", 2500))
    for attempt, use, need, want, seconds in schedule:
        store.now += seconds
        store.exchange(attempt, use, need=need, want=want)
        store.check()
        # The answer was lost, and the message comes again.
        done = {number: block.done for number, block in store.blocks.items()}
        spent = sum(store.spent.values())
        store.exchange(attempt, use, need=need, want=want)
        assert {number: block.done for number, block in store.blocks.items()} == done
        assert sum(store.spent.values()) == spent
        store.check()


def test_a_row_takes_its_most_and_leaves_what_its_answer_did_not_need() -> None:
    purse = RowPurse()
    purse.answered(
        BatchAnswer(
            outcome=BatchOutcome.GRANTED, reserved=1000, input=10**6, output=2 * 10**6, per_row=5
        ),
        0,
    )
    cost = purse.cost(100, 250)
    assert cost == 605
    assert purse.room >= cost
    purse.take(cost)
    assert purse.room < cost

    purse.end(cost, 300)
    assert purse.room == 700
    purse.take(cost)
    purse.end(cost, 0)
    assert (purse.running, purse.used) == (0, 300)
    # A gateway settled these, and lent more.
    purse.answered(BatchAnswer(outcome=BatchOutcome.GRANTED, reserved=900), 300)
    assert purse.used == 0


def test_answers_may_have_twice_their_usual_length_and_four_times_as_much_once_they_were_cut() -> (
    None
):
    purse = RowPurse()
    for _ in range(20):
        purse.lengths.add(100)
    assert purse.first_limit(None) == 200
    assert purse.first_limit(50) == 50
    assert purse.next_limit(200, None) == 800
    assert purse.next_limit(200, 500) == 500


def test_what_a_silent_runner_reserved_is_others_and_it_may_go_on() -> None:
    day, month = a_limited("day", 10_000, "Day"), a_limited("month", 10_000)
    store = Store(day, month)
    store.exchange(1, need=9000, want=9000)
    store.exchange(1, BlockUse(number=0, rows=_rows(3)), need=8000, want=8000)
    settled = {key: account.settled for key, account in store.accounts.items()}

    loan = BatchLoan(borrower="1", accounts=store.accounts, scopes={}, now=store.now)
    loan.free(store.batch)

    assert store.batch.reserved == 0
    for key, account in store.accounts.items():
        assert (account.settled, account.lent, account.reserved) == (settled[key], 0, 0)
    # It lives: its rows of now are paid of what it reserves again.
    assert store.exchange(1, need=5000, want=5000) is BatchOutcome.GRANTED
    store.exchange(1, BlockUse(number=0, rows=_rows(6)))
    store.check()


def _rows(count: int) -> tuple[RowTokens, ...]:
    return tuple(RowTokens(row, 95, 0) for row in range(count))
