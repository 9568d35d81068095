"""What calls of providers cost, by what is known of each."""

import asyncio
import json
import socket
from dataclasses import replace
from pathlib import Path

import pytest

from tessera.api.model_provider import CostStep, ModelCost
from tessera.api.ref import Ref
from tessera.domain.charge.scopes import OTHER_MONTH, is_outside
from tessera.domain.gateway.usage_record import Phase, UsageRecord
from tests.gateway.charging import INPUT, OUTPUT, a_cost_limit
from tests.gateway.outside.routing import OUTSIDE, OWN, a_body, routed
from world.provider import ProviderCall, say_nothing

SHORT = {"connect": "5s", "firstByte": "100ms", "gap": "100ms"}
BODY = json.dumps(a_body()).encode()
# By the bill: what the request may cost with its template, and what its usual answer does.
MOST = 2 * ((1024 + len(BODY)) * INPUT + 100 * OUTPUT)
USUAL = 2 * (4 * INPUT + 8 * OUTPUT)
ENOUGH = a_cost_limit(10**12)


def paid(record: UsageRecord) -> dict[str, int]:
    return {key: nanos for key, _, nanos in record.charges if key != OTHER_MONTH}


@pytest.mark.parametrize("stream", [False, True])
async def test_an_answer_costs_what_the_bill_says_and_is_charged_its_price(
    tmp_path: Path, stream: bool
) -> None:
    async with routed(tmp_path, tenant={"outside": (ENOUGH,)}) as world:
        got = await world.gateway.post({**a_body(), **({"stream": True} if stream else {})})
        (record,) = await world.records(1)
        (call,) = world.provider.calls
    assert got.status == 200
    assert (record.input_tokens, record.output_tokens) == call.usage
    assert (record.charge_nanos, record.cost_nanos, record.estimated) == (USUAL // 2, USUAL, False)
    assert (record.cost_currency, record.price_list is not None) == ("USD", True)
    assert paid(record) == {"team-a/charge-month": USUAL // 2, "team-a/outside Month": USUAL}


@pytest.mark.parametrize(("lent", "target"), [(MOST, "outside"), (MOST - 1, "own")])
async def test_a_call_is_made_if_all_that_it_may_cost_is_lent(
    tmp_path: Path, lent: int, target: str
) -> None:
    async with routed(tmp_path, tenant={"outside": (a_cost_limit(lent),)}) as world:
        got = await world.gateway.post(BODY)
        (record,) = await world.records(1)
    assert got.headers["x-tessera-target"] == target
    assert record.skipped_targets == ("" if target == "outside" else "outside=BudgetExceeded")


async def test_a_request_without_another_target_waits_for_the_first_loan(tmp_path: Path) -> None:
    """The operator lends what the gateway says that a request needs."""
    async with routed(tmp_path, OUTSIDE, tenant={"outside": (a_cost_limit(0, 0),)}) as world:
        asking = asyncio.create_task(world.gateway.post(BODY))
        admission = world.gateway.admission
        charges = admission.reservations.charges
        async with asyncio.timeout(10):
            while not any(is_outside(key.scope) for key in charges.lending.needs()):
                await charges.wait(1)
        directory = admission.senders.directory
        tenant = replace(directory.tenants["team-a"], outside=(a_cost_limit(MOST),))
        admission.update(replace(directory, tenants={"team-a": tenant}))
        got = await asking
    assert (got.status, got.headers["x-tessera-target"]) == (200, "outside")


async def test_what_calls_may_cost_stays_reserved_until_they_end(tmp_path: Path) -> None:
    async with routed(tmp_path, tenant={"outside": (a_cost_limit(2 * MOST - 1),)}) as world:
        world.provider.script = say_nothing
        first = asyncio.create_task(world.gateway.post(BODY))
        await world.provider.has_calls(1)
        second = await world.gateway.post(BODY)
        first.cancel()
        await world.records(2)
    assert second.headers["x-tessera-target"] == "own"


async def test_a_time_out_costs_all_that_was_reserved(tmp_path: Path) -> None:
    async with routed(tmp_path, tenant={"outside": (ENOUGH,)}, timeouts=SHORT) as world:
        world.provider.script = say_nothing
        await world.gateway.post(BODY)
        record, _ = await world.records(2)
    assert (record.charge_nanos, record.cost_nanos, record.estimated) == (MOST // 2, MOST, True)
    assert (record.output_tokens, record.reason) == (100, "ProviderTimeout")
    assert paid(record) == {"team-a/charge-month": MOST // 2, "team-a/outside Month": MOST}


@pytest.mark.parametrize("is_target", [False, True])
async def test_no_time_out_gives_money_for_another_call(tmp_path: Path, is_target: bool) -> None:
    target = {**OUTSIDE, "timeouts": {"firstToken": "100ms"}} if is_target else OUTSIDE
    timeouts = {} if is_target else SHORT
    lent = {"outside": (a_cost_limit(2 * MOST - 1),)}
    async with routed(tmp_path, target, OWN, tenant=lent, timeouts=timeouts) as world:
        world.provider.scripts.append(say_nothing)
        await world.gateway.post(BODY)
        await world.gateway.post(BODY)
        _, _, record = await world.records(3)
        assert len(world.provider.calls) == 1
    assert record.skipped_targets == "outside=BudgetExceeded"


async def test_a_time_out_before_anything_was_sent_costs_nothing(tmp_path: Path) -> None:
    target = {**OUTSIDE, "timeouts": {"firstToken": "100ms"}}
    # Connections are taken there, and no handshake is answered.
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"https://127.0.0.1:{server.getsockname()[1]}/v1"
        async with routed(tmp_path, target, OWN, base_url=url) as world:
            got = await world.gateway.post(BODY)
            (record,) = await world.records(1)
    assert got.headers["x-tessera-target"] == "own"
    assert (record.skipped_targets, record.cost_nanos) == ("outside=TargetTimeout", 0)


async def test_a_lost_answer_costs_what_it_may_and_is_charged_what_came(tmp_path: Path) -> None:
    async def hangs_up(call: ProviderCall) -> None:
        call.cut()

    async with routed(tmp_path, tenant={"outside": (ENOUGH,)}) as world:
        world.provider.script = hangs_up
        await world.gateway.post(BODY)
        record, _ = await world.records(2)
    assert (record.charge_nanos, record.cost_nanos, record.estimated) == (0, MOST, True)


@pytest.mark.parametrize("stream", [False, True])
async def test_an_answer_that_a_filter_ended_costs_what_was_counted(
    tmp_path: Path, stream: bool
) -> None:
    async def ends(call: ProviderCall) -> None:
        choice = {"message": {"content": ""}, "finish_reason": "content_filter"}
        usage = {"prompt_tokens": 4, "completion_tokens": 3, "total_tokens": 7}
        if not stream:
            await call.whole({"model": "big-1", "choices": [choice], "usage": usage})
            return
        await call.head(200, "text/event-stream")
        for event in ({"choices": [{**choice, "delta": {}}]}, {"choices": [], "usage": usage}):
            await call.chunk(b"data: %b\n\n" % json.dumps(event).encode())
        await call.chunk(b"data: [DONE]\n\n")
        await call.end()

    async with routed(tmp_path) as world:
        world.provider.script = ends
        await world.gateway.post(a_body(stream=True) if stream else BODY)
        record, *_ = await world.records(2)
    assert (record.reason, record.charge_nanos) == ("ContentFiltered", 0)
    assert record.cost_nanos == 2 * (4 * INPUT + 3 * OUTPUT)


@pytest.mark.parametrize("stream", [False, True])
async def test_a_client_that_leaves_pays_what_may_have_been_made(
    tmp_path: Path, stream: bool
) -> None:
    async def holds(call: ProviderCall) -> None:
        if stream:
            await call.head(200, "text/event-stream")
            await call.chunk(b'data: {"choices":[{"delta":{"content":"One two"}}]}\n\n')
        await call.closed.wait()

    async with routed(tmp_path, tenant={"outside": (ENOUGH,)}) as world:
        world.provider.script = holds
        asking = asyncio.create_task(world.gateway.post(a_body(stream=True) if stream else BODY))
        if stream:
            await world.gateway.wait_for_tokens(1)
        else:
            await world.provider.has_calls(1)
        asking.cancel()
        (record,) = await world.records(1)
        await asyncio.wait_for(world.provider.calls[0].closed.wait(), 10)
        assert not world.engine.calls
    assert (record.phase, record.reason, record.estimated) == (Phase.ABORTED, "ClientGone", True)
    if stream:
        assert 0 < record.cost_nanos < MOST
        assert record.output_tokens >= 2
    else:
        assert (record.charge_nanos, record.cost_nanos) == (MOST // 2, MOST)


async def test_a_killed_gateway_leaves_the_worst_case(tmp_path: Path) -> None:
    begun: list[UsageRecord] = []
    async with routed(tmp_path, tenant={"outside": (ENOUGH,)}) as world:
        world.gateway.app.note_begun = begun.append
        await world.gateway.post(BODY)
        (record,) = await world.records(1)
    first, *_ = begun
    assert (first.record_id, first.reason) == (record.record_id, "GatewayKilled")
    assert (first.charge_nanos, first.cost_nanos) == (MOST // 2, MOST)
    assert paid(first) == {"team-a/charge-month": MOST // 2, "team-a/outside Month": MOST}


DEAR = ModelCost(
    input="2",
    cache_write="2.5",
    long_cache_write="4",
    output="20",
    search="0.01",
    max_searches=2,
    steps=[
        CostStep(
            above_input_tokens=500, input="4", cache_write="5", long_cache_write="8", output="30"
        )
    ],
)
# What the dearest step costs that the prompt may reach, all of it written for an hour.
DEAREST = (1024 + len(BODY)) * 8000 + 100 * 30_000 + 2 * 10**7


async def test_a_call_reserves_the_dearest_bill_that_it_may_get(tmp_path: Path) -> None:
    begun: list[UsageRecord] = []
    lent = {"outside": (a_cost_limit(DEAREST),)}
    async with routed(tmp_path, tenant=lent, model={"cost": DEAR}) as world:
        world.gateway.app.note_begun = begun.append
        got = await world.gateway.post(BODY)
        (record,) = await world.records(1)
    assert got.headers["x-tessera-target"] == "outside"
    assert (begun[0].cost_nanos, record.cost_nanos) == (DEAREST, 4 * 2000 + 8 * 20_000)


async def test_a_client_that_asks_for_usage_reads_what_a_stream_is_charged(
    tmp_path: Path,
) -> None:
    async with routed(tmp_path) as world:
        options = {"include_usage": True}
        got = await world.gateway.post(a_body(stream=True, stream_options=options))
    usage = json.loads(got.events[-2].removeprefix(b"data: "))["usage"]
    assert usage["cost"] == 0.000084


async def test_the_next_target_is_asked_before_an_answer_is_cut_for_money(tmp_path: Path) -> None:
    short = {**OWN, "set": {"maxOutputTokens": 50}}
    async with routed(tmp_path, OUTSIDE, short, limits=(MOST // 2 - 1,)) as world:
        got = await world.gateway.post(BODY)
        assert not world.provider.calls
    assert got.headers["x-tessera-target"] == "own"
    assert "x-tessera-max-tokens" not in got.headers


async def test_where_no_whole_answer_fits_an_own_target_gives_a_shorter_one(
    tmp_path: Path,
) -> None:
    model = {"max_output_tokens": 4000}
    async with routed(tmp_path, limits=(3000 * OUTPUT,), model=model) as world:
        got = await world.gateway.post(a_body(max_tokens=4000))
        assert not world.provider.calls
        *_, call = world.engine.calls
        arrived = world.gateway.admission.arrivals.take()
    assert arrived[Ref("team-a", "chat")].requests == 1
    assert got.headers["x-tessera-target"] == "own"
    assert 2000 < call.json["max_tokens"] < 3000
    assert int(got.headers["x-tessera-max-tokens"]) == call.json["max_tokens"]


async def test_an_error_whose_counts_are_billed_costs_them_and_is_not_repeated(
    tmp_path: Path,
) -> None:
    usage = {"prompt_tokens": 5, "completion_tokens": 3, "total_tokens": 8}
    choice = {"message": {"content": ""}, "finish_reason": "error", "error": {"code": 429}}

    async def fails(call: ProviderCall) -> None:
        await call.whole({"model": "m", "choices": [choice], "usage": usage})

    async with routed(tmp_path, tenant={"outside": (ENOUGH,)}) as world:
        world.provider.script = fails
        got = await world.gateway.post(BODY)
        outside, _ = await world.records(2)
        assert len(world.provider.calls) == 1
    assert got.headers["x-tessera-target"] == "own"
    assert outside.cost_nanos == 2 * (5 * INPUT + 3 * OUTPUT)


async def test_counts_of_a_stream_that_grow_are_charged_as_they_end(tmp_path: Path) -> None:
    counts = {"prompt_tokens": 500, "completion_tokens": 8, "total_tokens": 508}
    first = {"prompt_tokens": 0, "completion_tokens": 1, "total_tokens": 1}
    word = [{"index": 0, "delta": {"content": "Yes."}}]
    end = [{"index": 0, "delta": {}, "finish_reason": "stop"}]

    async def grows(call: ProviderCall) -> None:
        await call.head(200, "text/event-stream")
        for choices, usage in ((word, first), (word, None), (end, counts)):
            event = {"choices": choices, "usage": usage}
            await call.chunk(b"data: %b\n\n" % json.dumps(event).encode())
        await call.chunk(b"data: [DONE]\n\n")
        await call.end()

    limits = (MOST,)
    async with routed(tmp_path, OUTSIDE, limits=limits, tenant={"outside": (ENOUGH,)}) as world:
        world.provider.script = grows
        await world.gateway.post(a_body(stream=True))
        (record,) = await world.records(1)
    assert record.charge_nanos == 500 * INPUT + 8 * OUTPUT
