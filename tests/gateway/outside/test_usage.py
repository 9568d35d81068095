"""What the answers of providers say of their bills."""

import json
from pathlib import Path
from typing import Any

import pytest

from tessera.api.model_provider import ProviderProtocol
from tessera.domain.charges.prices import NO_EXTRAS, BilledExtras
from tessera.domain.model.paths import PROTOCOLS
from tessera.domain.providers.dialects import PLAIN, CountPath, Dialect
from tessera.gateway.http.token_counts import TokenCounts
from tessera.gateway.outside.usage import AnswerBill, UsageReader
from tests.gateway.outside.routing import a_body, routed
from world.provider import ProviderCall

CHAT, RESPONSES, MESSAGES = PROTOCOLS
PROMPT, DELIVERED = 40, 6


def a_usage(prompt: Any, completion: Any, total: Any = None, **fields: Any) -> dict[str, Any]:
    counts = {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": total}
    return {name: value for name, value in counts.items() if value is not None} | fields


def reasoning(tokens: Any) -> dict[str, Any]:
    return {"completion_tokens_details": {"reasoning_tokens": tokens}}


def read(*usages: Any, path: str = CHAT, dialect: Dialect = PLAIN) -> AnswerBill | None:
    reader = UsageReader(path, dialect, PROMPT)
    for usage in usages:
        reader.read_event(json.dumps({"usage": usage}).encode())
    return reader.bill(DELIVERED)


def a_bill(*counts: int, extras: BilledExtras = NO_EXTRAS, is_doubtful: bool = False) -> AnswerBill:
    names = ("input", "output", "cached", "reasoning")
    tokens = TokenCounts(**dict(zip(names, counts, strict=False)))
    return AnswerBill(tokens, extras, is_doubtful=is_doubtful)


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
        ({"cached_tokens": 7}, None),
        (a_usage(-1, None), None),
        ([], None),
        ("none", None),
    ],
)
def test_the_total_says_which_counts_stand_beside_others(
    usage: Any, bill: AnswerBill | None
) -> None:
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
        (a_usage(10, 50, 60, citation_tokens=7, reasoning_tokens=20), a_bill(10, 50, 0, 20)),
        (a_usage(10, 50, 87, citation_tokens=7, reasoning_tokens=20), a_bill(10, 77, 0, 20)),
    ],
)
def test_a_row_adds_to_the_general_rules_and_the_total_holds(usage: Any, bill: AnswerBill) -> None:
    assert read(usage, dialect=SEARCHING) == bill


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
