"""Who pays for requests of clients that want more than their money, and for engines that lie."""

import asyncio
import json
import time
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from itertools import count
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tessera.api.rate_limits import PeriodLimits, RateLimitsSpec
from tessera.api.tenant_budget import WindowName
from tessera.domain.budget.periods import next_period, period_at, zone_of
from tessera.domain.charge.account import ChargeAccount
from tessera.domain.charge.exchange import AccountKey, ChargeAsk, LendingOutcome
from tessera.domain.charge.gateway_charges import ChargeRefusal, ChargeReservation
from tessera.domain.charge.prices import charge_of
from tessera.domain.charge.scopes import MemberKind
from tessera.domain.gateway.directory import TenantLimits
from tessera.domain.gateway.usage_record import UsageRecord
from tessera.domain.limits.account import BorrowRequest
from tessera.gateway.reserve.charges import Charges
from tests.domain.charge.fleet import ChargeFleet, a_scope
from tests.gateway.charging import a_charge_limit, prices
from tests.gateway.harness import (
    COMPLETION,
    DONE,
    END,
    ROLE,
    Answer,
    EngineCall,
    RunningGateway,
    Script,
    ScriptedEngine,
    a_delta,
    a_directory,
    a_gateway,
    a_model,
    a_replica,
    an_api_key,
    event,
)
from world.testing import eventually

pytestmark = pytest.mark.anyio

# Nano-units of a token.
INPUT, CACHED, OUTPUT = 2_000, 500, 8_000
PRICE = {"input": "2", "cached_input": "0.5", "output": "8"}
OWNER, GUEST = "team-a", "team-b"
CONTEXT = 8192
# Its prompt has 77 + 1,024 tokens at most.
A = b'{"model":"chat","messages":[{"role":"user","content":"hi"}],"max_tokens":100}'
WITHOUT_MAXIMUM = A.replace(b',"max_tokens":100', b"")
STREAM = A.replace(b"100}", b'4096,"stream":true}')
BOUND, STREAM_BOUND = 1101, 1116
RESERVED = BOUND * INPUT + 100 * OUTPUT
USED = {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10}
CHARGE = 7 * INPUT + 3 * OUTPUT
MANY = 10**12
COMPLETIONS = "/v1/completions"
_numbers = count()


@dataclass(kw_only=True)
class PaidStage:
    """A gateway, the engine of a tenant, and a guest who sends it requests."""

    gateway: RunningGateway
    engine: ScriptedEngine
    model: Any
    price: Any

    def limit(self, *limits: Any) -> None:
        """Let the guest have these limits alone, of which nothing is spent."""
        charge_limits = tuple(
            a_charge_limit(each, budget=GUEST, name=f"l{next(_numbers)}")
            if isinstance(each, int)
            else each
            for each in limits
        )
        tenants = {
            OWNER: TenantLimits(name=OWNER, namespaces=(OWNER,)),
            GUEST: TenantLimits(name=GUEST, namespaces=(GUEST,), charge_limits=charge_limits),
        }
        keys = [
            an_api_key("ka"),
            an_api_key("kb", name="kb", tenant=GUEST, team="search"),
            an_api_key("kb2", name="kb2", tenant=GUEST, team="ops"),
            an_api_key("kn", name="kn", tenant=GUEST),
        ]
        self.gateway.admission.update(
            a_directory(self.model, keys=keys, tenants=tenants, prices=self.price)
        )

    async def post(
        self, body: Any, path: str = "/v1/chat/completions", key: str = "kb", **headers: str
    ) -> Answer:
        return await self.gateway.post(body, path, authorization=f"Bearer {key}", **headers)

    async def play(
        self, body: Any, path: str = "/v1/chat/completions", key: str = "kb"
    ) -> tuple[Answer, UsageRecord]:
        """Send a request, and take its only record."""
        answer = await self.post(body, path, key)
        return answer, await self.gateway.take_record()

    @property
    def reserved(self) -> int:
        """Return what all accounts know as reserved."""
        accounts = self.gateway.accounts.charges.values()
        return sum(each.reserved for account in accounts for each in account.gateways.values())

    @property
    def answered_calls(self) -> list[EngineCall]:
        """Return the calls of the engine but those that count a prompt."""
        return [call for call in self.engine.calls if call.path != "/tokenize"]

    async def records(self, number: int) -> list[UsageRecord]:
        async def are_recorded() -> None:
            assert len(self.gateway.records) == number

        await eventually(are_recorded)
        return self.gateway.records


def _check(accounts: Sequence[ChargeAccount]) -> None:
    for account in accounts:
        assert account.settled + account.lent <= account.limit


@asynccontextmanager
async def a_stage(
    script: Script, *limits: Any, price: Any = None, **changes: Any
) -> AsyncIterator[PaidStage]:
    """Play before a gateway that at the end has nothing, and recorded all that it charged."""
    options = {name: changes.pop(name) for name in ("idle_seconds",) if name in changes}

    async with ScriptedEngine(script) as engine:
        fields = {"tenants": frozenset({GUEST}), "max_model_len": CONTEXT, **changes}
        model = a_model(a_replica(engine.address), **fields)
        async with a_gateway(a_directory(model), **options) as gateway:
            accounts = gateway.accounts.charges
            paid = Counter[AccountKey]()

            def unix_time() -> float:
                _check(tuple(accounts.values()))
                return time.time()

            gateway.accounts.unix_time = unix_time
            note = gateway.app._record
            stage = PaidStage(
                gateway=gateway, engine=engine, model=model, price=prices(**PRICE | (price or {}))
            )
            stage.limit(*limits)

            def record(usage_record: UsageRecord) -> None:
                assert usage_record.phase != "Failed" or usage_record.status != 500
                for scope, start, nanos in usage_record.charges:
                    assert isinstance(nanos, int)
                    paid[AccountKey(scope, start)] += nanos
                    assert nanos <= (usage_record.charge_nanos or 0)
                note(usage_record)

            gateway.app._record = record
            yield stage
            lending = gateway.admission.reservations.charges.lending

            async def nothing_is_lent() -> None:
                # As if it had been idle for long.
                asks = lending.renewal(time.monotonic() + 20)
                await gateway.accounts.borrow(BorrowRequest(charges=asks))
                assert sum(account.lent for account in accounts.values()) == 0
                for key, account in accounts.items():
                    assert account.settled == paid[key]

            await eventually(nothing_is_lent)
            _check(tuple(accounts.values()))


def reporting(usage: Any, text: str = "word") -> Script:
    """Return the engine that answers with a text, and reports this usage."""

    async def script(call: EngineCall) -> None:
        if call.json.get("stream"):
            await call.stream(ROLE, a_delta(text), END, a_usage(usage), DONE)
        else:
            await call.whole(a_whole(usage, text))

    return script


def _json(value: object) -> bytes:
    return json.dumps(value).replace("Infinity", "1e999").encode()


def a_whole(usage: Any, text: str) -> bytes:
    choice = {"index": 0, "message": {"role": "assistant", "content": text}}
    return _json({**COMPLETION, "choices": [choice], "usage": usage})


def a_usage(usage: Any, choices: Sequence[Any] = ()) -> bytes:
    fields = {"id": "chatcmpl-0", "model": "chat", "choices": [*choices], "usage": usage}
    return event(fields).replace(b"Infinity", b"1e999")


