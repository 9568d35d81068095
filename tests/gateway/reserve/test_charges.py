"""The money of requests: reserved, topped up, charged, refused."""

import asyncio
import json
import math
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

import pytest

from tessera.api.rate_limits import PeriodLimits, RateLimitsSpec
from tessera.domain.budget.raises import AmountRaise
from tessera.domain.charge import gateway_charges
from tessera.domain.charge.price_book import PriceListBook
from tessera.domain.charge.reports import reported_charges
from tessera.domain.charge.scopes import OTHER_MONTH, ChargeLimit, MemberKind
from tessera.domain.charge.throttle import ThrottleTerms
from tessera.domain.limits.account import BorrowRequest
from tessera.domain.usage.statement import month_of
from tessera.gateway.reserve import charges
from tests.gateway.charging import INPUT, OUTPUT, a_charge_limit, paying, prices
from tests.gateway.harness import (
    CHAT,
    COMPLETION,
    DONE,
    END,
    ROLE,
    STREAM,
    TENANT,
    USAGE,
    Answer,
    EngineCall,
    RunningGateway,
    ScriptedEngine,
    a_delta,
    a_directory,
    a_gateway,
    a_model,
    a_replica,
    an_api_key,
)
from world.testing import eventually

pytestmark = pytest.mark.anyio
MANY = 10**12
# Of COMPLETION and of USAGE.
CHARGE = 7 * INPUT + 3 * OUTPUT


async def answering(call: EngineCall) -> None:
    if json.loads(call.body).get("stream"):
        await call.stream(ROLE, a_delta("one"), a_delta("two"), a_delta("three"), END, USAGE, DONE)
    else:
        await call.whole(COMPLETION)


def directory(address: str, *limits: ChargeLimit | int, **changes: Any) -> Any:
    model = a_model(a_replica(address), max_model_len=changes.pop("context", 4096))
    return a_directory(model, **{**paying(*limits), **changes})


async def test_an_answer_says_what_it_is_charged_and_its_record_does() -> None:
    async with (
        ScriptedEngine(answering) as engine,
        a_gateway(directory(engine.address, MANY)) as gateway,
    ):
        answer = await gateway.post({**CHAT, "max_tokens": 20})
        record = await gateway.record()
    assert (answer.status, answer.headers["x-tessera-charge"]) == (200, "0.000037 USD")
    assert (record.charge_nanos, record.currency) == (CHARGE, "USD") == (37_000, "USD")
    assert record.price_list is not None
    assert record.price_list.startswith("standard@")
    [(scope, _, nanos)] = record.charges
    assert (scope, nanos, record.owner) == ("team-a/charge-month", CHARGE, "team-a")
    assert record.service_class == "Interactive"


async def test_a_stream_shows_its_cost_where_usage_is_asked() -> None:
    async with (
        ScriptedEngine(answering) as engine,
        a_gateway(directory(engine.address, MANY)) as gateway,
    ):
        answer = await gateway.post({**STREAM, "stream_options": {"include_usage": True}})
        record = await gateway.record()
    *_, usage, _ = answer.events
    assert json.loads(usage.removeprefix(b"data: "))["usage"]["cost"] == 0.000037
    assert record.charge_nanos == CHARGE


async def test_a_price_without_a_limit_is_charged_and_nothing_is_reserved() -> None:
    async with (
        ScriptedEngine(answering) as engine,
        a_gateway(directory(engine.address)) as gateway,
    ):
        answer = await gateway.post(CHAT)
        record = await gateway.record()
        assert gateway.accounts.charges == {}
    assert answer.headers["x-tessera-charge"] == "0.000037 USD"
    assert (record.charge_nanos, record.charges) == (CHARGE, ())


def reserved(tokens: int, prompt: int = 0) -> int:
    return prompt * INPUT + tokens * OUTPUT


def bound(body: object) -> int:
    """Return the most tokens of a chat: a token a byte, and those of a template."""
    return len(json.dumps(body)) + 1024


