"""Calls of providers: their cost is reserved whole, beside their price."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest

from tessera.domain.charge.prices import BilledExtras
from tessera.domain.charge.reports import reported_charges
from tessera.domain.charge.scopes import OTHER_MONTH, ChargeLimit
from tessera.domain.gateway.directory import Identity, OfferedModel
from tessera.domain.gateway.reasons import RequestReason
from tessera.domain.gateway.requests import RequestShape
from tessera.domain.limits.account import BorrowRequest
from tessera.domain.money import NANO
from tessera.domain.observed.charges import LimitId
from tessera.domain.usage.payer import ChargeEnd, KnownWork, TokenParts
from tessera.gateway.http.token_counts import TokenCounts
from tessera.gateway.outside.source import AskedOutside
from tessera.gateway.refusals import RequestError
from tessera.gateway.reserve.limits import Reserved
from tessera.gateway.settle.outside import end_outside
from tests.gateway.charging import (
    INPUT,
    OUTPUT,
    a_cost_limit,
    an_outside_model,
    paying,
    prices,
)
from tests.gateway.harness import (
    TENANT,
    RunningGateway,
    a_chosen_request,
    a_directory,
    a_gateway,
    a_model,
)

pytestmark = pytest.mark.anyio
SENDER = Identity(tenant=TENANT, key="ci")
MANY = 10**12
OUTSIDE_MONTH = "team-a/outside Month"
# By the cost of a provider: what a request may cost, with its template, and what it does.
MOST = 2 * ((1024 + len('{"model": "chat", "messages": []}')) * INPUT + 100 * OUTPUT)
COST = 2 * (7 * INPUT + 3 * OUTPUT)


@asynccontextmanager
async def outside(
    *limits: ChargeLimit | int, lent: tuple[ChargeLimit, ...] = (), **changes: Any
) -> AsyncIterator[RunningGateway]:
    fields = paying(*limits)
    tenant = replace(fields["tenants"][TENANT], outside=lent)
    fields = {**fields, "tenants": {TENANT: tenant}, **changes}
    async with a_gateway(a_directory(a_model(), **fields)) as gateway:
        yield gateway


async def reserve(gateway: RunningGateway, model: OfferedModel | None = None) -> Reserved:
    shape = RequestShape(model="chat", input_tokens=1, max_output_tokens=100, stream=True)
    chosen = a_chosen_request(SENDER, model or an_outside_model(), shape)
    return await gateway.admission.reservations.reserve(chosen)


def work(**changes: Any) -> KnownWork:
    fields = {
        "engines": 1,
        "end": ChargeEnd.ANSWER,
        "prompt": 1,
        "delivered": 3,
        "unseen": 0,
        "counted": TokenParts(input=7, output=3),
        "most_input": 10**6,
        "most_output": 100,
        "most_counted": 100,
    }
    return KnownWork(**{**fields, **changes})


def settle(gateway: RunningGateway, reserved: Reserved) -> dict[str, Any]:
    reservations = gateway.admission.reservations
    for charge in reserved.charges:
        charge.charge, _ = reservations.charges.price(charge, work())
    reservations.settle(reserved, input_tokens=7, output_tokens=3)
    return reserved.money_fields()


async def test_a_call_is_charged_its_price_and_costs_what_the_provider_bills() -> None:
    async with outside(MANY, lent=(a_cost_limit(MANY),)) as gateway:
        reserved = await reserve(gateway)
        assert reserved.charge is not None
        assert reserved.cost is not None
        assert (reserved.charge.reserved, reserved.cost.reserved) == (MOST // 2, MOST)
        fields = settle(gateway, reserved)
    assert (fields["charge_nanos"], fields["currency"]) == (COST // 2, "USD")
    assert (fields["cost_nanos"], fields["cost_currency"]) == (COST, "USD")
    paid = {scope: nanos for scope, _, nanos in fields["charges"] if scope != OTHER_MONTH}
    assert paid == {"team-a/charge-month": COST // 2, OUTSIDE_MONTH: COST}


async def test_of_a_call_that_runs_all_that_it_may_cost_is_recorded_with_the_accounts() -> None:
    async with outside(lent=(a_cost_limit(MANY),)) as gateway:
        reserved = await reserve(gateway)
        fields = reserved.money_fields(work())
    assert (fields["charge_nanos"], fields["cost_nanos"]) == (COST // 2, MOST)
    assert [(scope, nanos) for scope, _, nanos in fields["charges"]] == [(OUTSIDE_MONTH, MOST)]


async def test_what_a_bill_has_beside_tokens_is_part_of_the_cost_within_what_was_reserved() -> None:
    model = an_outside_model()
    assert model.outside is not None
    price = replace(model.outside.cost, search=NANO, max_searches=2)
    called = replace(model.outside, cost=price)
    async with outside() as gateway:
        reserved = await reserve(gateway, replace(model, outside=called))
        received = reserved.chosen.received
        asked = AskedOutside(
            reserved=reserved,
            identified=received.identified,
            holding=received.identified.holding,
            fields=reserved.chosen.summary,
            body=b"",
            outside=called,
            mark=b"",
            engines=1,
            counts=TokenCounts(input=7, output=3),
            extras=BilledExtras(searches=3),
        )
        _, is_estimate = end_outside(asked, ChargeEnd.ANSWER, gateway.admission.reservations, 0)
        fields = reserved.money_fields()
    assert (fields["charge_nanos"], fields["cost_nanos"]) == (COST // 2, COST + 2 * NANO)
    assert is_estimate, "the third search is not paid"


async def test_without_prices_and_limits_of_charges_the_cost_is_reserved_and_recorded() -> None:
    async with outside(lent=(a_cost_limit(MANY),), prices=prices(models=("other",))) as gateway:
        reserved = await reserve(gateway)
        assert reserved.charge is None
        assert reserved.cost is not None
        assert reserved.cost.reserved == MOST
        assert settle(gateway, reserved)["cost_nanos"] == COST


async def test_without_a_limit_of_basis_cost_the_cost_is_recorded_alone() -> None:
    async with outside() as gateway:
        reserved = await reserve(gateway, an_outside_model("EUR"))
        fields = settle(gateway, reserved)
        assert gateway.accounts.charges == {}
    assert (fields["cost_nanos"], fields["cost_currency"], fields["charges"]) == (COST, "EUR", ())


async def test_a_provider_that_bills_in_another_currency_than_the_limit_is_refused() -> None:
    async with outside(lent=(a_cost_limit(MANY),)) as gateway:
        with pytest.raises(RequestError) as error:
            await reserve(gateway, an_outside_model("EUR"))
    assert error.value.reason is RequestReason.PRICE_MISSING
    assert error.value.message == (
        "TenantBudget/team-a limits cost in USD, and ModelProvider/acme bills in EUR: write the "
        "cost of its models in USD, with spec.currency: USD."
    )


async def test_what_is_not_lent_refuses_a_call_at_once_and_takes_nothing_of_its_charges() -> None:
    async with outside(MANY, lent=(a_cost_limit(MOST - 1),)) as gateway:
        with pytest.raises(RequestError) as error:
            await reserve(gateway)
        lending = gateway.admission.reservations.charges.lending
        needs = {key.scope: nanos for key, nanos in lending.needs().items()}
        assert needs == {"team-a/charge-month": MOST // 2, OUTSIDE_MONTH: MOST}
        assert [lent.reserved for lent in lending._lent.values()] == [0, 0]
    assert error.value.reason is RequestReason.BUDGET_EXCEEDED
    assert error.value.message == (
        "TenantBudget/team-a limit outside Month: 0.004113999 USD for the month, 0.004113999 "
        "USD left of what the operator lent, needed 0.004114; retry in 30 s, or ask for a higher "
        "limit."
    )


async def test_a_sender_reads_nothing_of_what_is_lent_for_providers() -> None:
    async with outside(MANY, lent=(a_cost_limit(MANY),)) as gateway:
        await reserve(gateway)
        read = json.loads(await gateway.admission.reservations.charges.budget(SENDER))
    assert [each["limit"] for each in read["data"]] == ["charge-month"]


async def test_a_call_is_answered_once_more_is_lent() -> None:
    async with outside(lent=(a_cost_limit(MOST - 1),)) as gateway:
        with pytest.raises(RequestError):
            await reserve(gateway)
        tenant = paying()["tenants"][TENANT]
        raised = replace(tenant, outside=(a_cost_limit(MOST, generation=2),))
        gateway.admission.update(
            a_directory(a_model(), **{**paying(), "tenants": {TENANT: raised}})
        )
        reserved = await reserve(gateway)
        assert reserved.cost is not None
        assert reserved.cost.reserved == MOST
        assert gateway.admission.reservations.charges.lending.needs() == {}


async def test_an_account_that_no_request_uses_hears_of_a_lower_amount_and_says_so() -> None:
    lowered = replace(a_cost_limit(COST, generation=2), is_lowered=True)
    async with outside(lent=(lowered,)) as gateway:
        charges = gateway.admission.reservations.charges
        await gateway.accounts.borrow(BorrowRequest(charges=charges.renewal()))
        reported = reported_charges(charges.lending.answered())
    [account] = reported[LimitId(TENANT, "outside Month")].accounts
    assert (account.settled, account.lent, account.generation) == (0, 0, 2)
    assert gateway.accounts.as_json()[OUTSIDE_MONTH]["limit"] == COST


async def test_a_whole_answer_of_a_service_is_reserved_at_once_or_refused() -> None:
    model = a_model(max_model_len=4096)
    most = MOST // 2
    for limit, is_enough in ((most, True), (most - 1, False)):
        async with outside(limit) as gateway:
            shape = RequestShape(model="chat", input_tokens=1, max_output_tokens=100)
            chosen = a_chosen_request(SENDER, model, shape)
            if is_enough:
                reserved = await gateway.admission.reservations.reserve(chosen, whole=True)
                assert reserved.charge is not None
                assert (reserved.charge.reserved, reserved.charge.is_reduced) == (most, False)
            else:
                with pytest.raises(RequestError) as error:
                    await gateway.admission.reservations.reserve(chosen, whole=True)
                assert error.value.reason is RequestReason.BUDGET_EXCEEDED
