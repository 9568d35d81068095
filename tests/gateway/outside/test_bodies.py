"""What providers get of a request."""

import json
import re
from collections.abc import Mapping
from decimal import Decimal
from typing import Any

import pytest
from anthropic.types import message_create_params
from anthropic.types.beta import message_create_params as beta_create_params
from hypothesis import given
from hypothesis import strategies as st
from openai.types.chat import completion_create_params
from openai.types.responses import response_create_params

from tessera.api.model_provider import ModelCost
from tessera.domain.gateway.reasons import RequestReason
from tessera.domain.model.paths import PROTOCOLS
from tessera.gateway.bodies import listed_fields
from tessera.gateway.outside import fields
from tessera.gateway.outside.bodies import outside_body
from tessera.gateway.refusals import RequestError
from tests.gateway.bodies.test_coding_clients import REQUESTS
from tests.gateway_builders import an_outside_model

CHAT, RESPONSES, MESSAGES = PROTOCOLS
LISTS: Mapping[str, fields.FieldLists] = {
    CHAT: fields.CHAT,
    RESPONSES: fields.RESPONSES,
    MESSAGES: fields.MESSAGES,
}
CONVERSATION = [{"role": "user", "content": "Hello"}]
PROMPT = {CHAT: "messages", RESPONSES: "input", MESSAGES: "messages"}
LIMIT = {CHAT: "max_tokens", RESPONSES: "max_output_tokens", MESSAGES: "max_tokens"}
# What the packages and the engines know, and what providers cannot be asked for.
PACKAGES = {
    CHAT: (completion_create_params.CompletionCreateParamsBase,),
    RESPONSES: (response_create_params.ResponseCreateParamsBase,),
    MESSAGES: (
        message_create_params.MessageCreateParamsBase,
        beta_create_params.MessageCreateParamsBase,
    ),
}
UNSAYABLE = {
    CHAT: {"audio", "logit_bias", "modalities", "moderation", "web_search_options"},
    RESPONSES: {
        *("background", "context_management", "conversation", "image", "moderation"),
        *("previous_response_id", "prompt"),
    },
    MESSAGES: {
        *("betas", "billing_policy", "compaction", "container", "fallback_credit_token"),
        *("fallbacks", "inference_geo", "mcp_servers", "thread", "workspace_id"),
    },
}


def sent(path: str, *, most: Any = 1000, model: Any = None, **given_fields: Any) -> Any:
    """Return what a provider gets of these fields, in addition to a short conversation."""
    body = {"model": "assistant", PROMPT[path]: CONVERSATION, **given_fields}
    outside = model or an_outside_model()
    return json.loads(outside_body(path, json.dumps(body).encode(), outside, most))


def refused(path: str, *, model: Any = None, **given_fields: Any) -> str:
    """Return by what words a request skips the target."""
    with pytest.raises(RequestError) as caught:
        sent(path, model=model, **given_fields)
    assert caught.value.reason is RequestReason.INVALID_REQUEST
    return str(caught.value)


@pytest.mark.parametrize("path", PROTOCOLS)
def test_each_field_of_the_packages_is_listed_once(path: str) -> None:
    known = {name for params in PACKAGES[path] for name in params.__annotations__}
    lists = LISTS[path]
    assert known <= lists.passes | lists.left_out | UNSAYABLE[path]
    assert not lists.passes & lists.left_out
    # A parameter of the packages that passes is none that only engines know.
    assert lists.passes - known <= {"stream", "temperature", "top_k", "top_p"}


def test_a_body_has_the_name_and_the_limit_of_the_model() -> None:
    assert sent(CHAT) == {"model": "large-1", "messages": CONVERSATION, "max_tokens": 1000}
    newer = an_outside_model(output_limit_field="max_completion_tokens")
    assert sent(CHAT, model=newer, max_tokens=7)["max_completion_tokens"] == 7
    assert "max_tokens" not in sent(CHAT, model=newer, max_tokens=7)
    assert sent(RESPONSES) == {
        **{"model": "large-1", "input": CONVERSATION, "max_output_tokens": 1000},
        "store": False,
    }
    assert sent(MESSAGES)["max_tokens"] == 1000


