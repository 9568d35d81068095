"""Which streams may go on at another engine, and what that engine is asked for."""

import json
import tracemalloc
from collections.abc import Sequence
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tessera.gateway.bodies import continuation, listed_fields, parsing
from tessera.gateway.bodies.continuation import (
    MAX_BODY_BYTES,
    continued_body,
    last_events,
    may_continue,
    tokenize_bodies,
)
from tessera.gateway.bodies.delivered import Delivered, NotContinuableError
from tessera.gateway.http.sse import event_data, split_events
from tessera.gateway.paths import PATHS
from tests.gateway.harness import CHAT, END, MODEL, ROLE, a_delta, event

CHATS, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
COMPLETION = {"model": MODEL, "prompt": "Say it."}


def continues(body: dict[str, Any], path: str = CHATS) -> bool:
    item, data = PATHS[path], json.dumps({"stream": True, **body}).encode()
    fields, unlisted = parsing.parse_with_unlisted(item.decoder, item.listed, data)
    return may_continue(fields, unlisted, len(data))


def delivered(
    text: str = " word", token_ids: Sequence[int] = (), object_name: str = "text_completion"
) -> Delivered:
    head = {"id": b'"chatcmpl-0"', "object": b'"%b"' % object_name.encode()}
    seen = Delivered({name: msgspec.Raw(value) for name, value in head.items()})
    choice = {"index": 0, "text": text, "token_ids": token_ids}
    seen.read([json.dumps({"choices": [choice]}).encode()])
    return seen


def read(stream: bytes) -> Delivered:
    seen = Delivered({})
    seen.read(map(event_data, split_events(stream)))
    seen.check()
    return seen


def continued(body: dict[str, Any], tokens: int, **changes: Any) -> Any:
    data = continued_body(json.dumps(body).encode(), delivered(**changes), tokens)
    return None if data is None else json.loads(data)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"n": 1, "logprobs": False, "top_logprobs": 0, "response_format": {"type": "text"}},
        {"tools": [{"type": "function"}], "tool_choice": "auto"},
        {"temperature": 0.7, "seed": 3, "stop": ["a"], "max_completion_tokens": 9},
        {"logprobs": None, "structured_outputs": None, "add_generation_prompt": True},
    ],
)
def test_a_chat_with_one_text_may_continue(changes: dict[str, Any]) -> None:
    assert continues({**CHAT, **changes})


@pytest.mark.parametrize(
    "changes",
    [
        {"stream": False},
        {"n": 2},
        {"logprobs": True},
        {"top_logprobs": 1},
        {"prompt_logprobs": 0},
        {"response_format": {"type": "json_object"}},
        {"structured_outputs": {"json": {}}},
        {"guided_regex": "a"},
        {"tool_choice": {"type": "function", "function": {"name": "f"}}},
        {"continue_final_message": True, "add_generation_prompt": False},
        {"add_generation_prompt": False},
        {"echo": True},
        {"stop": ["a"], "include_stop_str_in_output": True},
        {"thinking_token_budget": 10},
        {"chat_template": "{{ x }}"},
        {"kv_transfer_params": {}},
        {"functions": []},
        {"modalities": ["audio"]},
    ],
)
def test_a_chat_with_anything_else_may_not(changes: dict[str, Any]) -> None:
    assert not continues({**CHAT, **changes})


@pytest.mark.parametrize(
    ("changes", "may"),
    [
        ({}, True),
        ({"prompt": ["Say it."]}, True),
        ({"prompt": ["Say it.", "Say more."]}, False),
        ({"prompt": [1, 2]}, False),
        ({"prompt": [1, 2], "return_token_ids": True}, True),
        ({"prompt": [[1, 2]], "return_token_ids": True}, False),
        ({"echo": True}, False),
        ({"suffix": "end"}, False),
        ({"logprobs": 0}, False),
        ({"n": 2}, False),
        ({"best_of": 2}, False),
        ({"truncate_prompt_tokens": 5}, False),
        ({"prompt_embeds": "AA=="}, False),
        ({"prompt": " " * MAX_BODY_BYTES}, False),
    ],
)
def test_completions_may_continue_with_one_text(changes: dict[str, Any], *, may: bool) -> None:
    assert continues({**COMPLETION, **changes}, COMPLETIONS) is may


@pytest.mark.parametrize("path", ["/v1/responses", "/v1/messages"])
def test_other_streams_may_not(path: str) -> None:
    assert not continues({**CHAT, "input": "hi", "max_tokens": 5}, path)


