"""Which limits of basis Charge hold for a request."""

from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from tessera.api.key_record import KeyBudget, KeyRecord
from tessera.api.rate_limits import RateLimitsSpec
from tessera.api.ref import Ref
from tessera.api.tenant_budget import BudgetRaise
from tessera.domain.charge.account import ChargeAccount
from tessera.domain.charge.exchange import ChargeAsk, LendingOutcome
from tessera.domain.charge.scopes import ChargeScope
from tessera.domain.gateway.build import GatewayObservations, build_directory
from tessera.domain.gateway.directory import Directory, Identity
from tessera.domain.limits.charges import charge_scopes
from tessera.domain.money import NANO
from tessera.domain.observed.tenant_keys import TenantKeys
from tests.builders import a_budget
from tests.gateway.harness import a_model

CHAT = a_model(service=Ref("team-b", "chat"), names=("Chat", "gpt-4"), adapters=("sql",))


def a_limit(name: str | None = None, **fields: Any) -> dict[str, Any]:
    member = {"for": fields.pop("members")} if "members" in fields else {}
    limit = {"window": "Month", "amount": "100", "basis": "Charge", **member, **fields}
    return limit | ({} if name is None else {"name": name})


def a_directory(*limits: dict[str, Any], **fields: Any) -> Directory:
    budgets = (replace(a_budget(limits=limits, **fields), created=datetime.fromtimestamp(5, UTC)),)
    return build_directory(GatewayObservations(budgets=budgets), RateLimitsSpec())


def scopes(directory: Directory, identity: Identity, name: str = "Chat") -> tuple[ChargeScope, ...]:
    return charge_scopes(directory, identity, CHAT, name)


def keys(*limits: dict[str, Any], name: str = "Chat", **identity: Any) -> list[str]:
    sender = Identity(tenant="team-a", **identity)
    return [scope.key for scope in scopes(a_directory(*limits), sender, name)]


def test_a_limit_of_the_tenant_holds_for_all_its_requests() -> None:
    [scope] = scopes(
        a_directory(a_limit(window="Week", amount="0.5"), timeZone="Europe/Berlin", currency="EUR"),
        Identity(tenant="team-a"),
    )
    limit = scope.limit
    assert scope.key == "team-a/charge-week"
    assert (limit.budget, limit.name, limit.window) == ("team-a", "charge-week", "Week")
    assert (limit.amount, limit.currency, limit.time_zone) == (5 * 10**8, "EUR", "Europe/Berlin")
    assert (limit.kind, limit.member) == (None, None)


def test_limits_of_basis_cost_hold_for_no_request() -> None:
    limits = a_limit(basis="Cost"), a_limit(window="Day", basis="Charge")
    assert keys(*limits) == ["team-a/charge-day"]


def test_a_limit_without_a_basis_has_that_of_the_budget() -> None:
    limits = [{"window": "Day", "amount": "1"}]
    [scope] = scopes(a_directory(*limits, basis="Charge"), Identity(tenant="team-a"))
    assert scope.key == "team-a/charge-day"
    assert scopes(a_directory(*limits), Identity(tenant="team-a")) == ()


def test_a_member_is_known_in_records_by_all_its_names() -> None:
    limits = [a_limit(members={kind: "*"}) for kind in ("key", "service", "model")]
    directory = a_directory(*limits, a_limit())
    sender = Identity(tenant="team-a", key="ci", budget=KeyBudget(amount="5", window="Day"))
    for name, names in (("gpt-4", ("chat", "gpt-4")), ("sql", ("sql",))):
        members = [scope.members for scope in scopes(directory, sender, name)]
        assert members == [("ci",), ("team-b/chat",), names, (), ("ci",)]


def test_each_member_has_an_account_of_its_own() -> None:
    limits = [a_limit(members={kind: "*"}) for kind in ("team", "key", "service", "model")]
    assert keys(*limits, team="Pay", key="ci") == [
        "team-a/charge-month-team/Team/Pay",
        "team-a/charge-month-key/Key/ci",
        "team-a/charge-month-service/Service/team-b/chat",
        "team-a/charge-month-model/Model/chat",
    ]


def test_a_named_member_and_each_one_hold_together() -> None:
    limits = a_limit(members={"key": "*"}), a_limit("ci", members={"key": "ci"})
    assert keys(*limits, key="ci") == ["team-a/charge-month-key/Key/ci", "team-a/ci"]
    assert keys(*limits, key="dev") == ["team-a/charge-month-key/Key/dev"]


