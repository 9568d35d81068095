"""The prefix cache in responses and metrics, with the figures of a real server."""

from typing import Any

import pytest

from tessera_lab.sim import text
from tests.lab.sim.running import running

# 401 tokens.
PROMPT = "".join(f"{number:>4}" for number in range(401))
MESSAGES = [{"role": "user", "content": PROMPT}]
# On a CPU the real engine takes blocks of 128.
LIKE_CPU = ("--block-size", "128", "--enable-prompt-tokens-details")


def _details(cached: int) -> dict[str, Any]:
    return {"cached_tokens": cached, "created_cache_tokens": None, "multimodal_tokens": None}


async def test_a_repeated_prompt_comes_from_the_cache_in_whole_blocks() -> None:
    async with running(*LIKE_CPU) as engine:
        usages = [
            (await engine.post("/v1/completions", prompt=PROMPT, max_tokens=2)).json()["usage"]
            for _ in range(2)
        ]
    assert [usage["prompt_tokens_details"] for usage in usages] == [_details(0), _details(384)]


async def test_a_stream_has_the_cached_tokens_in_its_last_chunk() -> None:
    asked = {"prompt": PROMPT, "max_tokens": 2, "stream_options": {"include_usage": True}}
    async with running(*LIKE_CPU) as engine:
        await engine.stream("/v1/completions", **asked)
        events = await engine.stream("/v1/completions", **asked)
    assert events[-2]["usage"]["prompt_tokens_details"] == {"cached_tokens": 384}


async def test_metrics_distinguish_cached_from_computed_tokens() -> None:
    async with running(*LIKE_CPU) as engine:
        for _ in range(2):
            await engine.post("/v1/completions", prompt=PROMPT, max_tokens=2)
        await engine.post("/v1/completions", prompt="x" * 80, max_tokens=2)
        seen = await engine.metrics()
    wanted = {
        "prefix_cache_queries_total": 822,
        "prefix_cache_hits_total": 384,
        "prompt_tokens_total": 822,
        "prompt_tokens_by_source_total local_compute": 438,
        "prompt_tokens_by_source_total local_cache_hit": 384,
        "prompt_tokens_cached_total": 384,
        "prompt_tokens_cached_by_source_total device": 384,
        "prompt_tokens_cached_by_source_total host": 0,
        "iteration_tokens_total_sum": 438 + 6,
        "request_prefill_kv_computed_tokens_sum": 438,
        "request_prompt_tokens_sum": 822,
        "kv_cache_usage_perc": 0,
    }
    assert {name: seen[name] for name in wanted} == wanted


@pytest.mark.parametrize(
    ("flags", "cached"), [((), 400), (("--no-enable-prefix-caching",), 0)], ids=["on", "off"]
)
async def test_the_cache_is_on_unless_it_is_switched_off(
    flags: tuple[str, ...], cached: int
) -> None:
    async with running("--enable-prompt-tokens-details", *flags) as engine:
        for _ in range(2):
            response = await engine.post("/v1/completions", prompt=list(range(401)), max_tokens=2)
    assert response.json()["usage"]["prompt_tokens_details"] == _details(cached)


async def test_messages_that_begin_alike_share_their_beginning() -> None:
    system = {"role": "system", "content": "x" * 640}
    async with running("--enable-prompt-tokens-details") as engine:
        for question in ("why?", "how?"):
            messages = [system, {"role": "user", "content": question}]
            response = await engine.post("/v1/chat/completions", messages=messages, max_tokens=2)
    assert response.json()["usage"]["prompt_tokens_details"]["cached_tokens"] == 160


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions"])
async def test_prompts_of_another_salt_are_not_shared(path: str) -> None:
    prompt = {"prompt": PROMPT} if path == "/v1/completions" else {"messages": MESSAGES}
    cached = []
    async with running("--enable-prompt-tokens-details") as engine:
        for salt in (None, "a", "b", "a", None, "b"):
            response = await engine.post(path, **prompt, max_tokens=1, cache_salt=salt)
            cached.append(response.json()["usage"]["prompt_tokens_details"]["cached_tokens"])
        assert (await engine.post(path, **prompt, cache_salt="")).status_code == 400
    assert [tokens > 0 for tokens in cached] == [False, False, False, True, True, True]


def test_a_salt_is_no_beginning_of_a_text() -> None:
    names = {text.prefix_hashes(["bc"], "a"), text.prefix_hashes(["c"], "ab")}
    assert len(names | {text.prefix_hashes(["abc"]), text.prefix_hashes(["abc"], "")}) == 3


def test_equal_names_mean_equal_beginnings_and_not_only_equal_blocks() -> None:
    first, second = text.prefix_hashes(["a", "b", "c"]), text.prefix_hashes(["a", "x", "c"])
    assert first[0] == second[0]
    assert set(first[1:]).isdisjoint(second[1:])
    assert first == text.prefix_hashes(["a", "b", "c"])