# Of all that passes to engines, what has no part in how a stream goes on. A new field has to be
# put into one of both.
HARMLESS = """
temperature top_p top_k min_p presence_penalty frequency_penalty repetition_penalty seed logit_bias
stop stop_token_ids ignore_eos skip_special_tokens min_tokens spaces_between_special_tokens
allowed_token_ids bad_words stream_interval add_special_tokens return_token_ids
return_tokens_as_token_ids
user metadata store service_tier safety_identifier moderation prompt_cache_key prompt_cache_options
prompt_cache_retention chat_template_kwargs tools parallel_tool_calls reasoning_effort
include_reasoning documents verbosity promptCacheKey drop_params litellm_session_id thinking
"""


@pytest.mark.parametrize(
    ("listed", "looked_at"),
    [
        (listed_fields.CHAT, continuation._OF_CHAT),
        (listed_fields.COMPLETIONS, continuation._OF_COMPLETION),
    ],
)
def test_every_field_that_passes_is_thought_of(listed: Any, looked_at: Any) -> None:
    assert set(listed) <= {*HARMLESS.split(), *looked_at}
    assert not set(HARMLESS.split()) & set(looked_at)


def test_a_chat_continues_with_its_turn_and_fewer_tokens() -> None:
    body = {**CHAT, "max_completion_tokens": 9, "max_tokens": 5, "min_tokens": 2}
    turn = {"role": "assistant", "content": " word"}
    assert continued(body, 4) == {
        **body,
        "messages": [*CHAT["messages"], turn],
        "add_generation_prompt": False,
        "continue_final_message": True,
        # The engine does not look at the other one.
        "max_completion_tokens": 5,
        "min_tokens": 0,
    }
    assert continued(body, 9) is None
    assert "max_tokens" not in continued(CHAT, 10**6)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"max_tokens": 5}, {"prompt": "Say it. word", "max_tokens": 3}),
        ({"prompt": ["Say it."], "max_tokens": 5}, {"prompt": "Say it. word", "max_tokens": 3}),
        ({}, {"prompt": "Say it. word", "max_tokens": 14}),
        ({"max_tokens": None}, {"prompt": "Say it. word", "max_tokens": None}),
        ({"prompt": [1], "max_tokens": 3}, {"prompt": [1, 7, 8], "max_tokens": 1}),
    ],
)
def test_a_completion_continues_its_prompt(changes: Any, expected: Any) -> None:
    body = {**COMPLETION, **changes}
    assert continued(body, 2, token_ids=(7, 8)) == {**body, **expected}


@given(st.text(min_size=1).filter(str.strip), st.integers(0, 40_000))
def test_any_text_comes_back_as_it_was_delivered(text: str, padding: int) -> None:
    stream = ROLE + b"".join(a_delta(character) for character in text)
    seen = read(stream)
    assert (seen.text, seen.text + seen.repeated) == (text.rstrip(), text)
    body = {**CHAT, "messages": [{"role": "user", "content": "x" * padding}], "max_tokens": 999}
    data = continued_body(json.dumps(body).encode(), seen, 3)
    assert data is not None
    assert json.loads(data)["messages"][-1] == {"role": "assistant", "content": seen.text}


def test_a_stream_is_read_with_its_end() -> None:
    seen = read(ROLE + b": waiting\n\n" + a_delta("a") + a_delta("b") + END)
    assert (seen.text, seen.events, seen.is_finished) == ("ab", 2, True)


def test_space_behind_the_text_belongs_to_the_events_that_come_again() -> None:
    seen = read(ROLE + a_delta("a \u3000") + a_delta("\n") + a_delta(" \xe9 ") + a_delta("\n"))
    assert (seen.text, seen.repeated, seen.events) == ("a \u3000\n \xe9", " \n", 3)
    assert seen.text_bytes == len(seen.text.encode())


@pytest.mark.parametrize(
    "choice",
    [
        {"delta": {"reasoning": "let me see"}},
        {"delta": {"reasoning_content": "let me see"}},
        {"delta": {"tool_calls": [{"index": 0}]}},
        {"delta": {"function_call": {}}},
        {"delta": {"refusal": "no"}},
        {"delta": {"content": "a"}, "index": 1},
        {"delta": {"content": ["a"]}},
        {"delta": {"content": ""}},
        {"delta": {"content": "b"}, "token_ids": 3},
    ],
)
def test_other_than_one_text_cannot_be_continued(choice: Any) -> None:
    before = a_delta("a") if choice["delta"] != {"content": ""} else ROLE
    with pytest.raises(NotContinuableError):
        read(before + event({"choices": [choice]}))


