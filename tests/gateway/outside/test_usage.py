"""What the answers of providers say of their bills."""

import json
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tessera.api.model_provider import ProviderProtocol
from tessera.domain.charge.prices import (
    NO_EXTRAS,
    BilledExtras,
    RequestPrice,
    charge_of,
    most_charge,
)
from tessera.domain.model.paths import PROTOCOLS
from tessera.domain.providers.dialects import PLAIN, CountPath, Dialect, dialects
from tessera.gateway.http.token_counts import TokenCounts
from tessera.gateway.outside.answers import read_answer
from tessera.gateway.outside.usage import GENERAL_PATHS, NO_BILL, AnswerBill, UsageReader
from tessera.gateway.usage.metrics import GatewayMetrics
from tests.gateway.outside.routing import a_body, routed
from world.provider import ProviderCall

CHAT, RESPONSES, MESSAGES = PROTOCOLS
PROMPT, DELIVERED = 40, 6


def a_usage(prompt: Any, completion: Any, total: Any = None, **fields: Any) -> dict[str, Any]:
    counts = {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": total}
    return {name: value for name, value in counts.items() if value is not None} | fields


def reasoning(tokens: Any) -> dict[str, Any]:
    return {"completion_tokens_details": {"reasoning_tokens": tokens}}


def read(*usages: Any, path: str = CHAT, dialect: Dialect = PLAIN) -> AnswerBill:
    reader = UsageReader(path, dialect, PROMPT)
    for usage in usages:
        reader.read_event(json.dumps({"usage": usage}).encode())
    return reader.bill(DELIVERED)


def a_bill(*counts: int, extras: BilledExtras = NO_EXTRAS, **others: Any) -> AnswerBill:
    names = ("input", "output", "cached", "reasoning")
    return AnswerBill(TokenCounts(**dict(zip(names, counts, strict=False))), extras, **others)


def unexplained(tokens: int) -> BilledExtras:
    return BilledExtras(unexplained=tokens)


@pytest.mark.parametrize(
    ("usage", "bill"),
    [
        # Reasoning beside the answer, as xAI counts it, and as part of it.
        (
            a_usage(10120, 1499, 14428, **reasoning(2809))
            | {"prompt_tokens_details": {"cached_tokens": 128}},
            a_bill(10120, 4308, 128, 2809),
        ),
        (a_usage(10, 90, 150, **reasoning(50)), a_bill(10, 140, 0, 50)),
        (a_usage(10, 90, 100, **reasoning(50)), a_bill(10, 90, 0, 50)),
        (a_usage(10, 90, **reasoning(50)), a_bill(10, 90, 0, 50)),
        (a_usage(10, 30, **reasoning(50)), a_bill(10, 80, 0, 50)),
        # Hits of caches at the top, as Kimi and DeepSeek count them.
        (a_usage(1000, 13, 1013, cached_tokens=900), a_bill(1000, 13, 900)),
        (
            a_usage(1000, 13, 1013, prompt_cache_hit_tokens=900, prompt_cache_miss_tokens=100),
            a_bill(1000, 13, 900),
        ),
        # The rest of a total is an answer, and so are hits that cannot be part of their prompt.
        (a_usage(10, 5, 40), a_bill(10, 30, extras=unexplained(25))),
        (a_usage(10, 5, 40, **reasoning(20)), a_bill(10, 30, 0, 20, extras=unexplained(5))),
        (a_usage(10, 5, 40, **reasoning(3)), a_bill(10, 30, 0, 3, extras=unexplained(25))),
        (a_usage(10, 5, 105, cached_tokens=90), a_bill(100, 5, 90)),
        (a_usage(10, 5, cached_tokens=90), a_bill(100, 5, 90)),
        # What contradicts itself, or is no count.
        (a_usage(10, 5, 3), a_bill(10, 5, is_doubtful=True)),
        (a_usage(-1, 5, 15), a_bill(10, 5, is_doubtful=True)),
        (a_usage("many", 5), a_bill(PROMPT, 5, is_doubtful=True)),
        (a_usage(10, 10**30, 15), a_bill(10, 5)),
        (a_usage(10, True), a_bill(10, DELIVERED, is_doubtful=True)),
        (a_usage(10, 5, 15, cached_tokens=-4, **reasoning("all")), a_bill(10, 5)),
        (a_usage(10, 5.0, -3, completion_tokens_details=[]), a_bill(10, 5)),
        ({"total_tokens": 100}, a_bill(PROMPT, 60, is_doubtful=True)),
        (a_usage(0, 5, 15), a_bill(10, 5, is_doubtful=True)),
        (a_usage(10, 0), a_bill(10, DELIVERED, is_doubtful=True)),
        (a_usage(10, 0, 60, **reasoning(50)), a_bill(10, 50, 0, 50)),
        ({"cached_tokens": 7}, NO_BILL),
        (a_usage(-1, None), NO_BILL),
        ([], NO_BILL),
        ("none", NO_BILL),
    ],
)
def test_the_total_says_which_counts_stand_beside_others(usage: Any, bill: AnswerBill) -> None:
    assert read(usage) == bill


@pytest.mark.parametrize(
    ("usage", "bill"),
    [
        (
            {
                **{"input_tokens": 2, "output_tokens": 3, "cache_read_input_tokens": 5},
                "cache_creation_input_tokens": 9,
                "cache_creation": {"ephemeral_5m_input_tokens": 3, "ephemeral_1h_input_tokens": 6},
                "server_tool_use": {"web_search_requests": 2},
                "output_tokens_details": {"thinking_tokens": 1},
            },
            a_bill(
                *(16, 3, 5, 1),
                extras=BilledExtras(cache_writes=3, long_cache_writes=6, searches=2),
            ),
        ),
        (
            {"input_tokens": 2, "output_tokens": 3, "cache_creation_input_tokens": 9},
            a_bill(11, 3, extras=BilledExtras(cache_writes=9)),
        ),
        ({"input_tokens": 0, "output_tokens": 3, "cache_read_input_tokens": 9}, a_bill(9, 3, 9)),
        # A total of a proxy that adds the two alone.
        (
            {
                "input_tokens": 2,
                "output_tokens": 3,
                "cache_read_input_tokens": 9,
                "total_tokens": 5,
            },
            a_bill(11, 3, 9, is_doubtful=True),
        ),
    ],
)
def test_counts_of_messages_stand_beside_those_of_caches(usage: Any, bill: AnswerBill) -> None:
    assert read(usage, path=MESSAGES) == bill


def a_dialect(protocol: ProviderProtocol, **counts: Any) -> Dialect:
    paths = [
        CountPath(path=tuple(path.split(".")), count=name)
        for name, many in counts.items()
        for path in many
    ]
    return Dialect(counts={protocol: tuple(paths)})


SEARCHING = a_dialect(
    "OpenAIChat",
    input=["prompt_tokens"],
    output=["completion_tokens", "reasoning_tokens", "citation_tokens"],
    searches=["num_search_queries"],
)


@pytest.mark.parametrize(
    ("usage", "bill"),
    [
        (
            a_usage(10, 5, citation_tokens=7, reasoning_tokens=20, num_search_queries=3),
            a_bill(10, 32, 0, 20, extras=BilledExtras(searches=3)),
        ),
        # The total says that what the row counts beside the answer is part of it.
        (
            a_usage(10, 50, 60, citation_tokens=7, reasoning_tokens=20),
            a_bill(10, 50, 0, 20, disagrees=True),
        ),
        (a_usage(10, 50, 87, citation_tokens=7, reasoning_tokens=20), a_bill(10, 77, 0, 20)),
    ],
)
def test_a_row_adds_to_the_general_rules_and_the_total_holds(usage: Any, bill: AnswerBill) -> None:
    assert read(usage, dialect=SEARCHING) == bill


@pytest.mark.parametrize(
    ("dialect", "usage", "nanos"),
    [
        # The bill of the first case above.
        (PLAIN, {"cost_in_usd_ticks": 232856000}, 23_285_600),
        (PLAIN, {"cost": 0.0232856, "cost_details": {"upstream_inference_cost": 9}}, 23_285_600),
        (PLAIN, {"cost": {"total_cost": 0.5}}, None),
        (dialects()["perplexity"], {"cost": {"total_cost": 0.5, "currency": "USD"}}, 500_000_000),
        (PLAIN, {"cost": -1}, None),
        (PLAIN, {"cost": 10**30}, None),
        (PLAIN, {"cost": "0.5"}, None),
    ],
)
def test_the_own_cost_of_a_provider_is_read(
    dialect: Dialect, usage: dict[str, Any], nanos: int | None
) -> None:
    assert read(usage, dialect=dialect).own_nanos == nanos


def test_a_dialect_says_that_the_rest_of_its_total_is_reasoning() -> None:
    dialect = Dialect(rest_is_reasoning=True)
    assert read(a_usage(10, 5, 40), dialect=dialect) == a_bill(10, 30, 0, 25)


def test_counts_that_come_again_grow_and_never_fall() -> None:
    usages = (a_usage(10, 1, 11), a_usage(10, 6, 16), a_usage(9, 2, 11), a_usage(10, 6, 16))
    assert read(*usages) == a_bill(10, 6)


def an_event(**fields: Any) -> bytes:
    return b"data: %b\n\n" % json.dumps({"model": "m", **fields}).encode()


TEXT = {"index": 0, "delta": {"role": "assistant", "content": "Yes."}}
END: dict[str, Any] = {"index": 0, "delta": {}, "finish_reason": "stop"}
USAGE = a_usage(100, 60, 160, cached_tokens=80)


@pytest.mark.parametrize(
    "events",
    [
        [an_event(choices=[TEXT]), an_event(choices=[{**END, "usage": USAGE}])],
        [an_event(choices=[TEXT]), an_event(choices=[END], x_groq={"usage": USAGE})],
        [an_event(choices=[TEXT]), an_event(choices=[END]), an_event(choices=[], usage=USAGE)],
        [
            an_event(choices=[TEXT], usage=a_usage(100, 1, 101)),
            an_event(choices=[END], usage=USAGE),
            an_event(choices=[], usage=USAGE),
            b"data: [DONE]\n\n",
            an_event(choices=[], usage=a_usage(200, 90, 290)),
        ],
    ],
)
async def test_counts_stand_in_any_event_of_a_stream(tmp_path: Path, events: list[bytes]) -> None:
    async def streams(call: ProviderCall) -> None:
        await call.head(200, "text/event-stream")
        for event in events:
            await call.chunk(event)
        await call.chunk(b"data: [DONE]\n\n")
        await call.end()

    async with routed(tmp_path) as world:
        world.provider.script = streams
        got = await world.gateway.post(a_body("A tessera. " * 20, stream=True))
        (record,) = await world.records(1)
    assert (got.status, record.estimated) == (200, False)
    assert (record.input_tokens, record.output_tokens, record.cached_tokens) == (100, 60, 80)


PRICE = RequestPrice(
    price_list="acme@0",
    currency="USD",
    **{"input": 3, "cached_input": 1, "output": 7, "reasoning": 11},
)
NAMES = sorted({name for path in GENERAL_PATHS for name in path} | {"cost", "choices"})
VALUES = st.recursive(
    st.none()
    | st.sampled_from([-1, 0, 1, 5, 10, 15, 10**9, 10**30, "5", 5.0, 1e308, True])
    | st.integers(-100, 100),
    lambda inner: st.dictionaries(st.sampled_from(NAMES), inner, max_size=6) | st.lists(inner),
    max_leaves=12,
)
USAGES = st.dictionaries(st.sampled_from(NAMES), VALUES, max_size=8) | VALUES


@given(usages=st.lists(USAGES, max_size=3), path=st.sampled_from([CHAT, RESPONSES, MESSAGES]))
def test_whatever_a_provider_counts_the_money_is_bounded_and_the_answer_arrives(
    usages: list[Any], path: str
) -> None:
    bill = read(*usages, path=path)
    counts, extras = (bill.counts or TokenCounts()).at_most(50, 20), bill.extras
    charge = charge_of(
        PRICE,
        input_tokens=counts.input,
        cached=counts.cached,
        output=counts.output,
        reasoning=counts.reasoning,
    )
    assert 0 <= charge <= most_charge(PRICE, input_tokens=50, output=20)
    assert min(extras.cache_writes, extras.long_cache_writes, extras.unexplained) >= 0
    assert bill.own_nanos is None or bill.own_nanos >= 0
    for usage in usages:
        body = json.dumps({"content": [], "text": "Yes.", "usage": usage}).encode()
        assert json.loads(read_answer(path, body, b"mark.").body)["text"] == "Yes."


@pytest.mark.parametrize("stream", [False, True])
async def test_the_own_cost_is_summed_beside_ours_and_no_client_sees_it(
    tmp_path: Path, stream: bool
) -> None:
    usage = {
        **a_usage(100, 60, 160),
        "cost": 0.0025,
        "cost_details": {"upstream": 1},
        "is_byok": False,
    }

    async def answers(call: ProviderCall) -> None:
        if not stream:
            message = {"message": {"content": "Yes, at any cost."}, "finish_reason": "stop"}
            await call.whole({"model": "m", "choices": [message], "usage": usage})
            return
        await call.head(200, "text/event-stream")
        text = {"index": 0, "delta": {"content": "Yes, at any cost."}}
        for event in (
            an_event(choices=[text]),
            an_event(choices=[END]),
            b'data: {"choices": [],\ndata: "usage": %b}\n\n' % json.dumps(usage).encode(),
        ):
            await call.chunk(event)
        await call.chunk(b"data: [DONE]\n\n")
        await call.end()

    async with routed(tmp_path) as world:
        world.provider.script = answers
        options = {"stream": True, "stream_options": {"include_usage": True}} if stream else {}
        got = await world.gateway.post(a_body("A tessera. " * 20, **options))
        (record,) = await world.records(1)
        page = GatewayMetrics(world.asked.client).page().decode()
    body = b"".join(got.events) if stream else got.body
    assert b"at any cost" in body
    assert b"upstream" not in body
    assert b"0.0025" not in body
    assert b"is_byok" not in body
    assert 'tessera_gateway_provider_own_cost_total{provider="acme"} 0.0025' in page
    compared = 'tessera_gateway_provider_compared_cost_total{provider="acme"} '
    assert f"{compared}{record.cost_nanos / 10**9:g}" in page


@pytest.mark.parametrize(("is_byok", "nanos"), [(False, 2_500_000), (True, None)])
def test_a_cost_on_the_bill_of_another_provider_is_not_compared(is_byok: bool, nanos: Any) -> None:
    reader = UsageReader(CHAT)
    usage = a_usage(100, 60, 160, cost=0.0025, is_byok=is_byok)
    reader.read_event(json.dumps({"usage": usage}).encode())
    assert reader.bill().own_nanos == nanos


def test_names_of_counts_that_a_provider_makes_up_are_not_kept() -> None:
    reader = UsageReader(CHAT, dialects()["x-ai"], PROMPT)
    tracemalloc.start()
    try:
        for number in range(2000):
            reader.read_event(json.dumps({"usage": {f"tokens_of_{number}": 5}}).encode())
        assert tracemalloc.get_traced_memory()[0] < 100_000
    finally:
        tracemalloc.stop()
    assert reader.bill() == NO_BILL


def test_caches_of_messages_are_counted_once_where_nothing_else_was_read() -> None:
    for dialect in (PLAIN, dialects()["anthropic"]):
        reader = UsageReader(MESSAGES, dialect, PROMPT)
        usage = {"input_tokens": 0, "cache_read_input_tokens": 9000, "output_tokens": 200}
        reader.read_event(json.dumps({"usage": usage}).encode())
        bill = reader.bill()
        assert bill.counts == TokenCounts(input=9000, cached=9000, output=200)
        assert not bill.disagrees


@pytest.mark.parametrize(
    ("path", "usage", "counts"),
    [
        (
            MESSAGES,
            {
                "input_tokens": 1000,
                "cache_read_input_tokens": 900,
                "output_tokens": 100,
                "total_tokens": 1100,
            },
            TokenCounts(input=1900, cached=900, output=100),
        ),
        (
            CHAT,
            a_usage(33, 9, 42, **reasoning(200)),
            TokenCounts(input=33, output=209, reasoning=200),
        ),
    ],
)
def test_a_total_without_what_stands_beside_it_is_doubted(
    path: str, usage: Any, counts: TokenCounts
) -> None:
    reader = UsageReader(path, PLAIN, PROMPT)
    reader.read_event(json.dumps({"usage": usage}).encode())
    bill = reader.bill()
    assert (bill.counts, bill.is_doubtful) == (counts, True)


async def test_a_provider_that_has_not_the_counts_of_its_dialect_is_named(tmp_path: Path) -> None:
    series = 'tessera_gateway_provider_dialect_disagreed{provider="acme"}'
    usages = [a_usage(10, 5, 15, **reasoning(2)), a_usage(10, 5, 22, **reasoning(7))]

    async def answers(call: ProviderCall) -> None:
        message = {"message": {"content": "Yes."}, "finish_reason": "stop"}
        await call.whole({"model": "m", "choices": [message], "usage": usages.pop()})

    async with routed(tmp_path, dialect="x-ai") as world:
        world.provider.script = answers
        metrics = GatewayMetrics(world.asked.client)
        await world.gateway.post(a_body())
        assert f"{series} 0.0" in metrics.page().decode()
        await world.gateway.post(a_body())
        assert f"{series} 1.0" in metrics.page().decode()