def with_cost(answer: Answer) -> list[Any]:
    """Return the usage of all events that have any."""
    events = [
        json.loads(each.removeprefix(b"data: ")) for each in answer.events if b'"usage"' in each
    ]
    return [each["usage"] for each in events]


def refused_for_money(answer: Answer) -> bool:
    """Return whether it is refused in the words of a budget that is spent."""
    if answer.status != 429:
        return False
    error = answer.error
    assert (error["code"], error["type"]) == ("budget_exceeded", "insufficient_quota")
    assert answer.headers["x-should-retry"] == "false"
    assert 1 <= int(answer.headers["retry-after"]) <= 31 * 86_400
    assert "x-tessera-charge" not in answer.headers
    return True


# --- Many at once.


@pytest.mark.parametrize("coins", [1, 2])
async def test_of_64_at_once_as_many_are_served_as_there_is_money(coins: int) -> None:
    goes_on = asyncio.Event()

    async def waits(call: EngineCall) -> None:
        await goes_on.wait()
        await call.whole(a_whole({"prompt_tokens": 7, "completion_tokens": 100}, "word" * 100))

    limit = coins * 100 * OUTPUT
    async with a_stage(waits, limit, price={"input": "0", "cached_input": "0"}) as stage:
        requests = [asyncio.create_task(stage.post(A)) for _ in range(64)]
        await stage.gateway.wait_for_in_flight(coins)
        await asyncio.sleep(0.4)
        assert (len(stage.engine.calls), sum(each.done() for each in requests)) == (coins, 0)
        goes_on.set()
        async with asyncio.timeout(4):
            answers = await asyncio.gather(*requests)
        assert sum(map(refused_for_money, answers)) == 64 - coins
        charges = [answer.headers.get("x-tessera-charge") for answer in answers]
        assert charges.count("0.0008 USD") == coins
        [account] = stage.gateway.accounts.charges.values()
        assert (account.settled, len(stage.engine.calls)) == (limit, coins)


async def test_who_waits_too_long_for_reserved_money_may_soon_try_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    defaults: Any = Charges.reserve.__kwdefaults__
    monkeypatch.setitem(defaults, "wait_seconds", 1.5)
    goes_on = asyncio.Event()

    async def waits(call: EngineCall) -> None:
        await goes_on.wait()
        await call.whole(COMPLETION)

    async with a_stage(waits, RESERVED) as stage:
        first = asyncio.create_task(stage.post(A))
        await stage.gateway.wait_for_in_flight(1)
        began = time.monotonic()
        answers = await asyncio.gather(*[stage.post(A) for _ in range(8)])
        assert 1.5 <= time.monotonic() - began < 5
        assert all(map(refused_for_money, answers))
        assert {int(each.headers["retry-after"]) < 60 for each in answers} == {True}
        goes_on.set()
        assert (await first).status == 200


async def test_who_leaves_while_he_waits_for_money_takes_none() -> None:
    goes_on = asyncio.Event()

    async def waits(call: EngineCall) -> None:
        await goes_on.wait()
        await call.whole(COMPLETION)

    async with a_stage(waits, RESERVED + CHARGE) as stage:
        first = asyncio.create_task(stage.post(A))
        await stage.gateway.wait_for_in_flight(1)
        others = [asyncio.create_task(stage.post(A)) for _ in range(20)]
        charges = stage.gateway.admission.reservations.charges

        async def all_wait() -> None:
            assert charges._waiting == 20

        await eventually(all_wait)
        for each in others:
            each.cancel()
        records = await stage.records(20)
        assert {(each.reason, each.charge_nanos) for each in records} == {("ClientGone", None)}
        assert charges._waiting == 0
        goes_on.set()
        assert (await first).status == (await stage.post(A)).status == 200
        assert refused_for_money(await stage.post(A))


def test_money_of_a_gateway_that_sleeps_is_spent_by_it_alone() -> None:
    fleet, scopes = ChargeFleet(), (a_scope(30_000),)
    awake, asleep = fleet.start(), fleet.start()
    for _ in range(100):
        fleet.spend(asleep, scopes, 38)
        fleet.renew(0.05)
    fleet.members.remove(asleep)
    spent = 0
    while isinstance(answer := fleet.reserve(awake, scopes, 38), ChargeReservation):
        spent += sum(nanos for _, _, nanos in fleet.settle(awake, answer, 38))
    of_other = asleep.committed(next(iter(fleet.accounts.all()))) - 3_800
    assert 30_000 - 3_800 - spent - of_other < 38
    fleet.now += 10
    fleet.members.append(asleep)
    last = 0
    while isinstance(answer := fleet.reserve(asleep, scopes, 38), ChargeReservation):
        last += sum(nanos for _, _, nanos in fleet.settle(asleep, answer, 38))
    assert last <= of_other
    assert 30_000 - 38 < 3_800 + spent + last <= 30_000


def test_a_gateway_that_is_alone_spends_all_of_a_limit_of_which_another_was_lent_much() -> None:
    fleet, scopes = ChargeFleet(), (a_scope(30_000),)
    awake, heated = fleet.start(), fleet.start()
    for _ in range(200):
        fleet.spend(heated, scopes, 38)
        fleet.renew(0.05)
    spent = 7_600
    while isinstance(answer := fleet.reserve(awake, scopes, 38), ChargeReservation):
        spent += sum(nanos for _, _, nanos in fleet.settle(awake, answer, 38))
    assert 0.97 * 30_000 <= spent <= 30_000


# --- Bodies.


def _most_of(call: EngineCall) -> tuple[int, int]:
    """Return how many answers an engine makes of a body, and the most tokens of each."""
    body = call.json
    prompts = len(body["prompt"]) if isinstance(body.get("prompt"), list) else 1
    choices = max(body.get("n") or 1, body.get("best_of") or 1) * prompts
    numbers = [body[name] for name in ("max_completion_tokens", "max_tokens") if body.get(name)]
    return choices, max(numbers, default=16 if prompts > 1 else CONTEXT)


LETTERS = ["a"] * 32
MULTIPLIED: Sequence[tuple[str, dict[str, Any], str, int]] = [
    ("n", {"n": 16, "max_tokens": 100}, "/v1/chat/completions", 1600),
    ("32 prompts", {"prompt": LETTERS, "n": 4}, COMPLETIONS, 2048),
    ("best_of", {"prompt": LETTERS, "best_of": 8, "n": 1, "max_tokens": 100}, COMPLETIONS, 25_600),
    ("128 prompts", {"prompt": [[1]] * 128, "max_tokens": 10}, COMPLETIONS, 1280),
]