@pytest.mark.parametrize("path", PROTOCOLS)
@pytest.mark.parametrize(
    ("asked", "most", "limit"), [(50, 100, 50), (200, 100, 100), (None, 9999, 4096), (1, 1, 1)]
)
def test_the_smallest_of_three_limits_holds(
    path: str, asked: int | None, most: int, limit: int
) -> None:
    assert sent(path, most=most, **{LIMIT[path]: asked})[LIMIT[path]] == limit


def test_of_two_limits_of_a_client_the_smaller_holds() -> None:
    body = sent(CHAT, max_tokens=90, max_completion_tokens=80)
    assert (body["max_tokens"], "max_completion_tokens" in body) == (80, False)


def test_usage_is_asked_for_in_streams_alone() -> None:
    options = {"include_obfuscation": False}
    assert sent(CHAT, stream=True, stream_options=options)["stream_options"] == {
        "include_usage": True
    }
    assert "stream_options" not in sent(CHAT, stream=False, stream_options=options)
    for path in (RESPONSES, MESSAGES):
        assert "stream_options" not in sent(path, stream=True)


@pytest.mark.parametrize("path", PROTOCOLS)
def test_names_of_users_hints_and_tiers_are_left_out(path: str) -> None:
    left_out = {name: f"secret-{name}" for name in LISTS[path].left_out}
    text = json.dumps(sent(path, **left_out))
    assert "secret-" not in text
    if path == RESPONSES:
        assert sent(path, store=True)["store"] is False


@pytest.mark.parametrize(
    ("path", "field", "value"),
    [
        (CHAT, "structured_outputs", {"regex": "a+"}),
        (CHAT, "min_p", 0.1),
        (CHAT, "top_k", 40),
        (CHAT, "stop_token_ids", [3]),
        (CHAT, "logit_bias", {"50256": -100}),
        (CHAT, "chat_template", "{{ messages }}"),
        (CHAT, "chat_template_kwargs", {"enable_thinking": False}),
        (CHAT, "web_search_options", {}),
        (CHAT, "modalities", ["audio"]),
        (CHAT, "a_new_field", 1),
        (RESPONSES, "previous_response_id", "resp_1"),
        (RESPONSES, "background", True),
        (RESPONSES, "conversation", "conv_1"),
        (RESPONSES, "prompt", {"id": "pmpt_1"}),
        (MESSAGES, "n", 2),
        (MESSAGES, "container", "c1"),
        (MESSAGES, "mcp_servers", [{"url": "https://mcp.example"}]),
        (MESSAGES, "inference_geo", "us"),
    ],
)
def test_what_cannot_be_said_skips_the_target_and_names_the_field(
    path: str, field: str, value: Any
) -> None:
    assert refused(path, **{field: value}).startswith(f"{field}: ")


def test_values_without_effect_are_as_if_they_were_not_sent() -> None:
    neutral: dict[str, Any] = {
        **{"min_p": 0, "top_k": -1, "repetition_penalty": 1.0, "ignore_eos": False, "echo": False},
        **{"chat_template_kwargs": {}, "structured_outputs": None, "stop_token_ids": []},
    }
    assert sent(CHAT, **neutral) == sent(CHAT)


def test_every_field_for_shared_engines_passes_is_left_out_or_is_refused_by_name() -> None:
    for path, names in (
        (CHAT, listed_fields.CHAT),
        (RESPONSES, listed_fields.RESPONSES),
        (MESSAGES, listed_fields.MESSAGES),
    ):
        for name in set(names) - LISTS[path].passes - LISTS[path].left_out:
            assert refused(path, **{name: "x"}).startswith(f"{name}: ")