def test_tokens_whose_text_did_not_come_are_generated_again() -> None:
    pieces = (("a", [1]), ("b", [2, 3]), ("", [4]))
    events = (
        event({"choices": [{"index": 0, "text": text, "token_ids": ids}]}) for text, ids in pieces
    )
    seen = read(b"".join(events))
    assert (seen.token_ids, seen.tokens) == (b"1,2,3", 3)


@pytest.mark.parametrize(
    "body",
    [
        {**COMPLETION, "prompt": [1, 2.5]},
        {**COMPLETION, "prompt": [10**30]},
        {**COMPLETION, "prompt": ["a", 1]},
        {**COMPLETION, "min_tokens": "digits"},
        {**CHAT, "messages": []},
        {**CHAT, "messages": {}},
        {**CHAT, "messages": "hello"},
    ],
    ids=json.dumps,
)
def test_what_only_a_strange_engine_answered_is_not_continued(body: dict[str, Any]) -> None:
    # More digits than Python makes of an integer, or reads.
    data = json.dumps(body).replace('"digits"', "1" * 5000).encode()
    with pytest.raises(NotContinuableError):
        continued_body(data, delivered(token_ids=(3,)), 1)


@pytest.mark.parametrize("token_ids", [[-1], [10**30], [1.5], [[1]], ["1"], {"1": 2}, 7, "7"])
def test_what_is_no_list_of_tokens_is_not_continued(token_ids: object) -> None:
    choice = {"index": 0, "text": "a", "token_ids": token_ids}
    with pytest.raises(NotContinuableError):
        read(event({"choices": [choice]}))


@pytest.mark.parametrize(
    "events",
    [
        [b'data: {"choices":[' + b"{}," * 600_000 + b"{}]}\n\n"],
        [b'data: {"choices":[{"token_ids":[' + b"300," * 450_000 + b"7]}]}\n\n"],
        [b'data: {"choices":[{"delta":{"tool_calls":[' + b"{}," * 600_000 + b"{}]}}]}\n\n"],
        [b"data: {" + b'"a":1,' * 300_000 + b'"choices":[]}\n\n'],
        [b'data:{"choices":[{"text":"a"}]}\n\n'] * 55_000,
    ],
    ids=["choices", "token ids", "calls", "fields", "events"],
)
def test_a_stream_is_read_for_about_what_its_bytes_take(events: Sequence[bytes]) -> None:
    size, seen = sum(map(len, events)), Delivered({})
    tracemalloc.start()
    try:
        seen.read(map(event_data, events))
    except NotContinuableError:
        pass
    finally:
        size_after, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    # Copies of an event, and nothing for each of its values.
    assert peak < 6 * size
    assert size_after < 1.2 * seen.size + 10_000


def test_tokens_are_asked_for_of_the_prompt_and_of_the_answer_begun() -> None:
    tools = [{"type": "function"}]
    body = {**CHAT, "tools": tools, "temperature": 1, "chat_template_kwargs": {"a": 1}}
    bodies = tokenize_bodies(json.dumps(body).encode(), delivered())
    assert bodies is not None
    prompt, whole = json.loads(bodies.prompt), json.loads(bodies.continued)
    assert prompt == {**CHAT, "tools": tools, "chat_template_kwargs": {"a": 1}}
    assert whole["messages"][-1]["content"] == " word"
    assert whole["continue_final_message"] is True
    bodies = tokenize_bodies(json.dumps(COMPLETION).encode(), delivered())
    assert bodies is not None
    assert json.loads(bodies.continued) == {**COMPLETION, "prompt": "Say it. word"}
    # They are known.
    data = json.dumps({**COMPLETION, "prompt": [1]}).encode()
    assert tokenize_bodies(data, delivered(token_ids=(5,))) is None


def test_the_end_of_a_stream_with_all_its_tokens_looks_like_an_engines() -> None:
    chat = delivered(object_name="chat.completion.chunk")
    end = json.loads(event_data(last_events(chat, None)))
    assert end["choices"][0] == {
        "index": 0,
        "delta": {},
        "logprobs": None,
        "finish_reason": "length",
    }
    of_text = json.loads(event_data(last_events(delivered(), None)))
    assert of_text["choices"][0]["text"] == ""