@pytest.mark.parametrize(("fields", "path", "tokens"), [each[1:] for each in MULTIPLIED])
async def test_each_choice_of_each_prompt_is_reserved(
    fields: dict[str, Any], path: str, tokens: int
) -> None:
    reserved = []

    async def most(call: EngineCall) -> None:
        reserved.append(stage.reserved)
        choices, output = _most_of(call)
        assert choices * output == tokens
        usage = {"prompt_tokens": 7, "completion_tokens": choices * output}
        await call.whole(a_whole(usage, "x" * choices * output))

    body = {"model": "chat", **fields}
    if "prompt" not in body:
        body["messages"] = [{"role": "user", "content": "hi"}]
    prompts = len(body.get("prompt", ["hi"]))
    async with a_stage(most, MANY) as stage:
        answer, record = await stage.play(body, path)
        assert (answer.status, record.estimated) == (200, False)
        assert record.charge_nanos == 7 * INPUT + tokens * OUTPUT
        assert reserved[0] >= tokens * OUTPUT + prompts * 1024 * INPUT
        # Far less than that, and above a single choice.
        stage.limit(10_000_000)
        assert refused_for_money((await stage.play(body, path))[0])
        assert len(stage.engine.calls) == 1


async def test_only_whole_numbers_of_choices_are_taken() -> None:
    async with a_stage(reporting(USED), MANY) as stage:
        for value in ("0", "-1", "129", "1.5", '"2"', "true", "1e400"):
            body = A.replace(b"}]", b'}],"n":%b' % value.encode())
            answer, record = await stage.play(body)
            assert (answer.status, record.charge_nanos) == (400, None), value
        assert (await stage.play(A.replace(b"}]", b'}],"n":null')))[0].status == 200


async def test_choices_of_a_stream_get_together_what_is_paid() -> None:
    words = [a_delta("word", index=index) for index in range(4)]

    async def endless(call: EngineCall) -> None:
        await call.begin()
        await call.chunk(ROLE)
        number = 0
        while not call.gone.is_set():
            # The first ones end early.
            await call.chunk(words[number % 4 if number < 600 else 3])
            number += 1
            await asyncio.sleep(0)

    body = STREAM.replace(b"4096", b'2000,"n":4')
    limit = (len(body) + 1024) * INPUT + 5000 * OUTPUT
    async with a_stage(endless, limit) as stage:
        answer, record = await stage.play(body)
        assert answer.body.count(b'"length"') == 4
        assert 4900 <= answer.body.count(b'"word"') <= 5000
        assert record.reason == "BudgetExceeded"
        assert record.charge_nanos is not None
        assert record.charge_nanos <= limit


async def test_an_answer_gets_what_is_left_unless_that_is_less_than_usual() -> None:
    async with a_stage(reporting(USED), 20_000_000) as stage:
        answer, _ = await stage.play(WITHOUT_MAXIMUM)
        assert stage.engine.calls[0].json["max_tokens"] == 2229
        assert answer.headers["x-tessera-max-tokens"] == "2229"
        stage.limit(10_000_000)
        assert refused_for_money((await stage.play(WITHOUT_MAXIMUM))[0])
        assert len(stage.answered_calls) == 1


async def test_where_the_bound_refuses_an_engine_counts_the_prompt() -> None:
    async with a_stage(counting(COUNTED), 10_000_000) as stage:
        answer, _ = await stage.play(WITHOUT_MAXIMUM)
        assert answer.status == 200
        assert stage.engine.calls[-1].json["max_tokens"] == 1247


COUNTED = {"count": 10, "max_model_len": CONTEXT, "tokens": []}


def counting(answer: Any, status: int = 200) -> Script:
    """Return the engine that answers so where it is asked to count."""

    async def script(call: EngineCall) -> None:
        if call.path == "/tokenize":
            await call.whole(answer, status)
        else:
            await call.whole(COMPLETION)

    return script


@pytest.mark.parametrize(
    "changes", [{"count": each} for each in (0, -1, 1101, 10**9, "10", 1.5, None, True)]
)
async def test_a_count_that_cannot_be_leaves_the_refusal(changes: Any) -> None:
    async with a_stage(counting({**COUNTED, **changes}), 10_000_000) as stage:
        assert refused_for_money((await stage.play(WITHOUT_MAXIMUM))[0])
        assert [call.path for call in stage.engine.calls] == ["/tokenize"]


async def test_an_engine_that_does_not_count_is_asked_once() -> None:
    async with a_stage(counting({"error": "no"}, 404), 10_000_000) as stage:
        assert refused_for_money((await stage.play(WITHOUT_MAXIMUM))[0])
        assert len(stage.engine.calls) == 1
        # What else a template may read counts by its bytes.
        long = WITHOUT_MAXIMUM.replace(b"}]", b'}],"documents":["%b"]' % (b"x" * 2000))
        assert refused_for_money((await stage.play(long))[0])
        # Without money for an answer, no count of its prompt helps.
        stage.limit(8_000_000)
        assert refused_for_money((await stage.play(WITHOUT_MAXIMUM))[0])
        assert len(stage.engine.calls) == 2


async def test_what_is_no_part_of_a_counted_prompt_is_reserved_by_its_bytes() -> None:
    async with a_stage(counting(COUNTED), 10_000_000) as stage:
        body = WITHOUT_MAXIMUM.replace(b"}]", b'}],"documents":["%b"]' % (b"x" * 96))
        assert (await stage.play(body))[0].status == 200
        assert stage.engine.calls[-1].json["max_tokens"] == 1247 - 100 * INPUT // OUTPUT
        assert "documents" not in stage.engine.calls[0].json


async def test_a_prompt_of_a_completion_is_counted_and_several_are_not() -> None:
    async with a_stage(counting(COUNTED), 10_000_000) as stage:
        body = {"model": "chat", "prompt": "hi" * 100, "max_tokens": 2000}
        assert (await stage.play(body, COMPLETIONS))[0].status == 200
        assert stage.engine.calls[0].json == {"model": "chat", "prompt": "hi" * 100}
        stage.limit(10_000_000)
        several = {**body, "prompt": ["hi" * 100] * 2, "max_tokens": 500}
        assert refused_for_money((await stage.play(several, COMPLETIONS))[0])
        assert len(stage.engine.calls) == 2


async def test_a_counted_prompt_is_input_of_its_senders_limits() -> None:
    async with a_stage(counting(COUNTED), 10_000_000) as stage:
        limits = RateLimitsSpec(input_tokens=PeriodLimits(per_day=5000))
        directory = stage.gateway.admission.senders.directory
        key = an_api_key("kb", name="kb", tenant=GUEST, team="search", limits=limits)
        stage.gateway.admission.update(
            a_directory(stage.model, keys=[key], tenants=directory.tenants, prices=stage.price)
        )
        left = []
        for _ in range(2):
            answer, _ = await stage.play(WITHOUT_MAXIMUM)
            left.append(int(answer.headers["x-ratelimit-remaining-tokens"]))
        # As it was counted, and as it was read.
        assert left[0] - left[1] == 10 + 7


async def test_only_whole_maxima_are_taken() -> None:
    async with a_stage(reporting(USED), MANY) as stage:
        for value in ("0", "-1", "1000000001", '"100"', "1e400", "100.5", "true"):
            answer, record = await stage.play(A.replace(b"100", value.encode()))
            assert (answer.status, record.charge_nanos) == (400, None), value
        for value in ("null", "1000000000"):
            assert (await stage.play(A.replace(b"100", value.encode())))[0].status == 200
        # Both are bounded by the context.
        assert all(each.json["max_tokens"] >= 1000 for each in stage.engine.calls)