def test_a_user_is_the_subject_of_a_token_and_a_key_has_none() -> None:
    limits = a_limit(members={"user": "*"}), a_limit(members={"user": "Ann@x.org"})
    assert keys(*limits, user="Ann@x.org") == [
        "team-a/charge-month-user/User/Ann@x.org",
        "team-a/charge-month-user-ann@x.org",
    ]
    assert keys(*limits, key="ci", user="Ann@x.org") == []
    assert keys(*limits) == []


def test_a_model_is_counted_by_its_served_name_or_its_adapter_whatever_alias_is_sent() -> None:
    limits = [a_limit(members={"model": member}) for member in ("*", "chat", "sql")]
    each, chat, sql = "team-a/charge-month-model/Model/", "team-a/charge-month-model-chat", "sql"
    assert keys(*limits, name="gpt-4") == [f"{each}chat", chat]
    assert keys(*limits, name="sql") == [f"{each}sql", chat.replace("chat", sql)]


def test_a_budget_of_a_key_is_a_limit_of_its_own() -> None:
    record = KeyRecord(sha256="ab" * 32, budget=KeyBudget(amount="20", window="Day"))
    secret = TenantKeys(secret=Ref("keys", "a"), tenant="team-a", records={"ci": record})
    observed = GatewayObservations(budgets=(a_budget(currency="EUR"),), keys=(secret,))
    directory = build_directory(observed, RateLimitsSpec())
    [key] = directory.keys.values()
    [scope] = scopes(directory, Identity(tenant="team-a", key="ci", budget=key.budget))
    assert scope.key == "team-a/Key/ci"
    assert (scope.limit.amount, scope.limit.currency) == (20 * 10**9, "EUR")
    assert (scope.limit.window, scope.limit.member) == ("Day", "ci")


def test_no_key_of_an_account_stands_for_two() -> None:
    limits = [
        a_limit("key", members={"key": "*"}),
        a_limit("ci", members={"key": "ci"}),
        a_limit("key-ci"),
        a_limit(members={"user": "key/ci"}),
    ]
    budget = KeyBudget(amount="1", window="Day")
    identity = Identity(tenant="team-a", key="ci", budget=budget)
    listed = [scope.key for scope in scopes(a_directory(*limits), identity)]
    assert sorted(set(listed)) == sorted(listed)


def test_a_budget_that_was_created_again_has_a_higher_generation() -> None:
    [scope] = scopes(a_directory(a_limit()), Identity(tenant="team-a"))
    assert scope.limit.generation == 5_000_001


def test_a_sender_of_an_unknown_tenant_has_no_limits() -> None:
    assert charge_scopes(a_directory(a_limit()), Identity(tenant="team-z"), CHAT, "Chat") == ()


def test_a_raise_lends_more_until_it_ends() -> None:
    until = datetime(2026, 11, 20, 13, tzinfo=UTC)
    fields = {"limit": "charge-month", "by": "50", "until": until, "reason": "INC-8"}
    budget = a_budget(limits=[a_limit(), a_limit(window="Day")])
    raises = (BudgetRaise.model_validate(fields),)
    observed = GatewayObservations(budgets=(replace(budget, raises=raises),))
    directory = build_directory(observed, RateLimitsSpec())
    month, day = scopes(directory, Identity(tenant="team-a"))
    assert day.limit.amount_at(until.timestamp() - 1) == 100 * NANO
    start = int(datetime(2026, 11, 1, tzinfo=UTC).timestamp())
    account = ChargeAccount()

    def outcome(number: int, seconds: float, need: int) -> LendingOutcome:
        ask = ChargeAsk(
            scope=month,
            start=start,
            number=number,
            ceiling=100 * NANO,
            used=0,
            reserved=100 * NANO,
            need=need,
        )
        return account.exchange("gateway-0", ask, until.timestamp() + seconds).outcome

    assert outcome(1, -1, 50 * NANO) is LendingOutcome.GRANTED
    assert outcome(2, -1, 50 * NANO + 1) is not LendingOutcome.GRANTED
    # What was lent by the raise stays with the gateway; nothing more is lent.
    assert outcome(3, 0, 1) is not LendingOutcome.GRANTED
    assert account.limit == 100 * NANO