async def test_what_is_no_stream_gets_as_much_as_is_left_and_a_header_says_so() -> None:
    body = {**CHAT, "max_tokens": 2000}
    left = reserved(1500, bound(body))
    async with (
        ScriptedEngine(answering) as engine,
        a_gateway(directory(engine.address, left)) as gateway,
    ):
        answer = await gateway.post(body)
        await gateway.record()
    assert (answer.status, answer.headers["x-tessera-max-tokens"]) == (200, "1500")
    assert engine.calls[0].json["max_tokens"] == 1500


async def test_a_maximum_is_sent_where_the_client_gives_none() -> None:
    async with (
        ScriptedEngine(answering) as engine,
        a_gateway(directory(engine.address, MANY)) as gateway,
    ):
        answer = await gateway.post(CHAT)
        await gateway.record()
    assert "x-tessera-max-tokens" not in answer.headers
    assert engine.calls[0].json["max_tokens"] == 4096 - 23


async def test_less_than_a_usual_answer_is_refused() -> None:
    body = {**CHAT, "max_tokens": 2000}
    async with (
        ScriptedEngine(answering) as engine,
        a_gateway(directory(engine.address, reserved(1023, bound(body)))) as gateway,
    ):
        refused = await gateway.post(body)
        record = await gateway.record()
        [need] = gateway.admission.reservations.charges.lending.needs().values()
        assert need == 11_350_000
        short = await gateway.post({**body, "max_tokens": 1000})
    assert (refused.status, refused.error["code"]) == (429, "budget_exceeded")
    assert refused.error["type"] == "insufficient_quota"
    assert refused.headers["x-should-retry"] == "false"
    assert 0 < int(refused.headers["retry-after"]) <= 31 * 86_400
    assert refused.error["message"].startswith(
        "TenantBudget/team-a limit charge-month: 0.01134 USD for the month, 0.01134 USD left, "
        "needed 0.01135; retry in "
    )
    assert (record.reason, record.phase, record.charge_nanos) == (
        "BudgetExceeded",
        "Refused",
        None,
    )
    assert short.status == 200


def many(words: int) -> list[bytes]:
    return [a_delta("word") for _ in range(words)]


async def test_a_stream_reserves_more_while_it_runs() -> None:
    used = {"prompt_tokens": 7, "completion_tokens": 1500, "total_tokens": 1507}
    events = [ROLE, *many(1500), END, a_usage(used), DONE]

    async def stream(call: EngineCall) -> None:
        await call.begin()
        for number in range(0, len(events), 50):
            await call.chunk(b"".join(events[number : number + 50]))
            await asyncio.sleep(0)
        await call.finish()

    async with (
        ScriptedEngine(stream) as engine,
        a_gateway(directory(engine.address, MANY)) as gateway,
    ):
        answer = await gateway.post({**STREAM, "stream_options": {"include_usage": True}})
        record = await gateway.record()
    assert answer.body.count(b"word") == 1500
    assert record.charge_nanos == 7 * INPUT + 1500 * OUTPUT
    assert (record.phase, record.estimated) == ("Completed", False)


async def test_a_stream_pays_in_each_month_what_it_reserved_there() -> None:
    used = {"prompt_tokens": 7, "completion_tokens": 1500, "total_tokens": 1507}
    begins = month_of(time.time() + 70 * 86_400)

    async def stream(call: EngineCall) -> None:
        await call.begin()
        await call.chunk(b"".join([ROLE, *many(500)]))
        await asyncio.sleep(0)
        gateway.accounts.unix_time = lambda: begins + 5.0
        for _ in range(10):
            await call.chunk(b"".join(many(100)))
            await asyncio.sleep(0.01)
        await call.chunk(b"".join([END, a_usage(used), DONE]))
        await call.finish()

    async with (
        ScriptedEngine(stream) as engine,
        a_gateway(directory(engine.address, MANY)) as gateway,
    ):
        gateway.accounts.unix_time = lambda: begins - 5.0
        await gateway.post(STREAM)
        record = await gateway.record()
    assert record.charge_nanos == 7 * INPUT + 1500 * OUTPUT
    first, second, *months = record.charges
    before = first[2]
    assert reserved(1000) < before < reserved(1200)
    assert months == [(OTHER_MONTH, first[1], before), (OTHER_MONTH, begins, second[2])]
    assert before + second[2] == record.charge_nanos


