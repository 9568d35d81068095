"""Attacks on money: edits of budgets and prices, paths around it, purses of others."""

import asyncio
import json
import re
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import date
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tessera.api.price_list import PriceEntry, PriceList, PriceListSpec
from tessera.api.ref import Ref
from tessera.api.schema import crd
from tessera.domain.budget.raises import AmountRaise
from tessera.domain.charge.gateway_charges import STANDING_SECONDS
from tessera.domain.charge.price_book import PriceListBook, revised_book
from tessera.domain.charge.prices import RequestPrice, charge_of, most_charge
from tessera.domain.charge.scopes import ChargeLimit, MemberKind
from tessera.domain.charge.throttle import ThrottleTerms
from tessera.domain.gateway.directory import Directory
from tessera.domain.kinds.kinds import KINDS
from tessera.domain.observed.price_lists import ObservedPriceList
from tessera.gateway.paths import PATHS
from tessera.gateway.refusals import amount_text
from tessera.gateway.settle.settlement import GATEWAY_NAME
from tessera.gateway.store.store import GatewayStore
from tests.gateway.charging import INPUT, OUTPUT, a_charge_limit, paying, prices
from tests.gateway.course.paths import BODIES
from tests.gateway.harness import (
    CHAT,
    COMPLETION,
    DONE,
    END,
    ROLE,
    STREAM,
    TENANT,
    EngineCall,
    RunningGateway,
    ScriptedEngine,
    a_delta,
    a_directory,
    a_gateway,
    a_model,
    a_replica,
    an_api_key,
    event,
)
from tests.gateway.store.test_charge_accounts import START, ZONE

pytestmark = pytest.mark.anyio
# In the middle of a month, a day and an hour.
NOW = START + 10 * 86_400.0 + 12 * 3600.0 + 1800.0

# --- gateways whose budgets and prices are edited

CHARGE = 7 * INPUT + 3 * OUTPUT
SMALL = {**CHAT, "max_tokens": 3}
BUDGET = "budget_exceeded"


def needed(tokens: int) -> int:
    """Return what a chat reserves: a token a byte, and those of a template."""
    return (len(json.dumps(SMALL)) + 1024) * INPUT + tokens * OUTPUT


def money_for(requests: int, **changes: Any) -> ChargeLimit:
    """Return a limit under which so many small requests are answered, one after the other."""
    fields = {"window": "Hour", "name": "l", "time_zone": ZONE, **changes}
    return a_charge_limit(needed(3) + (requests - 1) * CHARGE, **fields)


async def answering(call: EngineCall) -> None:
    await call.whole(COMPLETION)


Edit = Callable[..., Directory]


@asynccontextmanager
async def a_spent_gateway(
    limit: ChargeLimit, **changes: Any
) -> AsyncIterator[tuple[RunningGateway, Edit, list[EngineCall]]]:
    """Run a gateway at which the limit is spent by one request."""
    async with ScriptedEngine(answering) as engine:

        def edited(*limits: ChargeLimit, **fields: Any) -> Directory:
            model = a_model(a_replica(engine.address), **changes)
            return a_directory(model, **{**paying(*limits), **fields})

        async with a_gateway(edited(limit)) as gateway:
            began = time.monotonic()
            gateway.accounts.unix_time = lambda: NOW + time.monotonic() - began
            assert (await gateway.post(SMALL)).status == 200
            refused = await gateway.post(SMALL)
            assert (refused.status, refused.error["code"]) == (429, BUDGET)
            yield gateway, edited, engine.calls


@pytest.mark.parametrize("days", [30, -1 / 12])
async def test_a_gateway_whose_clock_lies_serves_the_windows_of_the_database(days: float) -> None:
    limit = money_for(2)
    async with ScriptedEngine(answering) as engine:
        model = a_model(a_replica(engine.address))
        async with a_gateway(a_directory(model, **paying(limit))) as gateway:
            gateway.accounts.unix_time = lambda: NOW - days * 86_400
            answers = [await gateway.post(SMALL) for _ in range(4)]
    assert [each.status for each in answers] == [200, 200, 429, 429]
    assert 1 <= int(answers[-1].headers["retry-after"]) <= 3600