def test_formats_and_efforts_pass_where_the_protocol_has_them() -> None:
    form = {"type": "json_schema", "json_schema": {"name": "a", "schema": {"type": "object"}}}
    assert sent(CHAT, response_format=form, reasoning_effort="low")["response_format"] == form
    text = {"format": {"type": "json_schema", "name": "a", "schema": {}}}
    assert sent(RESPONSES, text=text, reasoning={"effort": "high"})["text"] == text
    config = {"format": {"type": "json_schema", "schema": {}}, "effort": "low"}
    assert sent(MESSAGES, output_config=config)["output_config"] == config


def test_a_model_that_does_not_reason_is_asked_for_none() -> None:
    model = an_outside_model(reasoning=False)
    assert "reasoning_effort" not in sent(CHAT, model=model, reasoning_effort="high")
    asked = {"reasoning": {"effort": "high"}, "include": ["reasoning.encrypted_content"]}
    assert {"reasoning", "include"} & sent(RESPONSES, model=model, **asked).keys() == set()
    config = {"output_config": {"effort": "max"}, "thinking": {"type": "adaptive"}}
    body = sent(MESSAGES, model=model, **config)
    assert (body["output_config"], "thinking" in body) == ({}, False)


def test_messages_of_a_chat_have_what_is_listed_alone() -> None:
    answer: dict[str, Any] = {
        **{"role": "assistant", "content": None, "reasoning_content": "Hm", "annotations": []},
        "tool_calls": [
            {
                **{"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}},
                "extra_content": {"google": {"thought_signature": "abc"}},
            }
        ],
    }
    empty: dict[str, Any] = {
        "role": "assistant",
        "content": "Well",
        "tool_calls": [],
        "audio": None,
    }
    result = {"role": "tool", "tool_call_id": "1", "content": [{"type": "text", "text": "42"}]}
    body = sent(CHAT, messages=[*CONVERSATION, answer, result, empty])
    del answer["reasoning_content"], answer["annotations"], answer["tool_calls"][0]["extra_content"]
    assert body["messages"] == [
        *CONVERSATION,
        answer,
        result,
        {"role": "assistant", "content": "Well"},
    ]


def test_items_of_responses_have_no_ids_of_what_is_stored() -> None:
    message = {
        **{"type": "message", "id": "msg_1", "role": "assistant", "status": "completed"},
        "content": [{"type": "output_text", "text": "Hi", "annotations": [], "logprobs": []}],
    }
    call = {"type": "function_call", "id": "fc_1", "call_id": "c", "name": "f", "arguments": "{}"}
    output = {"type": "function_call_output", "call_id": "c", "output": "42"}
    body = sent(RESPONSES, input=[message, call, output])
    assert "msg_1" not in json.dumps(body)
    assert "fc_1" not in json.dumps(body)
    assert body["input"][0]["content"] == [{"type": "output_text", "text": "Hi"}]
    assert body["input"][2] == output
    assert sent(RESPONSES, input="Hello")["input"] == "Hello"


CACHE_WRITE = ModelCost(input=Decimal(1), output=Decimal(4), cache_write=Decimal("1.25"))
LONG_CACHE_WRITE = CACHE_WRITE.model_copy(update={"long_cache_write": Decimal(2)})
LONG = {"cache_control": {"type": "ephemeral", "ttl": "1h"}}


@pytest.mark.parametrize(
    ("fields_of_model", "passing"),
    [
        ({}, {}),
        ({"cost": CACHE_WRITE}, {"cache_control": {"type": "ephemeral"}}),
        ({"cost": LONG_CACHE_WRITE}, LONG),
    ],
)
def test_marks_for_a_cache_pass_as_far_as_its_writes_have_a_price(
    fields_of_model: dict[str, Any], passing: dict[str, Any]
) -> None:
    def a_body(mark: dict[str, Any]) -> dict[str, Any]:
        block = {"type": "text", "text": "Hello", **mark}
        result = {"type": "tool_result", "tool_use_id": "1", "content": [block], **mark}
        return {
            **{"system": [block], **mark},
            "tools": [{"name": "f", "input_schema": {"type": "object"}, **mark}],
            "messages": [{"role": "user", "content": [block, result]}],
        }

    model = an_outside_model(**fields_of_model)
    assert sent(MESSAGES, model=model, **a_body(LONG)) == sent(MESSAGES) | a_body(passing)


@pytest.mark.parametrize(
    ("path", "tool"),
    [
        (CHAT, {"type": "function", "function": {"name": "f", "parameters": {}}}),
        (RESPONSES, {"type": "function", "name": "f", "parameters": {}, "strict": True}),
        (RESPONSES, {"type": "custom", "name": "f", "format": {"type": "text"}}),
        (MESSAGES, {"name": "f", "input_schema": {}}),
        (MESSAGES, {"type": "custom", "name": "f", "input_schema": {}}),
        (MESSAGES, {"type": "bash_20250124", "name": "bash"}),
    ],
)
def test_tools_that_the_client_runs_pass(path: str, tool: dict[str, Any]) -> None:
    assert sent(path, tools=[tool])["tools"] == [tool]


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        (RESPONSES, "mcp"),
        (RESPONSES, "code_interpreter"),
        (RESPONSES, "file_search"),
        (MESSAGES, "code_execution_20260521"),
        (MESSAGES, "x" * 200),
    ],
)
def test_tools_that_the_provider_runs_do_not(path: str, kind: str) -> None:
    assert refused(path, tools=[{"type": kind, "name": "f"}])


