"""Attacks on limits and money by routes: calls that nobody pays, or that are counted twice."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from tessera.api.rate_limits import RateLimitsSpec
from tessera.api.ref import Ref
from tessera.domain.gateway.directory import TenantLimits
from tessera.domain.gateway.usage_record import RecordDimension, UsageRecord
from tessera.domain.usage.report import UsageQuery
from tessera.gateway.store.store import GatewayStore
from tessera.gateway.usage.journal import UsageJournal, abandoned_journals
from tests.gateway.charging import INPUT, OUTPUT, paying
from tests.gateway.harness import (
    EngineCall,
    RunningGateway,
    Script,
    ScriptedEngine,
    a_directory,
    a_gateway,
    an_api_key,
)
from tests.gateway.route.test_routes import (
    AUTH,
    LARGE,
    SMALL,
    a_body,
    a_route,
    a_target,
    answers,
    fails,
)
from world.testing import eventually

pytestmark = pytest.mark.anyio
MANY = 10**12
SLOW = {**SMALL, "timeouts": {"firstToken": "100ms"}}
CONTEXT = {"max_model_len": 4096}


async def silent(call: EngineCall) -> None:
    await call.gone.wait()


def a_limit(meter: str = "requests", **amounts: int) -> RateLimitsSpec:
    return RateLimitsSpec.model_validate({meter: amounts})


@asynccontextmanager
async def asking(
    small_script: Script, large_script: Script, *targets: Any, **changes: Any
) -> AsyncIterator[tuple[RunningGateway, ScriptedEngine, ScriptedEngine]]:
    """Run a gateway with two targets; changes are of the directory, or of a model by its name."""
    async with AsyncExitStack() as stack:
        small, large = [
            await stack.enter_async_context(ScriptedEngine(script))
            for script in (small_script, large_script)
        ]
        models = [
            a_target("small", small.address, **{**CONTEXT, **changes.pop("small", {})}),
            a_target("large", large.address, **{**CONTEXT, **changes.pop("large", {})}),
            a_route(*(targets or (SMALL, LARGE)), spec=changes.pop("spec", {})),
        ]
        directory = a_directory(*models, **changes)
        gateway = await stack.enter_async_context(a_gateway(directory))
        yield gateway, small, large


def settled(gateway: RunningGateway) -> int:
    return sum(account.settled for account in gateway.accounts.charges.values())


async def test_a_target_that_is_given_up_by_a_time_out_is_paid_as_any_time_out_is() -> None:
    """Else a route of their own lets tenants compute prompts at services of others for nothing."""
    async with asking(silent, answers, SLOW, LARGE, **paying(MANY)) as (gateway, *_):
        answer = await gateway.post(a_body(max_tokens=10), **AUTH)

        assert answer.headers["x-tessera-target"] == "large"
        given_up, answered = gateway.records
        assert (given_up.reason, given_up.requests) == ("TargetTimeout", 0)
        assert given_up.input_tokens > 0
        assert (given_up.charge_nanos or 0) > 0
        assert given_up.waste_nanos == 0
        assert answered.charge_nanos == 7 * INPUT + 2 * OUTPUT


async def test_work_until_a_time_out_counts_in_the_limits_of_its_sender() -> None:
    tokens = RateLimitsSpec.model_validate({"outputTokens": {"perDay": 100_000}})
    pace = {"itl_seconds": 0.001}
    async with asking(
        silent, answers, SLOW, LARGE, keys=[an_api_key(limits=tokens)], small=pace
    ) as (gateway, *_):
        await gateway.post(a_body(max_tokens=10_000), **AUTH)

        assert gateway.records[0].output_tokens > 0


async def test_what_an_engine_wrote_until_a_time_out_is_paid() -> None:
    async def begins(call: EngineCall) -> None:
        await call.begin()
        await call.chunk(b'data: {"choices":[{"delta":{"content":"Yes"}}]}\n\n')
        await call.gone.wait()

    late = {**SMALL, "timeouts": {"total": "1s"}}
    async with asking(begins, answers, late, LARGE, **paying(MANY)) as (gateway, _, large):
        answer = await gateway.post(a_body(max_tokens=10, stream=True), **AUTH)

        assert b"target_timeout" in answer.body
        assert not large.calls
        record = await gateway.record()
        assert (record.requests, record.reason) == (1, "TargetTimeout")
        assert (record.charge_nanos or 0) >= INPUT + OUTPUT


async def test_a_limit_of_a_shared_service_is_not_evaded_by_a_route_that_gives_it_up() -> None:
    """Its owner lets it get three requests a minute; the route of another gives each up."""
    others = {
        "tenant": "team-b",
        "service": Ref("team-b", "small"),
        "public": True,
        "limits": a_limit(perMinute=3),
    }
    target = {**SLOW, "service": "team-b/small"}
    async with asking(silent, answers, target, LARGE, small=others) as (gateway, small, _):
        for _ in range(6):
            assert (await gateway.post(a_body(), **AUTH)).status == 200

        assert len(small.calls) == 3


async def test_a_request_that_ends_at_its_second_target_is_counted() -> None:
    """Of a kind that `fallback` does not have."""
    async with asking(
        fails,
        answers,
        large={"limits": a_limit(perMinute=1)},
        spec={"fallback": ["ServerError"]},
        keys=[an_api_key(limits=a_limit(perMinute=4))],
    ) as (gateway, small, _):
        for _ in range(8):
            await gateway.post(a_body(), **AUTH)

        assert len(small.calls) == 4


async def test_a_client_that_leaves_at_its_second_target_is_counted() -> None:
    """While the limits of that are asked for."""
    running: list[RunningGateway] = []

    async def hides(call: EngineCall) -> None:
        running[0].accounts.is_reachable.clear()
        await fails(call)

    async with asking(
        hides,
        answers,
        large={"limits": a_limit("outputTokens", perDay=10**7)},
        keys=[an_api_key(limits=a_limit(perMinute=3))],
    ) as (gateway, small, _):
        running.append(gateway)
        for _ in range(6):
            gateway.accounts.is_reachable.set()
            request = asyncio.create_task(gateway.post(a_body(max_tokens=3000), **AUTH))
            await asyncio.sleep(0.2)
            request.cancel()
            await asyncio.wait((request,))
        assert len(small.calls) == 3


async def test_a_request_whose_first_target_is_too_dear_counts_once() -> None:
    limits = a_limit(perMinute=3)
    first = {**LARGE, "name": "first"}
    spec = {"select": "Weights"}
    only = {**first, "weight": 1}, {"service": "small", "weight": 0, "set": {"maxOutputTokens": 1}}
    budget = 4096 * INPUT + 8 * OUTPUT
    async with asking(
        answers, answers, *only, spec=spec, keys=[an_api_key(limits=limits)], **paying(budget)
    ) as (gateway, small, large):
        statuses = [(await gateway.post(a_body(max_tokens=4000), **AUTH)).status for _ in range(3)]

        assert not large.calls
        assert (len(small.calls), statuses) == (3, [200, 200, 200])


async def test_with_money_for_one_call_the_second_target_gets_none() -> None:
    """Calls one after the other never cost more than the budget has, and hold nothing after it."""
    async with asking(silent, answers, SLOW, LARGE, **paying(300 * INPUT)) as (gateway, *_):
        for _ in range(6):
            await gateway.post(a_body(max_tokens=1), **AUTH)

        charges = gateway.accounts.charges.values()
        assert all(each.settled + each.lent <= each.limit for each in charges)
        total = sum(nanos for each in gateway.records for *_, nanos in each.charges)
        assert total <= 300 * INPUT
        assert not gateway.admission.demand


async def test_concurrent_requests_are_held_once_and_given_back_after_each_target() -> None:
    limits = RateLimitsSpec.model_validate({"concurrentRequests": 1})
    async with asking(fails, fails, keys=[an_api_key(limits=limits)]) as (gateway, small, large):
        for _ in range(5):
            assert (await gateway.post(a_body(), **AUTH)).error["code"] == "no_target"

        assert len(small.calls) == len(large.calls) == 5


async def test_records_of_calls_are_stored_once_and_count_one_request(tmp_path: Path) -> None:
    store = await GatewayStore.open(f"sqlite:///{tmp_path}/store.db")
    async with asking(fails, answers, **paying(MANY)) as (gateway, *_):
        for _ in range(3):
            await gateway.post(a_body(), **AUTH)
        # A writer that does not know whether they are stored sends them again.
        for _ in range(2):
            await store.record(gateway.records)
        by = (RecordDimension.ROUTE, RecordDimension.TARGET)
        report = await store.usage(UsageQuery(since_ns=0, until_ns=2**62, by=by, limit=10))
    await store.close()

    rows = {row.group: row for row in report.rows}
    assert sum(row.requests for row in report.rows) == 3
    assert rows["team-a/assistant", "large"].input_tokens == 21


async def test_a_gateway_that_is_killed_between_two_calls_leaves_each_once(tmp_path: Path) -> None:
    running: list[UsageRecord] = []
    async with asking(silent, silent, SLOW, {**LARGE, "timeouts": {"firstToken": "5s"}}) as (
        gateway,
        _,
        large,
    ):
        task = asyncio.create_task(gateway.post(a_body(), **AUTH))

        async def is_at_large() -> None:
            assert large.calls

        await eventually(is_at_large)
        (course,) = gateway.app._courses
        partial = course.partial_record()
        assert partial is not None
        running.append(partial)
        ended = list(gateway.records)
        task.cancel()

    journal = UsageJournal(tmp_path)
    journal.add(ended, 0)
    journal.note_running(running, 1)
    for segment in (*journal._segments, *journal._ended_sums, *filter(None, (journal._sums,))):
        segment.file.close()
    journal._file.close()
    (left,) = abandoned_journals(tmp_path)

    assert sorted(record.target for record in left.records) == ["large", "small"]
    assert sum(record.requests for record in left.records) == 1
    assert len({record.record_id for record in left.records}) == 2
    assert len({record.request_id for record in left.records}) == 1


async def test_one_request_is_one_arrival_at_a_target_however_often_it_is_asked() -> None:
    """Demand that is counted twice starts replicas that nobody needs."""
    stopped = {"replicas": (), "stopped": True}
    asleep = {"replicas": (), "may_sleep": True, "is_asleep": True}
    async with asking(answers, answers, small=asleep, large=stopped) as (gateway, *_):
        task = asyncio.create_task(gateway.post(a_body(), **AUTH))
        await gateway.wait_for_queue(1)
        arrivals = gateway.admission.arrivals.take()
        task.cancel()
        await asyncio.wait((task,))

        assert arrivals[Ref("team-a", "small")].requests == 1


async def test_a_team_without_room_is_refused_once_and_not_by_each_target() -> None:
    limits = TenantLimits(name="team-a", namespaces=("team-a",), limits=a_limit(perMinute=2))
    async with asking(fails, answers, tenants={"team-a": limits}) as (gateway, small, large):
        statuses = [(await gateway.post(a_body(), **AUTH)).status for _ in range(4)]

        assert statuses == [200, 200, 429, 429]
        assert len(small.calls) == len(large.calls) == 2