def a_usage(used: dict[str, int]) -> bytes:
    event = {"id": "chatcmpl-0", "model": "chat", "choices": [], "usage": used}
    return b"data: " + json.dumps(event).encode() + b"\n\n"


async def test_a_stream_ends_with_a_reason_where_its_money_does() -> None:
    body = {**STREAM, "stream_options": {"include_usage": True}}

    async def stream(call: EngineCall) -> None:
        await call.begin()
        await call.chunk(ROLE)
        # Until the gateway closes the connection.
        while True:
            await call.chunk(a_delta("word"))
            await asyncio.sleep(0)

    left = reserved(1300, bound(body))
    async with (
        ScriptedEngine(stream) as engine,
        a_gateway(directory(engine.address, left)) as gateway,
    ):
        answer = await gateway.post(body)
        record = await gateway.record()
        async with asyncio.timeout(10):
            await engine.calls[0].gone.wait()
        [account] = gateway.accounts.charges.values()
    *_, finish, usage, done = answer.events
    assert answer.status == 200
    assert answer.body.count(b"word") == 1300
    assert json.loads(finish.removeprefix(b"data: "))["choices"] == [
        {"index": 0, "delta": {}, "logprobs": None, "finish_reason": "length"}
    ]
    last = json.loads(usage.removeprefix(b"data: "))
    assert last["x_tessera_reason"] == "BudgetExceeded"
    assert last["id"] == "chatcmpl-0"
    assert done == DONE
    assert record.charge_nanos is not None
    assert last["usage"]["cost"] == record.charge_nanos / 1e9
    assert record.charge_nanos <= left
    assert (record.phase, record.reason, record.status) == ("Aborted", "BudgetExceeded", 200)
    assert account.settled + account.lent <= left


async def test_a_sender_sees_what_its_limits_leave() -> None:
    limits = (
        a_charge_limit(MANY),
        a_charge_limit(10**9, name="keys", window="Day", kind=MemberKind.KEY),
        a_charge_limit(10**9, name="chat", kind=MemberKind.MODEL, member="chat"),
    )
    async with ScriptedEngine(answering) as engine:
        model = a_model(a_replica(engine.address), max_model_len=4096)
        requests = RateLimitsSpec(requests=PeriodLimits(per_day=3))
        key = an_api_key(limits=requests)
        async with a_gateway(a_directory(model, keys=(key,), **paying(*limits))) as gateway:
            before = await left_of(gateway)
            await gateway.post(CHAT)
            after = await left_of(gateway)
            async with gateway.client.get(f"{gateway.url}/v1/budget") as refused:
                assert refused.status == 429
    assert [(limit["limit"], limit["window"], limit["left"]) for limit in before] == [
        ("charge-month", "Month", "1000"),
        ("keys", "Day", "1"),
    ]
    assert [(limit["spent"], limit["left"]) for limit in after] == [
        ("0.000037", "999.999963"),
        ("0.000037", "0.999963"),
    ]
    assert [limit["scope"] for limit in after] == ["team-a/charge-month", "team-a/keys/Key/ci"]


