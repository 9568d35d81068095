"""What is known of a prompt by which it is found again."""

import json
import tracemalloc
from collections.abc import Mapping
from typing import Any

import msgspec
import pytest

from tessera.domain.gateway.prefixes import MAX_BLOCKS, PromptBlocks
from tessera.gateway.bodies.parsing import (
    ChatFields,
    CompletionFields,
    EmbeddingFields,
    RequestFields,
)
from tessera.gateway.resolve.shapes import SESSION_HEADER, prompt_blocks
from tests.gateway.harness import a_model

LONG = "x" * 3 * 2**20


def blocks(
    fields_type: type[RequestFields] = ChatFields,
    headers: Mapping[bytes, bytes] | None = None,
    tenant: str = "team-a",
    uid: str = "uid-chat",
    public: bool = True,
    **fields: Any,
) -> PromptBlocks | None:
    body = json.dumps({"model": "chat", **fields}).encode()
    parsed = msgspec.json.Decoder(fields_type).decode(body)
    model = a_model(public=public, adapters=("lora",), uid=uid)
    return prompt_blocks(parsed, headers or {}, model, (tenant, 1.0), 3000)


def test_the_tokens_of_a_huge_prompt_are_of_all_its_bytes() -> None:
    prompt = blocks(CompletionFields, prompt=LONG)
    assert prompt is not None
    assert len(prompt.hashes) == MAX_BLOCKS
    assert prompt.tokens(MAX_BLOCKS) == pytest.approx(1000, abs=1)


def test_what_a_running_stream_keeps_of_a_huge_prompt_is_small() -> None:
    tracemalloc.start()
    before, _ = tracemalloc.get_traced_memory()
    prompt = blocks(CompletionFields, prompt=LONG)
    after, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert prompt is not None
    assert after - before < 16 * MAX_BLOCKS


def test_what_is_no_part_of_a_prompt_takes_no_room_in_a_cache() -> None:
    # As of a body with 9,000 bytes of spaces.
    prompt = blocks(messages=[{"role": "user", "content": "x" * 1100}])
    assert prompt is not None
    assert len(prompt.hashes) == 1
    assert prompt.tokens(1) <= 1024
    assert prompt.prompt_tokens < 1200


@pytest.mark.parametrize(
    "changes",
    [{"tenant": "team-b"}, {"model": "lora"}, {"tools": [{"type": "function"}]}],
    ids=["tenant", "adapter", "tools"],
)
def test_prompts_that_find_nothing_of_each_other_have_other_hashes(changes: dict[str, Any]) -> None:
    messages = [{"role": "user", "content": "x" * 4096}]
    prompt, other = blocks(messages=messages), blocks(messages=messages, **changes)
    assert prompt is not None
    assert other is not None
    assert len(prompt.hashes) == len(other.hashes) == 4
    assert not set(prompt.hashes) & set(other.hashes)


def test_no_engine_keeps_the_input_of_a_pooling_route() -> None:
    assert blocks(EmbeddingFields, input="x" * 4096) is None


@pytest.mark.parametrize(
    ("given", "same"),
    [
        ({"headers": {SESSION_HEADER: b"a"}}, {"headers": {SESSION_HEADER: b"a"}, "user": "c"}),
        ({"prompt_cache_key": "a"}, {"prompt_cache_key": "a", "user": "c"}),
        ({"user": "a"}, {"user": "a", "prompt_cache_key": ["no text"]}),
    ],
    ids=["header", "prompt_cache_key", "user"],
)
def test_the_first_name_of_a_session_counts(given: dict[str, Any], same: dict[str, Any]) -> None:
    first, second, third = blocks(**given), blocks(**same), blocks(**given, tenant="team-b")
    assert first is not None
    assert second is not None
    assert third is not None
    assert first.session is not None
    assert first.session == second.session
    assert first.session != third.session


def test_a_session_is_one_of_each_model() -> None:
    first, second = (blocks(user="a", uid=uid, public=False) for uid in ("uid-chat", "uid-other"))
    assert first is not None
    assert second is not None
    assert first.session != second.session


def test_a_long_name_is_no_session() -> None:
    prompt = blocks(user="x" * 513)
    assert prompt is not None
    assert prompt.session is None
