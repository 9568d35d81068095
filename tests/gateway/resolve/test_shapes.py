"""What is known of a prompt by which it is found again."""

import json
import tracemalloc
from collections.abc import Mapping
from typing import Any

import msgspec
import pytest

from tessera.domain.gateway.prefixes import MAX_BLOCKS, PromptBlocks, PromptTurns
from tessera.gateway.bodies.media import read_media
from tessera.gateway.bodies.parsing import (
    ChatFields,
    CompletionFields,
    EmbeddingFields,
    MessagesFields,
    RequestFields,
    ResponsesFields,
)
from tessera.gateway.resolve.shapes import SESSION_HEADER, prompt_blocks, with_turns
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


SYSTEM, QUESTION = {"role": "system", "content": "Be short."}, {"role": "user", "content": "Why?"}
ANSWER, LATER = {"role": "assistant", "content": "So."}, {"role": "user", "content": "And then?"}


def turns(
    fields_type: type[RequestFields] = ChatFields,
    *,
    secret: bytes = b"secret",
    headers: Mapping[bytes, bytes] | None = None,
    tenant: str = "team-a",
    uid: str = "uid-chat",
    name: str = "chat",
    **fields: Any,
) -> PromptTurns:
    parsed = msgspec.json.Decoder(fields_type).decode(json.dumps({"model": name, **fields}))
    model = a_model(public=True, adapters=("lora",), uid=uid)
    media = read_media(parsed.media, model)
    prompt = prompt_blocks(parsed, headers or {}, model, (tenant, 1.0), 3000, media)
    assert prompt is not None
    prompt = with_turns(prompt, parsed, headers or {}, model, media, secret)
    assert prompt.turns is not None
    return prompt.turns


def test_all_turns_of_a_conversation_have_one_key() -> None:
    first = turns(messages=[SYSTEM, QUESTION])
    later = turns(messages=[SYSTEM, QUESTION, ANSWER, LATER], user="anna", temperature=1)
    assert (first.key, first.beginning_key) == (later.key, later.beginning_key)
    assert first.earlier_tokens == 0
    assert later.opening_tokens < later.earlier_tokens
    assert first.beginning_tokens < first.opening_tokens


@pytest.mark.parametrize(
    "change",
    [
        {"messages": [SYSTEM, LATER]},
        {"messages": [LATER, QUESTION]},
        {"messages": [QUESTION]},
        {"tools": [{"type": "function"}]},
        {"prompt_cache_key": "a"},
        {"headers": {b"x-session-id": b"a"}},
        {"secret": b"of another installation"},
        {"tenant": "team-b"},
        {"uid": "uid-other"},
        {"name": "lora"},
    ],
    ids=str,
)
def test_what_finds_nothing_of_each_other_has_other_keys(change: dict[str, Any]) -> None:
    conversation: dict[str, Any] = {"messages": [SYSTEM, QUESTION]}
    assert turns(**conversation).key != turns(**{**conversation, **change}).key


@pytest.mark.parametrize(
    "header", [b"x-session-id", b"x-claude-code-session-id", b"session-id", b"x-session-affinity"]
)
def test_prompts_of_one_session_have_one_key(header: bytes) -> None:
    first = turns(messages=[QUESTION], headers={header: b"a"})
    other = turns(messages=[SYSTEM, LATER], prompt_cache_key="k", headers={header: b"a"})
    assert first.key == other.key != turns(messages=[QUESTION], headers={header: b"b"}).key


def test_bytes_of_an_image_are_no_tokens_of_an_earlier_turn() -> None:
    image = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{'A' * 400_000}"}}
    messages: list[Any] = [{"role": "user", "content": [image]}, ANSWER]
    messages.append({"role": "user", "content": "x" * 12_288})
    parts = turns(messages=messages)
    # The image counts as many as the last message.
    assert 1400 < parts.opening_tokens < parts.earlier_tokens < 1600


def test_long_names_of_sessions_differ_by_their_ends() -> None:
    long, other = ({b"x-session-id": b"s" * 512 + end} for end in (b"a", b"b"))
    first, second = (turns(messages=[QUESTION], headers=each) for each in (long, other))
    assert first.key != second.key
    prompts = [blocks(headers=each) for each in (long, other)]
    sessions = {prompt.session for prompt in prompts if prompt is not None}
    assert len(sessions - {None}) == 2


@pytest.mark.parametrize("value", [None, 7, ["a"], {"a": 1}, True], ids=repr)
def test_a_cache_key_that_is_no_text_is_none(value: object) -> None:
    assert turns(messages=[QUESTION], prompt_cache_key=value).key == turns(messages=[QUESTION]).key


def test_the_user_of_a_request_names_no_conversation() -> None:
    assert turns(messages=[QUESTION]).key == turns(messages=[QUESTION], user="anna").key


@pytest.mark.parametrize(
    ("fields_type", "first", "later"),
    [
        (
            ResponsesFields,
            {"instructions": "Be short.", "input": [QUESTION]},
            {"instructions": "Be short.", "input": [QUESTION, ANSWER, LATER]},
        ),
        (
            MessagesFields,
            {"system": "Be short.", "messages": [QUESTION]},
            {"system": "Be short.", "messages": [QUESTION, ANSWER, LATER]},
        ),
        (CompletionFields, {"prompt": "x" * 4096 + "y"}, {"prompt": "x" * 4096 + "z" * 99}),
    ],
)
def test_other_routes_have_keys_as_well(
    fields_type: type[RequestFields], first: dict[str, Any], later: dict[str, Any]
) -> None:
    assert turns(fields_type, **first).key == turns(fields_type, **later).key


def test_questions_about_one_document_have_one_key_of_their_beginning() -> None:
    document = {"role": "system", "content": "A long report. " * 200}
    first, other = (turns(messages=[document, each]) for each in (QUESTION, LATER))
    assert first.key != other.key
    assert first.beginning_key == other.beginning_key
    by_session = turns(messages=[document, QUESTION], headers={b"x-session-id": b"a"})
    assert by_session.beginning_key == first.beginning_key