async def test_of_a_month_that_came_back_the_account_is_as_it_was() -> None:
    limit = money_for(1, window="Month")
    async with a_spent_gateway(limit) as (gateway, _, _):
        clock_of = gateway.accounts.unix_time
        gateway.accounts.unix_time = lambda: clock_of() + 32 * 86_400
        await asyncio.sleep(STANDING_SECONDS)
        later = [(await gateway.post(SMALL)).status for _ in range(2)]
        gateway.accounts.unix_time = clock_of
        await asyncio.sleep(STANDING_SECONDS)
        back = [(await gateway.post(SMALL)).status for _ in range(2)]
    assert (later, back) == ([200, 429], [429, 429])


LIMIT = money_for(1)
SAME = {
    "deleted and made again": replace(LIMIT, generation=10**12),
    "an amount in other digits": replace(LIMIT, generation=2),
    "a throttle at its end": replace(LIMIT, generation=2, throttle=ThrottleTerms(100)),
}
MONTH = replace(LIMIT, generation=2, name="m", window="Month")
ANOTHER = {
    "another name": MONTH,
    "a day": replace(MONTH, name=LIMIT.name, window="Day"),
    "each key": replace(MONTH, kind=MemberKind.KEY),
    "a model": replace(MONTH, kind=MemberKind.MODEL, member="chat"),
}


@pytest.mark.parametrize("limit", SAME.values(), ids=SAME)
async def test_money_that_is_spent_stays_spent_after_an_edit(limit: ChargeLimit) -> None:
    async with a_spent_gateway(LIMIT) as (gateway, edited, _):
        for limits in ((), (limit,)):
            gateway.admission.update(edited(*limits))
        refused = await gateway.post(SMALL)
        raised = replace(limit, amount=limit.amount + CHARGE)
        gateway.admission.update(edited(replace(raised, generation=limit.generation + 1)))
        served = await gateway.post(SMALL)
    assert (refused.status, refused.error["code"]) == (429, BUDGET)
    assert served.status == 200


@pytest.mark.parametrize("limit", ANOTHER.values(), ids=ANOTHER)
async def test_money_that_is_spent_stays_spent_under_another_limit(
    limit: ChargeLimit, tmp_path: Path
) -> None:
    store = await GatewayStore.open(f"sqlite:///{tmp_path}/store.db")
    async with a_spent_gateway(replace(LIMIT, window="Month")) as (gateway, edited, _):
        await store.record(gateway.records)
        gateway.accounts.exchange = partial(store.exchange, GATEWAY_NAME)
        gateway.admission.update(edited(limit))
        refused = await gateway.post(SMALL)
        raised = replace(limit, amount=limit.amount + CHARGE, generation=3)
        gateway.admission.update(edited(raised))
        served = await gateway.post(SMALL)
    await store.close()
    assert (refused.status, refused.error["code"]) == (429, BUDGET)
    assert served.status == 200


async def test_another_currency_needs_a_price_and_its_way_back_gives_nothing() -> None:
    async with a_spent_gateway(LIMIT) as (gateway, edited, calls):
        statuses = []
        for currency in ("EUR", "USD"):
            limit = replace(LIMIT, generation=LIMIT.generation + 1, currency=currency)
            known = paying(limit)
            tenant = replace(known["tenants"][TENANT], currency=currency)
            gateway.admission.update(edited(limit, tenants={TENANT: tenant}))
            answer = await gateway.post(SMALL)
            statuses.append((answer.status, answer.error["code"]))
        # An engine may count a prompt, and answers only the one that was paid.
        assert [call.path for call in calls if call.path != "/tokenize"] == ["/v1/chat/completions"]
    assert statuses == [(403, "price_missing"), (429, BUDGET)]


async def test_a_raise_is_served_at_once_and_not_after_its_end() -> None:
    async with a_spent_gateway(LIMIT) as (gateway, edited, _):
        until = gateway.accounts.unix_time() + 1.5
        raises = (AmountRaise(2 * CHARGE, until),)
        gateway.admission.update(edited(replace(LIMIT, raises=raises)))
        during = [(await gateway.post(SMALL)).status for _ in range(2)]
        await asyncio.sleep(until - gateway.accounts.unix_time())
        await asyncio.sleep(STANDING_SECONDS)
        after = await gateway.post(SMALL)
        async with gateway.client.get(f"{gateway.url}/v1/budget") as response:
            [left] = (await response.json())["data"]
    assert (during, after.status) == ([200, 200], 429)
    assert Decimal(left["left"]) == Decimal(LIMIT.amount - 3 * CHARGE) / 10**9
    assert (left["amount"], left["spent"]) == (amount_text(LIMIT.amount), "0.000111")