async def test_a_completion_of_no_tokens_reserves_one() -> None:
    reserved = []

    async def counts(call: EngineCall) -> None:
        reserved.append(stage.reserved)
        await call.whole(a_whole({"prompt_tokens": 7, "completion_tokens": 1}, "word"))

    body = {"model": "chat", "prompt": "hi", "max_tokens": 0}
    async with a_stage(counts, MANY) as stage:
        _, record = await stage.play(body, COMPLETIONS)
        assert record.charge_nanos == 7 * INPUT + OUTPUT
        assert reserved[0] <= 1100 * INPUT + OUTPUT


def _largest(body: bytes) -> int:
    """Return the largest maximum that an engine may read in a body, whichever it goes by."""
    sent: list[int] = []

    def collect(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        for name, value in pairs:
            if name in ("max_tokens", "max_completion_tokens", "max_output_tokens") and value:
                sent.append(value)
        return dict(pairs)

    json.loads(body, object_pairs_hook=collect)
    return max(sent)


@pytest.mark.parametrize(
    "fields",
    [
        '"max_tokens":1,"max_completion_tokens":1500',
        '"max_completion_tokens":1500,"max_tokens":1',
        '"max_tokens":1500,"max_completion_tokens":1',
        '"max_completion_tokens":1,"max_tokens":1500',
        '"max_tokens":1500,"max_completion_tokens":null',
    ],
)
@pytest.mark.parametrize("stream", [False, True])
async def test_whichever_maximum_an_engine_goes_by_is_paid(fields: str, stream: bool) -> None:
    body = b'{"model":"chat","messages":[],%b%b}' % (
        fields.encode(), b',"stream":true' if stream else b""
    )  # fmt: skip

    async def largest(call: EngineCall) -> None:
        output = _largest(call.body)
        usage = {"prompt_tokens": 7, "completion_tokens": output}
        if not stream:
            await call.whole(a_whole(usage, "x" * output))
            return
        words = [a_delta("word")] * output
        await call.stream(ROLE, b"".join(words), END, a_usage(usage), DONE)

    async with a_stage(largest, MANY) as stage:
        answer, record = await stage.play(body)
        assert answer.status == 200
        delivered = _largest(stage.engine.calls[0].body)
        assert record.charge_nanos == 7 * INPUT + delivered * OUTPUT


@pytest.mark.parametrize("spaces", [b"", b" ", b" " * 2**15], ids=["none", "some", "many"])
@pytest.mark.parametrize(
    ("path", "fields"),
    [
        ("/v1/chat/completions", '"max_tokens":1,"max_tokens":1500'),
        ("/v1/chat/completions", '"max_tokens":1500,"max_tokens":1'),
        ("/v1/chat/completions", '"max_tokens":1500,"max_\\u0074okens":1'),
        ("/v1/chat/completions", '"max_completion_tokens":9,"max_completion_tokens":null'),
        ("/v1/chat/completions", '"n":9,"n":1'),
        ("/v1/chat/completions", '"stream":true,"stream":false'),
        ("/v1/chat/completions", '"model":"talk"'),
        ("/v1/responses", '"max_output_tokens":1500,"max_output_tokens":1'),
        (COMPLETIONS, '"best_of":9,"best_of":1'),
        (COMPLETIONS, '"prompt":["a","b","c"],"prompt":"a"'),
        ("/v1/embeddings", '"input":["a","b","c"],"input":"a"'),
        ("/v1/rerank", '"query":"a","documents":["b","c"],"documents":["b"]'),
    ],
)
async def test_a_body_with_two_values_of_what_costs_money_is_refused(
    path: str, fields: str, spaces: bytes
) -> None:
    body = b'{"model":%b"chat",%b}' % (spaces, fields.encode())
    async with a_stage(reporting(USED), MANY) as stage:
        answer, record = await stage.play(body, path)
        assert (answer.status, record.charge_nanos) == (400, None)
        assert answer.error["message"].endswith(": the body has it twice; send it once")
        assert not stage.engine.calls


async def test_names_may_come_again_where_they_cost_nothing() -> None:
    tool = '{"type":"function","function":{"name":"n","parameters":{"n":1,"model":2}}}'
    for fields in (f'"tools":[{tool},{tool}]', '"metadata":{"n":"1"},"user":"a","user":"b"'):
        async with a_stage(reporting(USED), MANY) as stage:
            for spaces in (b"", b" ", b" " * 2**15):
                body = A.replace(b"}]", b'}],%b"n":1,%b' % (spaces, fields.encode()))
                assert (await stage.play(body))[0].status == 200


async def test_what_an_engine_refuses_costs_nothing() -> None:
    async def refuses(call: EngineCall) -> None:
        await call.whole({"error": {"message": "min_tokens is above max_tokens"}}, 400)

    async with a_stage(refuses, MANY) as stage:
        body = A.replace(b"}]", b'}],"min_tokens":4096')
        for each in (body, STREAM):
            answer, record = await stage.play(each)
            assert (answer.status, record.charge_nanos) == (400, 0)


# --- Leaving before the bill.


WORDS = 60


async def _reads(stage: PaidStage, words: int) -> None:
    """Read so many words of a stream, and leave."""
    headers = {"content-type": "application/json", "authorization": "Bearer kb"}
    url = f"{stage.gateway.url}/v1/chat/completions"
    async with stage.gateway.client.post(url, data=STREAM, headers=headers) as response:
        received = b""
        while received.count(b'"word"') < words:
            received += await response.content.readany()
        response.close()


@pytest.mark.parametrize("words", [1, 3, 50, WORDS])
async def test_who_leaves_a_stream_pays_what_he_read(words: int) -> None:
    async def slow(call: EngineCall) -> None:
        await call.begin()
        await call.chunk(ROLE)
        for _ in range(words):
            await call.chunk(a_delta("word"))
        # Its usage would come next.
        await call.gone.wait()

    async with a_stage(slow, MANY) as stage:
        await _reads(stage, words)
        record = await stage.gateway.take_record()
        assert record.reason == "ClientGone"
        assert record.charge_nanos is not None
        least = words * OUTPUT + INPUT
        assert least <= record.charge_nanos <= 1024 * OUTPUT + STREAM_BOUND * INPUT


@pytest.mark.parametrize("body", [STREAM, A], ids=["stream", "whole"])
async def test_who_leaves_before_the_first_token_pays_his_prompt(body: bytes) -> None:
    async def silent(call: EngineCall) -> None:
        await call.gone.wait()

    async with a_stage(silent, MANY) as stage:
        request = asyncio.create_task(stage.post(body))
        await stage.gateway.wait_for_in_flight(1)
        await asyncio.sleep(0.2)
        request.cancel()
        record = await stage.gateway.take_record()
        assert record.charge_nanos is not None
        # Of an answer that is no stream its engine can have made some tokens.
        made_tokens = 0 if body is STREAM else 4
        assert INPUT + made_tokens * OUTPUT <= record.charge_nanos <= RESERVED
        assert record.estimated


async def test_who_leaves_before_an_engine_has_his_request_pays_nothing() -> None:
    async with a_stage(reporting(USED), MANY) as stage:
        stage.model = replace(stage.model, replicas=(), may_sleep=True, wake="All")
        stage.limit(MANY)
        request = asyncio.create_task(stage.post(A))
        await stage.gateway.wait_for_queue(1)
        request.cancel()
        record = await stage.gateway.take_record()
        assert (record.reason, record.charge_nanos or 0) == ("ClientGone", 0)


# --- Usage that is asked for, and that is not.


def _options(text: str) -> bytes:
    return STREAM[:-1] + b"," + text.encode() + b"}"


@pytest.mark.parametrize(
    ("options", "shown"),
    [
        ('"stream_options":{"include_usage":false}', 0),
        ('"stream_options":null', 0),
        ('"stream_options":{}', 0),
        ('"stream_options":{"include_usage":true}', 1),
        ('"stream_options":{"include_usage":true,"continuous_usage_stats":true}', 1),
        ('"stream_options":{"include_usage":true},"stream_options":{"include_usage":false}', 0),
        ('"stop":"w"', 0),
    ],
)
async def test_a_stream_is_charged_once_whoever_sees_its_usage(options: str, shown: int) -> None:
    async def counts(call: EngineCall) -> None:
        assert call.json["stream_options"]["include_usage"] is True
        assert call.body.count(b'"include_usage"') == 1
        used = {"prompt_tokens": 7, "completion_tokens": 1, "total_tokens": 8}
        word = a_usage(used, [{"index": 0, "delta": {"content": "word"}}])
        more = a_usage(USED, [{"index": 0, "delta": {"content": "word"}}])
        continuous = "continuous" in call.body.decode()
        words = (word, more) if continuous else (a_delta(), a_delta())
        await call.stream(ROLE, *words, END, a_usage(USED), DONE)

    async with a_stage(counts, MANY) as stage:
        answer, record = await stage.play(_options(options))
        assert (record.charge_nanos, record.estimated) == (CHARGE, False)
        costs = [usage["cost"] for usage in with_cost(answer) if "cost" in usage]
        assert costs == [0.000038] * shown
        assert b"e-05" not in answer.body
        if shown:
            assert with_cost(answer)[-1]["cost"] == 0.000038


async def test_options_of_a_stream_that_are_none_are_refused() -> None:
    async with a_stage(reporting(USED), MANY) as stage:
        for value in ('"yes"', "[]", '{"include_usage":"true"}', '{"include_usage":1}'):
            answer, record = await stage.play(_options(f'"stream_options":{value}'))
            assert (answer.status, record.charge_nanos) == (400, None)
        whole = A.replace(b"}]", b'}],"stream_options":{"include_usage":true}')
        answer, record = await stage.play(whole)
        assert (answer.headers["x-tessera-charge"], record.charge_nanos) == ("0.000038 USD", CHARGE)


async def test_usage_beside_choices_and_twice_counts_once() -> None:
    async def counts(call: EngineCall) -> None:
        last = a_usage(USED, [{"index": 0, "delta": {}, "finish_reason": "stop"}])
        words = [a_delta()] * 3
        await call.stream(ROLE, *words, last, a_usage(USED), a_usage(USED), DONE)

    async with a_stage(counts, MANY) as stage:
        _, record = await stage.play(STREAM)
        assert (record.charge_nanos, record.estimated) == (CHARGE, False)


# --- Engines of others that claim too much.


def _claim(prompt: Any, completion: Any, **details: Any) -> dict[str, Any]:
    return {"prompt_tokens": prompt, "completion_tokens": completion, **details}


@pytest.mark.parametrize(
    ("usage", "output"),
    [
        (_claim(10**9, 10**9), 5),
        (_claim(BOUND, 100), 5),
        (_claim(7, 100), 5),
        (_claim(7, 100, completion_tokens_details={"reasoning_tokens": 100}), 5),
    ],
    ids=["10^9", "all", "100", "reasoning"],
)
@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
async def test_a_guest_pays_no_more_tokens_than_the_bytes_that_came(
    usage: Any, output: int, stream: bool
) -> None:
    body = A.replace(b"100}", b'100,"stream":true}') if stream else A
    async with a_stage(reporting(usage), MANY) as stage:
        _, record = await stage.play(body)
        assert record.charge_nanos is not None
        prompt = min(usage["prompt_tokens"], STREAM_BOUND if stream else BOUND)
        assert record.charge_nanos - prompt * INPUT <= output * OUTPUT
        assert record.estimated


@pytest.mark.parametrize(
    "usage",
    [
        None,
        {},
        {"prompt_tokens": 7},
        {"completion_tokens": 3},
        _claim(7, 0),
        _claim(0, 3),
        _claim(7, 900),
        _claim(10**9, 10**9),
        _claim(7, 90, completion_tokens_details={"reasoning_tokens": 80}),
        _claim(900, 3, prompt_tokens_details={"cached_tokens": 900}),
        USED,
    ],
)
@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize("key", ["ka", "kb"], ids=["owner", "guest"])
async def test_a_record_has_the_tokens_that_its_charge_is_for(
    usage: Any, stream: bool, key: str
) -> None:
    body = A.replace(b"100}", b'100,"stream":true}') if stream else A
    async with a_stage(reporting(usage, "many words " * 8), MANY) as stage:
        _, record = await stage.play(body, key=key)
        price = stage.price.find("USD", GUEST, ["chat"], time.time())
        assert record.charge_nanos == charge_of(
            price,
            input_tokens=record.input_tokens,
            cached=record.cached_tokens,
            output=record.output_tokens,
            reasoning=record.reasoning_tokens,
        )
        assert record.output_tokens > 0
        assert record.estimated or record.output_tokens == usage["completion_tokens"]


async def test_a_tenant_pays_its_own_engine_as_it_counts_within_what_is_possible() -> None:
    async with a_stage(reporting(_claim(7, 100)), MANY) as stage:
        _, record = await stage.play(A, key="ka")
        assert (record.charge_nanos, record.estimated) == (7 * INPUT + 100 * OUTPUT, False)


async def test_white_space_around_an_answer_is_no_token_of_it() -> None:
    async def pads(call: EngineCall) -> None:
        body = a_whole(None if json.loads(call.body).get("n") else _claim(7, 100), "word")
        await call.whole(b" " * 100_000 + body)

    async with a_stage(pads, MANY) as stage:
        for body in (A, A.replace(b"}]", b'}],"n":1')):
            _, record = await stage.play(body)
            assert record.charge_nanos is not None
            assert record.charge_nanos <= 40 * INPUT + 5 * OUTPUT
            assert record.estimated


async def test_blanks_of_a_text_cost_as_many_tokens_as_it_may_have_at_most() -> None:
    async with a_stage(reporting(_claim(7, 10**6), " " * 100_000), MANY) as stage:
        _, record = await stage.play(A)
        assert record.charge_nanos == 7 * INPUT + 100 * OUTPUT


async def test_events_without_text_are_no_tokens_that_a_guest_pays() -> None:
    async def empty(call: EngineCall) -> None:
        await call.stream(
            ROLE, a_delta("word"), a_delta("") * 4096, END, a_usage(_claim(7, 100)), DONE
        )

    async with a_stage(empty, MANY) as stage:
        _, record = await stage.play(A.replace(b"100}", b'100,"stream":true}'))
        assert record.charge_nanos is not None
        assert record.charge_nanos <= 7 * INPUT + 6 * OUTPUT


async def test_claims_that_are_cut_do_not_make_later_requests_dearer() -> None:
    reserved = []

    async def claims(call: EngineCall) -> None:
        reserved.append(stage.reserved)
        await call.whole(a_whole(_claim(7, 10**9), "word"))

    async with a_stage(claims, MANY) as stage:
        for _ in range(21):
            assert (await stage.post(A)).status == 200
        # Less than a usual answer is refused: as before, so much is none.
        stage.limit(BOUND * INPUT + 1024 * OUTPUT)
        assert (await stage.post(WITHOUT_MAXIMUM)).status == 200


# --- Engines that let friends go free.


SILENT: Sequence[tuple[str, Any]] = [
    ("null", None),
    ("nothing", {}),
    ("zeros", _claim(0, 0)),
    ("negative", _claim(-7, -3)),
    ("fractions", _claim(7.5, 3.5)),
    ("texts", _claim("7", "3")),
    ("endless", _claim(float("inf"), float("inf"))),
    ("10^400", _claim(10**400, 10**400)),
    ("no numbers", _claim(True, True)),
    ("the sum alone", {"total_tokens": 1}),
    ("no prompt", _claim(0, 100)),
    ("no answer", _claim(7, 0)),
]


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
async def test_an_answer_without_a_count_is_estimated(stream: bool) -> None:
    async def counts(call: EngineCall) -> None:
        usage = SILENT[len(stage.engine.calls) - 1][1]
        if call.json.get("stream"):
            await call.stream(ROLE, *[a_delta("word")] * 100, END, a_usage(usage), DONE)
        else:
            await call.whole(a_whole(usage, "word" * 100))

    async with a_stage(counts, MANY) as stage:
        for name, _ in SILENT:
            body = A.replace(b"100}", b'100,"stream":true}') if stream else A
            answer, record = await stage.play(body)
            assert record.charge_nanos is not None
            assert answer.status == 200
            assert record.charge_nanos >= INPUT + 100 * OUTPUT, name
            assert record.estimated, name


async def test_a_small_count_of_a_whole_answer_is_believed_but_never_free() -> None:
    """A complete answer costs its tokens, which its engine counts: the owner is who loses."""

    async def counts(call: EngineCall) -> None:
        usage = _claim(7, 1)
        if call.json.get("stream"):
            await call.stream(ROLE, *[a_delta("word")] * 100, END, a_usage(usage), DONE)
        else:
            await call.whole(a_whole(usage, "word" * 100))

    async with a_stage(counts, MANY) as stage:
        for body in (A, STREAM):
            _, record = await stage.play(body)
            assert record.charge_nanos == 7 * INPUT + OUTPUT


async def test_an_end_without_usage_and_a_cut_are_no_free_answers() -> None:
    async def ends(call: EngineCall) -> None:
        words = [a_delta("word")] * 100
        if len(stage.engine.calls) == 1:
            await call.stream(ROLE, *words, END, DONE)
            return
        await call.begin()
        await call.chunk(ROLE + b"".join(words))
        call.cut()

    async with a_stage(ends, MANY) as stage:
        for phase in ("Completed", "Failed"):
            _, record = await stage.play(STREAM)
            assert record.charge_nanos is not None
            assert (record.phase, record.estimated) == (phase, True)
            assert (
                INPUT + 100 * OUTPUT <= record.charge_nanos <= STREAM_BOUND * INPUT + 102 * OUTPUT
            )


async def test_what_a_failing_engine_said_in_its_refusal_costs_nothing() -> None:
    async def fails(call: EngineCall) -> None:
        await call.whole(COMPLETION, 500)

    async with a_stage(fails, MANY) as stage:
        answer, record = await stage.play(A)
        assert (answer.status >= 500, record.charge_nanos) == (True, 0)


# --- Parts of counts.


@pytest.mark.parametrize(
    ("usage", "price", "charge"),
    [
        (
            _claim(
                7, 3,
                prompt_tokens_details={"cached_tokens": 9},
                completion_tokens_details={"reasoning_tokens": 50},
            ),
            {"reasoning": "16"},
            51_500,
        ),
        (_claim(7, 3, prompt_tokens_details={"cached_tokens": 7}), {"cached_input": None}, CHARGE),
        (
            _claim(
                BOUND, 100,
                prompt_tokens_details={"cached_tokens": BOUND},
                completion_tokens_details={"reasoning_tokens": 100},
            ),
            {"cached_input": "10", "reasoning": "4"},
            11_410_000,
        ),
    ],
    ids=["larger", "no price", "dear"],
)  # fmt: skip
async def test_parts_of_counts_have_prices_of_their_own(
    usage: Any, price: Any, charge: int
) -> None:
    limit = BOUND * 10_000 + 100 * OUTPUT
    async with a_stage(reporting(usage, "x" * 400), limit, price=price) as stage:
        answer, record = await stage.play(A)
        assert (answer.status, record.charge_nanos) == (200, charge)


async def test_the_dearest_price_that_tokens_may_have_is_reserved() -> None:
    price = {"cached_input": "10", "reasoning": "16"}
    async with a_stage(reporting(USED), 12_000_000, price=price) as stage:
        assert refused_for_money(await stage.post(A))
        assert not stage.answered_calls
        stage.limit(12_610_000)
        assert (await stage.post(A)).status == 200


async def test_a_negative_part_makes_a_count_none() -> None:
    usage = _claim(7, 3, prompt_tokens_details={"cached_tokens": -1})
    async with a_stage(reporting(usage), MANY) as stage:
        _, record = await stage.play(A)
        assert record.estimated
        assert record.charge_nanos is not None
        assert INPUT + OUTPUT <= record.charge_nanos <= RESERVED


async def test_created_cache_is_input_within_the_bound() -> None:
    usage = {
        "input_tokens": 2,
        "output_tokens": 3,
        "cache_read_input_tokens": 5,
        "cache_creation_input_tokens": 10**9,
    }

    async def counts(call: EngineCall) -> None:
        content = [{"type": "text", "text": "three words more"}]
        await call.whole({"type": "message", "content": content, "usage": usage})

    async with a_stage(counts, MANY) as stage:
        _, record = await stage.play(A, "/v1/messages")
        assert record.charge_nanos == 5 * CACHED + (BOUND - 5) * INPUT + 3 * OUTPUT


# --- The same again.


async def test_each_request_is_charged_whatever_id_its_client_gives_it() -> None:
    async with a_stage(reporting(USED), MANY) as stage:
        for _ in range(10):
            await stage.post(A, **{"x-request-id": "same"})
        records = await stage.records(10)
        assert sum(record.charge_nanos or 0 for record in records) == 10 * CHARGE
        assert len({record.record_id for record in records}) == 10


def test_a_message_that_is_repeated_or_late_changes_no_account() -> None:
    account, scope = ChargeAccount(), a_scope(1000)
    start = int(period_at("Day", datetime.fromtimestamp(NOON, UTC), ZoneInfo("Europe/Berlin"))
                .start.timestamp())  # fmt: skip

    def say(number: int, **fields: Any) -> Any:
        values: dict[str, Any] = {
            "ceiling": 0,
            "used": 0,
            "reserved": 0,
            "need": 0,
            "want": 0,
            **fields,
        }
        ask = ChargeAsk(scope=scope, start=start, number=number, **values)
        return account.exchange("a", ask, NOON)

    assert say(1, need=100, want=100).ceiling == 100
    before = account.to_json()
    # Another amount under the same number, and an older number after it.
    for number in (1, 0):
        answer = say(number, need=900, want=900)
        assert (answer.ceiling, answer.outcome) == (100, LendingOutcome.WAIT)
        assert account.to_json() == before
    assert say(3, ceiling=100, used=40).settled == 40
    before = account.to_json()
    say(2, ceiling=100, used=0, reserved=100)
    assert account.to_json() == before
    account.record("a", 40)
    assert account.settled == 40


# --- Whose purse.


async def test_a_model_has_no_other_purse_under_another_name() -> None:
    limits = [
        a_charge_limit(MANY, budget=GUEST, name="users", kind=MemberKind.USER),
        a_charge_limit(MANY, budget=GUEST, name="keys", kind=MemberKind.KEY),
        a_charge_limit(MANY, budget=GUEST, name="teams", kind=MemberKind.TEAM),
        a_charge_limit(MANY, budget=GUEST, name="services", kind=MemberKind.SERVICE),
    ]
    body = A.replace(b"100", b"3").replace(b"}]", b'}],"user":"x1","safety_identifier":"x3"')
    # For two answers of three tokens, one after the other.
    chat = a_charge_limit(
        (len(body) + 1024) * INPUT + 3 * OUTPUT + CHARGE,
        budget=GUEST,
        name="chat",
        kind=MemberKind.MODEL,
        member="chat",
    )
    async with a_stage(reporting(USED), *limits, chat, names=("chat", "talk")) as stage:
        for user in (b"x1", b"x2"):
            assert (await stage.post(body.replace(b"x1", user))).status == 200
        scopes = {key.scope for key in stage.gateway.accounts.charges}
        assert scopes == {
            "team-b/keys/Key/kb", "team-b/teams/Team/search",
            "team-b/services/Service/team-a/chat", "team-b/chat",
        }  # fmt: skip
        for name, status in (
            ("talk", {429}), ("chat", {429}), ("CHAT", {404, 429}), ("Chat", {404, 429}),
            (" chat", {404}), ("Talk", {404, 429}),
        ):  # fmt: skip
            answer = await stage.post(body.replace(b'"chat"', b'"%b"' % name.encode()))
            assert answer.status in status, name
        forged = {
            "x-tessera-user": "x", "x-tessera-key": "kb2", "x-tessera-team": "ops",
            "x-tessera-tenant": "team-c", "openai-organization": "team-c", "openai-project": "ops",
        }  # fmt: skip
        assert (await stage.post(body, **forged)).status == 429
        assert len(stage.answered_calls) == 2
        assert {key.scope for key in stage.gateway.accounts.charges} == scopes


async def test_a_key_without_a_team_has_its_tenant_limits() -> None:
    limits = [
        a_charge_limit(MANY, budget=GUEST, name="teams", kind=MemberKind.TEAM),
        a_charge_limit(3_002_000, budget=GUEST, name="all"),
    ]
    async with a_stage(reporting(USED), *limits) as stage:
        assert (await stage.post(A, key="kn")).status == 200
        assert {key.scope for key in stage.gateway.accounts.charges} == {"team-b/all"}
        assert refused_for_money(await stage.post(A, key="kn"))


async def test_a_key_called_as_each_key_has_an_account_of_its_own() -> None:
    each = a_charge_limit(RESERVED, budget=GUEST, name="keys", kind=MemberKind.KEY)
    named = a_charge_limit(MANY, budget=GUEST, name="star", kind=MemberKind.KEY, member="kb2")
    async with a_stage(reporting(USED), each, named) as stage:
        assert (await stage.post(A)).status == 200
        assert (await stage.post(A, key="kb2")).status == 200
        # The named and the general limit hold together.
        assert refused_for_money(await stage.post(A, key="kb2"))
        scopes = {key.scope for key in stage.gateway.accounts.charges}
        assert scopes == {"team-b/keys/Key/kb", "team-b/keys/Key/kb2", "team-b/star"}


# --- Many names.


def test_an_account_that_is_forgotten_does_not_come_back_full() -> None:
    fleet = ChargeFleet()
    member = fleet.start()
    limit = a_scope(1000, window="Month").limit
    scopes = [replace(a_scope(1000), key=f"team-a/users/User/{name}", limit=limit)
              for name in range(300)]  # fmt: skip
    for scope in scopes:
        fleet.spend(member, (scope,), 800)
    for _ in range(12):
        fleet.renew(2.0)
    assert not member.charges._lent
    assert not member.charges._current
    assert fleet.refuse(member, (scopes[0],), 300).left == 200


# --- Engines that break.


async def test_tokens_after_the_end_of_a_choice_are_paid_as_its_engine_counts() -> None:
    async def goes_on(call: EngineCall) -> None:
        await call.stream(ROLE, *[a_delta()] * 3, END, *[a_delta()] * 50, a_usage(USED), DONE)

    async with a_stage(goes_on, MANY) as stage:
        _, record = await stage.play(STREAM)
        assert record.charge_nanos == CHARGE


async def test_what_time_ended_pays_what_was_delivered() -> None:
    async def stops(call: EngineCall) -> None:
        await call.begin()
        await call.chunk(ROLE + b"".join([a_delta("word")] * 50))
        await call.gone.wait()

    async with a_stage(stops, MANY, idle_seconds=0.3) as stage:
        _, record = await stage.play(STREAM)
        assert record.charge_nanos is not None
        assert record.reason == "EngineTimeout"
        prompt = record.charge_nanos - 50 * OUTPUT
        assert INPUT <= prompt <= STREAM_BOUND * INPUT
        assert prompt % INPUT == 0


async def test_an_engine_that_dies_before_a_token_is_not_paid() -> None:
    async def dies(call: EngineCall) -> None:
        if call.json.get("stream"):
            await call.begin()
            await call.chunk(ROLE)
        call.cut()

    async with a_stage(dies, MANY) as stage:
        for body in (A, STREAM):
            answer, record = await stage.play(body)
            assert (answer.status >= 500, record.charge_nanos) == (True, 0)


# --- Windows that turn.


HOUR = 3600.0
# In the middle of an hour, and of a day.
NOON = 1_800_014_400.0


def _at_turn(fleet: ChargeFleet, seconds: float) -> None:
    """Let it be so many seconds before the next hour begins."""
    at = fleet.now + fleet.clock_offset
    fleet.now += HOUR - at % HOUR - seconds


def test_each_reservation_is_paid_in_its_own_window() -> None:
    fleet, hour = ChargeFleet(), (a_scope(MANY, window="Hour"),)
    member = fleet.start()
    _at_turn(fleet, 1)
    reservation = fleet.admit(member, hour, STREAM_BOUND * INPUT + 1024 * OUTPUT)
    member.charges.shrink(reservation, (STREAM_BOUND - 100) * INPUT)
    assert isinstance(fleet.top_up(member, reservation, 256 * OUTPUT), ChargeReservation)
    fleet.now += 2
    assert isinstance(fleet.top_up(member, reservation, 256 * OUTPUT), ChargeReservation)
    charges = fleet.settle(member, reservation, 100 * INPUT + 1500 * OUTPUT)
    assert [nanos for _, _, nanos in charges] == [10_440_000, 1_760_000]
    assert charges[1][1] - charges[0][1] == HOUR


def test_a_turn_of_windows_gives_no_limit_twice() -> None:
    fleet, hour = ChargeFleet(), (a_scope(64 * RESERVED, window="Hour"),)
    members = [fleet.start() for _ in range(2)]
    _at_turn(fleet, 20)
    for _ in range(40):
        fleet.spend(members[0], hour, RESERVED // 10)
        fleet.renew(0.4)
    _at_turn(fleet, 0.05)
    served = Counter[int]()
    for _ in range(3):
        for member in members:
            for _ in range(64):
                answer = fleet.reserve(member, hour, RESERVED)
                if isinstance(answer, ChargeReservation):
                    for _, start, nanos in fleet.settle(member, answer, RESERVED):
                        served[start] += nanos
        fleet.now += 0.05
    assert len(served) == 2
    for key, account in fleet.accounts.all().items():
        assert fleet.charged[key] <= 64 * RESERVED
        assert account.settled + account.lent <= 64 * RESERVED


def test_what_is_left_of_a_window_is_not_in_the_next() -> None:
    fleet, hour = ChargeFleet(), (a_scope(RESERVED, window="Hour"),)
    member = fleet.start()
    _at_turn(fleet, 1)
    late = fleet.admit(member, hour, RESERVED)
    refusal = fleet.reserve(member, hour, RESERVED)
    assert isinstance(refusal, ChargeRefusal)
    assert refusal.is_reserved
    fleet.now += 2 * HOUR
    now = fleet.admit(member, hour, RESERVED)
    [(_, old, paid)] = fleet.settle(member, late, CHARGE)
    assert isinstance(fleet.reserve(member, hour, 1), ChargeRefusal)
    fleet.settle(member, now, RESERVED)
    fleet.renew(3.0)
    fleet.renew(3.0)
    accounts = {key.start: account for key, account in fleet.accounts.all().items()}
    assert (accounts[old].settled, accounts[old].lent, paid) == (CHARGE, 0, CHARGE)
    assert max(accounts) - old == 2 * HOUR
    assert accounts[max(accounts)].settled == RESERVED


async def test_a_stream_ends_where_the_new_window_is_spent() -> None:
    """The rest of the old window, which it reserved, it gets."""
    turned = asyncio.Event()
    shift = 0.0
    base = time.time()

    async def stream(call: EngineCall) -> None:
        await call.begin()
        await call.chunk(ROLE)
        for _ in range(900):
            await call.chunk(a_delta("word"))
        await turned.wait()
        while not call.gone.is_set():
            await call.chunk(a_delta("word"))
            await asyncio.sleep(0)

    limit = STREAM_BOUND * INPUT + 1280 * OUTPUT
    hour = a_charge_limit(limit, budget=GUEST, name="hour", window="Hour")
    async with a_stage(stream, hour) as stage:
        check = stage.gateway.accounts.unix_time

        def unix_time() -> float:
            check()
            # The clock stands early in its hour.
            return base - base % HOUR + 60 + (time.time() - base) + shift

        stage.gateway.accounts.unix_time = unix_time
        lending = stage.gateway.admission.reservations.charges.lending
        lending.clock_offset = unix_time() - time.monotonic()
        request = asyncio.create_task(stage.post(STREAM))
        await stage.gateway.wait_for_tokens(900)
        shift = HOUR
        lending.clock_offset += HOUR
        [scope] = lending._current
        [each] = [each.scope for each in lending._lent.values() if each.scope.key == scope]
        other = await stage.gateway.admission.reservations.charges._obtain((each,), limit, limit)
        # As if another client had spent it.
        charges = lending.settle(other, limit)
        turned.set()
        answer = await request
        record = await stage.gateway.take_record()
        assert 900 <= answer.body.count(b'"word"') <= 1281
        assert b'"length"' in answer.body
        assert b'"x_tessera_reason":"BudgetExceeded"' in answer.body
        [(_, start, nanos)] = record.charges
        assert start == base - base % HOUR
        assert (nanos, nanos <= limit) == (record.charge_nanos, True)
        stage.gateway.app._record(replace(record, charges=charges, charge_nanos=limit))


ZONES = (
    "Africa/Cairo", "Australia/Lord_Howe", "Asia/Kathmandu", "Pacific/Kiritimati",
    "America/Havana", "America/St_Johns", "Europe/Berlin", "Europe/Dublin", "Africa/Casablanca",
    "Antarctica/Troll", "America/Santiago", "Asia/Gaza", "UTC",
)  # fmt: skip
WINDOWS: Sequence[WindowName] = ("Hour", "Day", "Week", "Month")
_BEGAN = datetime(2026, 12, 1, tzinfo=UTC)


@given(
    zone=st.sampled_from(ZONES),
    window=st.sampled_from(WINDOWS),
    minutes=st.integers(0, 3 * 366 * 24 * 60),
)
@example("Africa/Cairo", "Day", 216_000)
def test_windows_of_all_zones_part_time(zone: str, window: WindowName, minutes: int) -> None:
    at, info = _BEGAN + timedelta(minutes=minutes), ZoneInfo(zone)
    period = period_at(window, at, info)
    assert period.start <= at < period.end
    following = next_period(period, info)
    assert following.start == period.end
    for moment in (period.start, period.end - timedelta(microseconds=1)):
        assert period_at(window, moment, info) == period
    length = (period.end - period.start) / timedelta(hours=1)
    if window == "Hour":
        assert length == 1
    elif window == "Day":
        assert length in {22, 23, 23.5, 24, 24.5, 25, 26}
    elif window == "Month":
        assert period.start.astimezone(info).day == 1


@pytest.mark.parametrize(
    ("zone", "at", "hours"),
    [
        ("Africa/Cairo", datetime(2027, 4, 30, 12, tzinfo=UTC), 23),
        ("Africa/Cairo", datetime(2027, 10, 28, 12, tzinfo=UTC), 25),
        ("Australia/Lord_Howe", datetime(2027, 10, 3, 6, tzinfo=UTC), 23.5),
        ("Australia/Lord_Howe", datetime(2027, 4, 4, 6, tzinfo=UTC), 24.5),
        ("Europe/Berlin", datetime(2027, 3, 28, 12, tzinfo=UTC), 23),
        ("Europe/Berlin", datetime(2027, 10, 31, 12, tzinfo=UTC), 25),
        ("America/Havana", datetime(2027, 11, 7, 18, tzinfo=UTC), 25),
        ("Pacific/Apia", datetime(2011, 12, 31, 6, tzinfo=UTC), 24),
    ],
)
def test_days_are_as_long_as_their_clocks(zone: str, at: datetime, hours: float) -> None:
    info = ZoneInfo(zone)
    day = period_at("Day", at, info)
    assert (day.end - day.start) / timedelta(hours=1) == hours
    hour_starts = set()
    moment = day.start
    while moment < day.end:
        hour = period_at("Hour", moment, info)
        assert hour.start not in hour_starts
        hour_starts.add(hour.start)
        moment = hour.end


@pytest.mark.parametrize("zone", ["Mars/X", "../../etc/passwd", "GMT+25", "x" * 64, "", "\0"])
def test_what_is_no_zone_has_no_windows(zone: str) -> None:
    assert zone_of(zone) is None
