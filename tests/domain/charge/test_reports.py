"""What a gateway tells of accounts: by limit, the nearest to their end."""

from dataclasses import replace

from tessera.domain.charge.account import ChargeAccount
from tessera.domain.charge.exchange import AccountKey, ChargeAnswer, LendingOutcome
from tessera.domain.charge.gateway_charges import ChargesNeeded, GatewayCharges
from tessera.domain.charge.reports import reported_charges
from tessera.domain.charge.scopes import ChargeLimit, ChargeScope, MemberKind
from tessera.domain.observed.charges import AccountCharge, LimitCharges, LimitId

START = 1_793_491_200


def an_account(
    key: str,
    settled: int,
    *,
    kind: MemberKind | None = None,
    member: str | None = None,
    start: int = START,
) -> tuple[ChargeScope, ChargeAnswer]:
    limit = ChargeLimit(
        budget="team-a",
        generation=1,
        name="each-key" if kind else "charge-month",
        window="Month",
        amount=10**11,
        currency="USD",
        time_zone="UTC",
        kind=kind,
        member=member,
    )
    answer = ChargeAnswer(
        account=AccountKey(key, start),
        number=1,
        ceiling=0,
        used=0,
        outcome=LendingOutcome.GRANTED,
        limit=limit.amount,
        settled=settled,
        lent=settled // 2,
        scarce=False,
        end=start + 2_592_000,
        at=float(start),
    )
    return ChargeScope(key=key, limit=limit), answer


def test_a_limit_of_the_tenant_has_one_account_and_its_last_window_counts() -> None:
    accounts = [
        an_account("team-a/charge-month", 8, start=START + 100),
        an_account("team-a/charge-month", 90),
    ]
    limit = LimitId("team-a", "charge-month")
    expected = LimitCharges(start=START + 100, accounts=(AccountCharge(8, 4),))
    assert reported_charges(accounts) == {limit: expected}


def test_of_a_limit_for_each_key_five_are_named_and_all_are_counted() -> None:
    accounts = [
        an_account(f"team-a/each-key/Key/k/{number}", number, kind=MemberKind.KEY)
        for number in range(1000)
    ]
    [charges] = reported_charges(accounts).values()
    assert charges.members == 1000
    assert [each.member for each in charges.accounts] == [f"k/{999 - place}" for place in range(5)]


def test_a_limit_of_one_key_has_one_account() -> None:
    account = an_account("team-a/each-key", 4, kind=MemberKind.KEY, member="ci")
    [charges] = reported_charges([account]).values()
    assert charges == LimitCharges(start=START, accounts=(AccountCharge(4, 2),))


def test_what_a_correction_took_off_does_not_count_as_spent() -> None:
    scope, answer = an_account("team-a/charge-month", 90)
    corrected = replace(answer, limit=answer.limit + 25)
    [charges] = reported_charges([(scope, corrected)]).values()
    assert charges.accounts == (AccountCharge(65, 45),)


def test_a_gateway_tells_what_accounts_answered_it() -> None:
    scope, _ = an_account("team-a/charge-month", 0)
    gateway, account = GatewayCharges(clock_offset=START), ChargeAccount()
    needed = gateway.reserve((scope,), 40, 40, 0.0)
    assert isinstance(needed, ChargesNeeded)
    assert reported_charges(gateway.answered()) == {}
    start = needed.asks[0].start
    gateway.receive([account.exchange("gateway-0", needed.asks[0], START + 0.1)], 0.1)
    [(limit, charges)] = reported_charges(gateway.answered()).items()
    assert limit == LimitId("team-a", "charge-month")
    assert (charges.start, charges.accounts[0].settled) == (start, 0)
    assert charges.accounts[0].lent >= 40