# --- prices that change or are not there


def listed(*changes: Mapping[str, Any], book: PriceListBook, at: float) -> PriceListBook:
    """Return a book once these lists of one entry each are seen at a time."""
    lists = []
    for number, fields in enumerate(changes):
        entry = {"from_": date(2026, 1, 1), "models": ("*",), "input": "1", "output": "10"}
        spec = PriceListSpec(entries=(PriceEntry(**{**entry, **fields}),))
        lists.append(ObservedPriceList(ref=Ref("", f"list-{number}"), spec=spec))
    return revised_book(book, lists, at)


def at_times(book: PriceListBook, *seconds: float, tenant: str = TENANT) -> list[int | None]:
    known = (book.find("USD", tenant, ("chat",), each) for each in seconds)
    return [None if price is None else price.output // 10**9 for price in known]


def test_a_price_that_is_edited_counts_after_a_minute_and_never_for_what_was() -> None:
    first = listed({}, book=PriceListBook(), at=NOW)
    edited = listed({"output": "80"}, book=first, at=NOW)
    deleted = listed(book=edited, at=NOW + 100)
    again = listed({"output": "5", "from_": date(2025, 1, 1)}, book=deleted, at=NOW + 110)
    times = (NOW - 90, NOW, NOW + 59.9, NOW + 60, NOW + 159.9, NOW + 160, NOW + 169.9, NOW + 170)
    # The oldest version is forgotten once the next one counts.
    assert at_times(edited, *times[:4]) == [10, 10, 10, 80]
    assert at_times(deleted, *times[3:6]) == [80, 80, None]
    assert at_times(again, *times[3:]) == [80, 80, None, None, 5]


@pytest.mark.parametrize("dear_first", [True, False])
def test_no_tenant_has_the_price_of_another_and_of_two_lists_the_first_holds(
    dear_first: bool,
) -> None:
    lists: list[Mapping[str, Any]] = [
        {"output": "1", "tenants": ("team-b",)},
        {"output": "9"},
        {"output": "2"},
    ]
    book = listed(*(lists[::-1] if dear_first else lists), book=PriceListBook(), at=0.0)
    assert at_times(book, NOW) == [2 if dear_first else 9]
    assert at_times(book, NOW, tenant="team-b") == [1]


async def test_a_stream_keeps_the_price_at_which_it_began() -> None:
    dear = asyncio.Event()
    used = {"prompt_tokens": 7, "completion_tokens": 1500, "total_tokens": 1507}

    async def stream(call: EngineCall) -> None:
        await call.begin()
        await call.chunk(ROLE + b"".join([a_delta("word")] * 500))
        await dear.wait()
        for _ in range(10):
            await call.chunk(b"".join([a_delta("word")] * 100))
        await call.chunk(END + event({"id": "c", "model": "chat", "choices": [], "usage": used}))
        await call.chunk(DONE)
        await call.finish()

    async with ScriptedEngine(stream) as engine:
        model = a_model(a_replica(engine.address), max_model_len=4096)
        known = paying(10**12)
        async with a_gateway(a_directory(model, **known)) as gateway:
            running = asyncio.create_task(gateway.post(STREAM))
            await gateway.wait_for_tokens(500)
            for book in (prices(output=Decimal(80)), PriceListBook()):
                gateway.admission.update(a_directory(model, **{**known, "prices": book}))
            dear.set()
            answer = await running
            record = await gateway.record()
            refused = await gateway.post(STREAM)
    assert answer.body.count(b"word") == 1500
    assert record.charge_nanos == 7 * INPUT + 1500 * OUTPUT
    assert (refused.status, refused.error["code"]) == (403, "price_missing")
    assert refused.headers.get("x-should-retry") != "true"


@pytest.mark.parametrize(
    "limits", [(), (a_charge_limit(1, kind=MemberKind.SERVICE, member="a/b"),)]
)
async def test_without_a_limit_that_holds_nothing_is_refused_for_a_price(
    limits: tuple[ChargeLimit, ...],
) -> None:
    async with ScriptedEngine(answering) as engine:
        known = {**paying(*limits), "prices": PriceListBook()}
        async with a_gateway(a_directory(a_model(a_replica(engine.address)), **known)) as gateway:
            answer = await gateway.post(SMALL)
            record = await gateway.record()
    assert (answer.status, "x-tessera-charge" in answer.headers) == (200, False)
    assert (record.charge_nanos, record.price_list) == (None, None)


HALF = RequestPrice(
    price_list="p", currency="USD", input=0, cached_input=0, output=500_000, reasoning=500_000
)


@pytest.mark.parametrize(
    ("tokens", "charged", "reserved"), [(1, 0, 1), (2, 1, 1), (3, 2, 2), (5, 2, 3), (7, 4, 4)]
)
def test_half_a_nano_is_rounded_once_to_even_and_reserved_whole(
    tokens: int, charged: int, reserved: int
) -> None:
    charge = charge_of(HALF, input_tokens=7, cached=0, output=tokens, reasoning=0)
    assert charge == charged
    assert most_charge(HALF, input_tokens=7, output=tokens) == reserved


@pytest.mark.parametrize(
    "amount",
    ["-1", "NaN", "Infinity", "1e3", "1_000", "\u0663", " 8", "+8", "", 8, "0x8", "9" * 20],
)
def test_a_price_or_a_limit_that_is_no_plain_amount_is_refused(amount: Any) -> None:
    kind = next(kind for kind in KINDS if kind.model is PriceList)
    (version,) = crd(kind)["spec"]["versions"]
    spec = version["schema"]["openAPIV3Schema"]["properties"]["spec"]["properties"]
    entry = spec["entries"]["items"]["properties"]
    for name in ("input", "cachedInput", "output", "reasoning", "perRequest", "perBatchRow"):
        schema = entry[name]
        assert schema["type"] == "string"
        assert not (isinstance(amount, str) and re.search(schema["pattern"], amount)), name
        assert re.search(schema["pattern"], "0.333333333")


# --- models for those who pay


async def test_a_limit_that_holds_for_no_request_does_not_open_a_model() -> None:
    elsewhere = a_charge_limit(10**12, kind=MemberKind.SERVICE, member="team-o/other")
    async with ScriptedEngine(answering) as engine:
        model = a_model(
            a_replica(engine.address),
            service=Ref("team-o", "chat"),
            tenant="team-o",
            tenants=frozenset({TENANT}),
            require_charge=True,
        )
        seen = []
        for limits in ((), (elsewhere,), (elsewhere, a_charge_limit(10**12))):
            async with a_gateway(a_directory(model, **paying(*limits))) as gateway:
                answer = await gateway.post(SMALL)
                async with gateway.client.get(f"{gateway.url}/v1/models") as response:
                    listed_models = (await response.json())["data"]
                seen.append((answer.status, len(listed_models)))
    assert seen == [(404, 0), (404, 0), (200, 1)]


async def test_an_owner_needs_no_limit_for_its_own_model() -> None:
    async with ScriptedEngine(answering) as engine:
        model = a_model(a_replica(engine.address), require_charge=True)
        async with a_gateway(a_directory(model, **paying())) as gateway:
            assert (await gateway.post(SMALL)).status == 200


# --- paths

FREE = {"/tokenize", "/detokenize", "/v1/messages/count_tokens"}


async def test_without_money_no_path_reaches_an_engine_that_computes() -> None:
    async with ScriptedEngine(answering) as engine:
        model = a_model(a_replica(engine.address))
        async with a_gateway(a_directory(model, **paying(0))) as gateway:
            seen = {}
            for path in PATHS:
                answer = await gateway.post(BODIES[path], path)
                seen[path] = answer.status
                assert answer.status == 200 or answer.error["code"] == BUDGET, path
            reached = {call.path for call in engine.calls}
            around = (
                "//v1/chat/completions",
                "/v1/chat/completions/",
                "/v1/chat/completions%2e",
                "/v1/Chat/Completions",
                "/v1/chat%2fcompletions",
            )
            statuses = [(await gateway.post(SMALL, path)).status for path in around]
            assert {call.path for call in engine.calls} == reached
            assert all(account.lent == 0 for account in gateway.accounts.charges.values())
            charged = [record.charge_nanos for record in gateway.records if record.status == 200]
    assert {path for path, status in seen.items() if status == 200} == FREE == reached
    assert set(statuses) <= {404, 429}
    assert not any(charged)


@pytest.mark.parametrize(
    ("usage", "charge"),
    [
        ({"prompt_tokens": 7, "total_tokens": 7}, 7 * INPUT),
        ({"total_tokens": 7}, 7 * INPUT),
        ({"prompt_tokens": 7, "completion_tokens": 10**6}, 7 * INPUT),
        (None, None),
    ],
)
async def test_embeddings_are_charged_for_what_they_read(usage: Any, charge: int | None) -> None:
    async def embed(call: EngineCall) -> None:
        await call.whole({"object": "list", "data": [], "usage": usage})

    async with ScriptedEngine(embed) as engine:
        model = a_model(a_replica(engine.address))
        async with a_gateway(a_directory(model, **paying(10**12))) as gateway:
            answer = await gateway.post({"model": "chat", "input": "hello"}, "/v1/embeddings")
            record = await gateway.record()
    assert answer.status == 200
    assert record.charge_nanos
    assert charge in (None, record.charge_nanos)


# --- other purses, and headers that lie


async def test_a_budget_shows_its_own_sender_alone() -> None:
    limits = (a_charge_limit(10**12, name="keys", kind=MemberKind.KEY),)
    keys = [an_api_key(), an_api_key("tsk-other", name="other", team="ops")]
    async with ScriptedEngine(answering) as engine:
        model = a_model(a_replica(engine.address))
        async with a_gateway(a_directory(model, keys=keys, **paying(*limits))) as gateway:
            await gateway.post(SMALL, authorization="Bearer tsk-other")
            requests = [
                ("GET", "/v1/budget?key=other&team=ops&tenant=team-c&user=*", {}),
                ("GET", "/v1/budget", {"x-tessera-key": "other", "x-tessera-tenant": "team-c"}),
                ("GET", "/v1/budget/other", {}),
                ("POST", "/v1/budget", {}),
                ("GET", "/v1/budget", {"authorization": "Bearer tsk-none"}),
            ]
            seen = []
            for method, path, headers in requests:
                url = gateway.url + path
                async with gateway.client.request(method, url, headers=headers) as response:
                    seen.append((response.status, await response.text()))
    assert [status for status, _ in seen] == [200, 200, 404, 405, 401]
    for _, text in seen[:2]:
        [row] = json.loads(text)["data"]
        assert (row["scope"], row["spent"]) == ("team-a/keys/Key/ci", "0")
    assert not any("other" in text.replace("/v1/budget/other", "") for _, text in seen)


async def test_what_clients_and_engines_say_of_charges_is_not_passed_on() -> None:
    lies = (
        b"x-tessera-charge: -5 USD\r\nx-tessera-charge: 0 USD\r\nx-should-retry: true\r\n"
        b"retry-after: 0\r\nset-cookie: a=b\r\n"
    )
    usage = {
        "prompt_tokens": 7,
        "completion_tokens": 3,
        "cost": -1,
        "cost_details": {"cost": 10**9},
    }

    async def lie(call: EngineCall) -> None:
        body = json.dumps({**COMPLETION, "usage": usage}).encode()
        head = b"HTTP/1.1 200 X\r\ncontent-type: application/json\r\n%bcontent-length: %d\r\n\r\n"
        await call.send(head % (lies, len(body)) + body)

    async with ScriptedEngine(lie) as engine:
        model = a_model(a_replica(engine.address))
        async with a_gateway(a_directory(model, **paying(10**12))) as gateway:
            headers = {
                "x-tessera-charge": "0 USD",
                "x-tessera-class": "Evaluation",
                "x-tessera-price-list": "free",
                "x-should-retry": "true",
            }
            answer = await gateway.post(SMALL, **headers)
            record = await gateway.record()
    assert [v for k, v in answer.headers.items() if k.lower() == "x-tessera-charge"] == [
        "0.000037 USD"
    ]
    assert not {"set-cookie", "x-should-retry", "retry-after"} & {k.lower() for k in answer.headers}
    assert (record.charge_nanos, record.service_class) == (CHARGE, "Interactive")