async def test_a_sender_sees_what_requests_at_other_gateways_were_charged(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(gateway_charges, "STANDING_SECONDS", 0.0)
    async with (
        ScriptedEngine(answering) as engine,
        a_gateway(directory(engine.address, MANY)) as gateway,
    ):
        assert (await gateway.post(CHAT)).status == 200
        lending = gateway.admission.reservations.charges.lending
        # It gives back what it has ahead, and is not asked for any more.
        later = time.monotonic() + 2 * gateway_charges.AHEAD_SECONDS
        await gateway.accounts.borrow(BorrowRequest(charges=lending.renewal(later)))
        [account] = gateway.accounts.charges.values()
        account.record("another gateway", CHARGE)
        [limit] = await left_of(gateway)
    assert (limit["spent"], limit["left"]) == ("0.000074", "999.999926")


async def left_of(gateway: RunningGateway) -> Any:
    async with gateway.client.get(f"{gateway.url}/v1/budget") as response:
        assert response.status == 200
        return (await response.json())["data"]


async def test_without_limits_a_sender_has_no_budget_and_nothing_is_charged() -> None:
    async with ScriptedEngine(answering) as engine:
        model = a_model(a_replica(engine.address))
        async with a_gateway(a_directory(model)) as gateway:
            assert await left_of(gateway) == []
            answer = await gateway.post(CHAT)
            record = await gateway.record()
    assert "x-tessera-charge" not in answer.headers
    assert (record.charge_nanos, record.price_list, record.owner) == (None, None, None)


async def test_of_64_requests_against_money_for_one_only_one_is_admitted() -> None:
    body = {**CHAT, "max_tokens": 1000}
    goes_on = asyncio.Event()

    async def wait(call: EngineCall) -> None:
        await goes_on.wait()
        usage = {"prompt_tokens": bound(body), "completion_tokens": 1000}
        await call.whole({**COMPLETION, "usage": usage})

    limit = reserved(1000, bound(body))
    async with (
        ScriptedEngine(wait) as engine,
        a_gateway(directory(engine.address, limit)) as gateway,
    ):
        requests = [asyncio.create_task(gateway.post(body)) for _ in range(64)]
        await gateway.wait_for_in_flight(1)
        goes_on.set()
        answers = await asyncio.gather(*requests)
        [account] = gateway.accounts.charges.values()
    assert sorted(answer.status for answer in answers) == [200] + [429] * 63
    assert (account.settled + account.lent, len(engine.calls)) == (limit, 1)


async def test_what_was_lent_is_spent_without_the_store_and_then_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(charges, "ACCOUNT_SECONDS", 1.2)
    async with (
        ScriptedEngine(answering) as engine,
        a_gateway(directory(engine.address, MANY)) as gateway,
    ):
        assert (await gateway.post({**CHAT, "max_tokens": 30})).status == 200
        gateway.accounts.lends_charges = False
        # What the first one gave back is enough for the second.
        assert (await gateway.post({**CHAT, "max_tokens": 3})).status == 200
        refused = await gateway.post({**CHAT, "max_tokens": 4000})
        assert (refused.status, refused.error["code"]) == (503, "budget_unavailable")
        gateway.accounts.lends_charges = True
        assert (await gateway.post({**CHAT, "max_tokens": 4000})).status == 200


OTHER = {**CHAT, "max_tokens": 1400, "user": "other"}


@dataclass(kw_only=True)
class Waiting:
    """A stream that needs what a request at another engine has reserved."""

    gateway: RunningGateway
    engine: ScriptedEngine
    goes_on: asyncio.Event
    other: asyncio.Task[Answer]
    stream: asyncio.Task[Answer]


@asynccontextmanager
async def a_waiting_stream() -> AsyncIterator[Waiting]:
    goes_on = asyncio.Event()
    used = {"prompt_tokens": 7, "completion_tokens": 1300, "total_tokens": 1307}

    async def both(call: EngineCall) -> None:
        if "other" in call.body.decode():
            await goes_on.wait()
            await call.whole(COMPLETION)
            return
        await call.begin()
        await call.chunk(ROLE)
        for _ in range(1300):
            await call.chunk(a_delta("word"))
        # A stream that has ended does not wait: whether its client leaves makes no difference.
        await goes_on.wait()
        await call.chunk(END + a_usage(used) + DONE)
        await call.finish()

    limit = reserved(1400 + 1100, bound(OTHER) + bound(STREAM))
    async with (
        ScriptedEngine(both) as engine,
        a_gateway(directory(engine.address, limit)) as gateway,
    ):
        other = asyncio.create_task(gateway.post(OTHER))
        await gateway.wait_for_in_flight(1)
        stream = asyncio.create_task(gateway.post(STREAM))

        async def holds() -> None:
            running, _ = gateway.app.running(2)
            assert max((each.output_tokens for each in running), default=0) > 1100

        await eventually(holds)
        assert not stream.done()
        yield Waiting(gateway=gateway, engine=engine, goes_on=goes_on, other=other, stream=stream)
        assert gateway.held_bytes == 0
        [account] = gateway.accounts.charges.values()
        assert account.settled + account.lent <= limit


async def test_a_stream_whose_client_leaves_while_it_waits_pays_what_is_reserved_at_most() -> None:
    async with a_waiting_stream() as waiting:
        gateway = waiting.gateway
        waiting.stream.cancel()
        record = await gateway.take_record()
        assert record.reason == "ClientGone"
        assert record.charge_nanos is not None
        assert 1100 * OUTPUT < record.charge_nanos <= reserved(1100, bound(STREAM))
        waiting.goes_on.set()
        assert (await waiting.other).status == 200
        await gateway.record()


async def test_a_top_up_waits_for_what_others_leave_and_no_part_is_lost() -> None:
    async with a_waiting_stream() as waiting:
        gateway = waiting.gateway
        waiting.goes_on.set()
        assert (await waiting.other).status == 200
        answer = await waiting.stream
    assert answer.body.count(b"word") == 1300
    assert answer.body.endswith(DONE)
    assert {(record.phase, record.reason) for record in gateway.records} == {
        ("Completed", "OnlyReplica")
    }


async def test_a_model_that_requires_charges_is_offered_to_tenants_with_a_limit_alone() -> None:
    async with ScriptedEngine(answering) as engine:
        model = a_model(
            a_replica(engine.address),
            tenant="team-o",
            tenants=frozenset({TENANT}),
            require_charge=True,
        )
        for limits, status in (((), 404), ((MANY,), 200)):
            async with a_gateway(a_directory(model, **paying(*limits))) as gateway:
                assert (await gateway.post(CHAT)).status == status
                async with gateway.client.get(f"{gateway.url}/v1/models") as response:
                    listed = (await response.json())["data"]
                assert len(listed) == (status == 200)


async def test_a_limit_without_a_price_names_the_entry_to_write() -> None:
    async with ScriptedEngine(answering) as engine:
        model = a_model(a_replica(engine.address))
        known = {**paying(MANY), "prices": PriceListBook()}
        async with a_gateway(a_directory(model, **known)) as gateway:
            refused = await gateway.post(CHAT)
    assert (refused.status, refused.error["code"]) == (403, "price_missing")
    assert refused.error["message"] == (
        "TenantBudget/team-a limits charges (limit charge-month), and no PriceList has a price of "
        "the model `chat` for it: add an entry with models: [chat] and tenants: [team-a] to a "
        "PriceList with currency USD."
    )


async def test_a_limit_whose_price_begins_soon_says_when() -> None:
    async with ScriptedEngine(answering) as engine:
        model = a_model(a_replica(engine.address))
        ((version,), now) = prices().versions, time.time()
        coming = PriceListBook((replace(version, since=now + 60.0),))
        known = {**paying(MANY), "prices": coming}
        async with a_gateway(a_directory(model, **known)) as gateway:
            refused = await gateway.post(CHAT)
    begin = datetime.fromtimestamp(math.ceil(now + 60.0), UTC)
    assert (refused.status, refused.error["code"]) == (403, "price_missing")
    assert refused.error["message"] == (
        "TenantBudget/team-a limits charges (limit charge-month), and the price of the model "
        f"`chat` in PriceList/standard begins at {begin:%Y-%m-%dT%H:%M:%SZ}."
    )
    assert 40 < int(refused.headers["retry-after"]) <= 60


@pytest.mark.parametrize(("left", "status"), [(2000, "Completed"), (1050, "Aborted")])
async def test_a_stream_may_end_while_its_last_part_waits(left: int, status: str) -> None:
    used = {"prompt_tokens": 7, "completion_tokens": 1300, "total_tokens": 1307}
    body = {**STREAM, "stream_options": {"include_usage": True}}
    events = [ROLE, a_delta("word"), *[a_delta("word")] * 1299, END, a_usage(used), DONE]

    async def at_once(call: EngineCall) -> None:
        await call.stream(b"".join(events[:2]), b"".join(events[2:]))

    async with (
        ScriptedEngine(at_once) as engine,
        a_gateway(directory(engine.address, reserved(left, bound(body)))) as gateway,
    ):
        answer = await gateway.post(body)
        record = await gateway.record()
        assert gateway.held_bytes == 0
        [account] = gateway.accounts.charges.values()
    assert answer.body.endswith(DONE)
    assert record.phase == status
    assert (answer.body.count(b"word") == 1300) is (status == "Completed")
    assert account.settled + account.lent <= account.limit


@pytest.mark.parametrize(
    ("kind", "scopes"),
    [
        (None, {"team-a/each"}),
        (MemberKind.KEY, {"team-a/each/Key/first", "team-a/each/Key/second"}),
        (MemberKind.TEAM, {"team-a/each/Team/search"}),
        (MemberKind.SERVICE, {"team-a/each/Service/team-a/chat"}),
    ],
)
async def test_each_member_has_an_account_of_its_own(
    kind: MemberKind | None, scopes: set[str]
) -> None:
    limit = a_charge_limit(MANY, name="each", kind=kind)
    keys = [an_api_key(f"tsk-{name}", name=name, team="search") for name in ("first", "second")]
    async with ScriptedEngine(answering) as engine:
        model = a_model(a_replica(engine.address), max_model_len=4096)
        async with a_gateway(a_directory(model, keys=keys, **paying(limit))) as gateway:
            for name in ("first", "second", "first"):
                answer = await gateway.post(CHAT, authorization=f"Bearer tsk-{name}")
                assert answer.status == 200
            accounts = gateway.accounts.charges
            assert {key.scope for key in accounts} == scopes
            assert {scope for record in gateway.records for scope, _, _ in record.charges} == scopes


async def test_a_raise_lets_a_refused_tenant_go_on_at_once() -> None:
    limit = a_charge_limit(2 * CHARGE, window="Hour")
    async with (
        ScriptedEngine(answering) as engine,
        a_gateway(directory(engine.address, limit)) as gateway,
    ):
        refused = await gateway.post({**CHAT, "max_tokens": 4000})
        raises = (AmountRaise(MANY, time.time() + 3600),)
        raised = replace(limit, raises=raises)
        gateway.admission.update(directory(engine.address, raised))
        answer = await gateway.post({**CHAT, "max_tokens": 4000})
        [(name, charges)] = reported_charges(
            gateway.admission.reservations.charges.lending.answered()
        ).items()
    assert (refused.status, refused.error["code"]) == (429, "budget_exceeded")
    assert answer.status == 200
    assert (name.budget, name.limit) == ("team-a", "charge-month")
    assert len(charges.accounts) == 1


async def test_a_throttled_tenant_is_told_for_how_long_at_once() -> None:
    month = a_charge_limit(MANY, throttle=ThrottleTerms(0))
    # A month's rate is below that of one request a minute.
    small = replace(month, amount=200 * CHARGE)
    async with (
        ScriptedEngine(answering) as engine,
        a_gateway(directory(engine.address, small)) as gateway,
    ):
        first = await gateway.post({**CHAT, "max_tokens": 3})
        second = await gateway.post({**CHAT, "max_tokens": 3})
    assert first.status == 200
    assert (second.status, second.error["code"]) == (429, "budget_exceeded")
    assert "which are spread over the rest of it" in second.error["message"]
    assert int(second.headers["retry-after"]) > 10