def test_web_search_is_left_out_since_coding_clients_offer_it_by_default() -> None:
    function = {"type": "function", "name": "f", "parameters": {}}
    assert sent(RESPONSES, tools=[function, {"type": "web_search"}])["tools"] == [function]
    search = {"type": "web_search_20260318", "name": "web_search"}
    assert "tools" not in sent(MESSAGES, tools=[search])


@pytest.mark.parametrize(
    ("path", "body"), [(each[1], each[2]) for each in REQUESTS if each[1] in PROTOCOLS]
)
def test_what_coding_clients_send_by_default_can_be_said(
    path: str, body: Mapping[str, Any]
) -> None:
    assert sent(path, **body)["model"] == "large-1"


def an_image(path: str, url: str) -> dict[str, Any]:
    part = {
        CHAT: {"type": "image_url", "image_url": {"url": url, "detail": "low"}},
        RESPONSES: {"type": "input_image", "image_url": url},
        MESSAGES: {"type": "image", "source": {"type": "url", "url": url}},
    }
    return {PROMPT[path]: [{"role": "user", "content": [part[path]]}]}


@pytest.mark.parametrize("path", PROTOCOLS)
def test_images_come_by_https_or_as_data(path: str) -> None:
    for url in ("https://images.example/a.png?b=c", "data:image/png;base64,iVBORw0KGgo="):
        assert sent(path, **an_image(path, url))[PROMPT[path]] == an_image(path, url)[PROMPT[path]]
    for url in (
        *("http://images.example/a.png", "file:///etc/passwd", "ftp://a.example", "gs://bucket/a"),
        *("https://user@a.example/", "https://a.example\\@b", "", "https://" + "a" * 9000),
    ):
        assert "https URLs" in refused(path, **an_image(path, url))


@pytest.mark.parametrize(
    ("path", "part"),
    [
        (CHAT, {"type": "file", "file": {"file_id": "file-1"}}),
        (CHAT, {"type": "input_audio", "input_audio": {"data": "UklG", "format": "wav"}}),
        (CHAT, {"type": "video_url", "video_url": {"url": "https://a.example/b"}}),
        (RESPONSES, {"type": "input_file", "file_url": "https://a.example/b.pdf"}),
        (RESPONSES, {"type": "input_image", "file_id": "file-1"}),
        (MESSAGES, {"type": "image", "source": {"type": "file", "file_id": "file_1"}}),
        (MESSAGES, {"type": "document", "source": {"type": "base64", "data": "JVBE"}}),
        (MESSAGES, {"type": "container_upload", "file_id": "file_1"}),
        (
            MESSAGES,
            {"type": "tool_result", "tool_use_id": "1", "content": [{"type": "tool_result"}]},
        ),
    ],
)
def test_what_is_stored_at_the_provider_and_media_of_unknown_price_are_refused(
    path: str, part: dict[str, Any]
) -> None:
    assert refused(path, **{PROMPT[path]: [{"role": "user", "content": [part]}]})


@pytest.mark.parametrize("kind", ["item_reference", "web_search_call", "compaction", "mcp_call"])
def test_items_of_what_the_provider_stores_or_ran_are_refused(kind: str) -> None:
    assert kind in refused(RESPONSES, input=[{"type": kind, "id": "x"}])


def test_a_body_of_too_many_parts_is_refused() -> None:
    assert "at most" in refused(CHAT, messages=[{"role": "user", "content": "a"}] * 2049)
    part = {"type": "text", "text": "a"}
    many = [{"role": "user", "content": [part] * 2000}] * 9
    assert "at most" in refused(CHAT, messages=many)


@pytest.mark.parametrize("path", PROTOCOLS)
@pytest.mark.parametrize("conversation", [None, 1, {"user": "x"}, [1], ["a"], [[]]])
def test_a_conversation_of_another_shape_is_refused(path: str, conversation: Any) -> None:
    assert refused(path, **{PROMPT[path]: conversation})


def test_names_with_escapes_are_read_as_their_letters() -> None:
    body = b'{"model":"m","messages":[],"us\\u0065r":"secret","m\\u0061x_tokens":5}'
    outside = json.loads(outside_body(CHAT, body, an_outside_model(), 100))
    assert outside == {"model": "large-1", "messages": [], "max_tokens": 5}


SCALARS = st.none() | st.booleans() | st.integers(-3, 2**40) | st.text(max_size=5)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=8,
)
NAMES = sorted({*listed_fields.CHAT, *fields.CHAT.passes, *fields.MESSAGES.passes, "input"})
GIVEN = st.dictionaries(st.sampled_from(NAMES), VALUES | st.none(), max_size=4)
PARTS = st.fixed_dictionaries(
    {"type": st.sampled_from(["text", "text", "refusal", "thinking", "input_text"])},
    optional={name: VALUES for name in ("text", "signature", "user")},
)
ITEMS = st.fixed_dictionaries(
    {"role": st.sampled_from(["user", "assistant", "tool"])},
    optional={"content": st.text() | st.lists(PARTS, max_size=3), "user": VALUES, "audio": VALUES},
)


@given(
    st.sampled_from(list(PROTOCOLS)),
    GIVEN,
    st.lists(ITEMS, max_size=3),
    st.integers(1, 10**6),
)
def test_whatever_comes_a_body_is_refused_or_has_listed_fields_and_its_limit(
    path: str, given_fields: dict[str, Any], items: list[Any], most: int
) -> None:
    marked = {name: "left-out" for name in LISTS[path].left_out}
    body = {**given_fields, **marked, "model": "m", PROMPT[path]: items}
    try:
        text = outside_body(path, json.dumps(body).encode(), an_outside_model(), most)
    except RequestError as error:
        if error.reason is not RequestReason.INVALID_REQUEST:
            raise
        text = b"{}"
    outside = json.loads(text)
    assert "left-out" not in text.decode()
    assert set(outside) <= LISTS[path].passes | {"stream_options", "store"}
    limits = (body.get(name) for name in (LIMIT[path], "max_completion_tokens"))
    asked = [limit for limit in limits if type(limit) is int and limit > 0]
    assert 1 <= outside.get(LIMIT[path], 1) <= min([most, 4096, *asked])
    assert not re.search('"(user|audio)":', json.dumps(outside.get(PROMPT[path])))
