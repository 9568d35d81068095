"""Bodies: what is read of them, and what stays as it was."""

import json
import tracemalloc
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tessera.gateway.bodies.json_values import MAX_TEXTS
from tessera.gateway.bodies.parsing import body_for_engine, parse
from tessera.gateway.paths import PATHS
from tessera.gateway.refusals import RequestError

CHAT = PATHS["/v1/chat/completions"].decoder
COMPLETIONS = PATHS["/v1/completions"].decoder

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=6,
)
OPTIONS = st.fixed_dictionaries({}, optional={"include_usage": st.booleans(), "x": VALUES})
FIELDS = st.fixed_dictionaries(
    {"model": st.text(min_size=1, max_size=8)},
    optional={
        "stream": st.booleans() | st.none(),
        "stream_options": st.none()
        | st.fixed_dictionaries({}, optional={"include_usage": st.booleans(), "x": VALUES}),
        "max_tokens": st.integers(1, 10**6) | st.none(),
        "max_completion_tokens": st.integers(1, 10**6) | st.none(),
        "n": st.integers(1, 8),
        "priority": st.integers(-5, 5),
        "messages": VALUES,
        "x_unknown": VALUES,
    },
)


def encoded(fields: Any, *, ascii_only: bool = True, indent: int | None = None) -> bytes:
    return json.dumps(fields, ensure_ascii=ascii_only, indent=indent).encode()


@given(
    FIELDS,
    st.none() | st.integers(1, 1000),
    st.booleans(),
    st.none() | st.just(2),
    st.sampled_from([0, 2**15]),
    st.booleans(),
)
def test_an_engine_gets_all_fields_as_sent_but_those_that_have_to_differ(
    fields: dict[str, Any],
    most: int | None,
    ascii_only: bool,
    indent: int | None,
    padding: int,
    yields: bool,
) -> None:
    fields = {**fields, "padding": "x" * padding}
    body = encoded(fields, ascii_only=ascii_only, indent=indent)
    parsed = parse(CHAT, body)
    sent = json.loads(body_for_engine(body, parsed, "served", most, yields=yields))
    expected = {**fields, "model": "served"}
    if fields.get("stream"):
        given_options = fields.get("stream_options") or {}
        expected["stream_options"] = {**given_options, "include_usage": True}
    assert parsed.yields is (fields.get("priority", 0) > 0)
    if fields.get("priority", 0) < yields:
        expected["priority"] = int(yields)
    name = "max_completion_tokens" if fields.get("max_completion_tokens") else "max_tokens"
    asked = fields.get("max_completion_tokens") or fields.get("max_tokens")
    if most is not None:
        expected[name] = most if asked is None else min(asked, most)
    if asked is not None and fields.get("max_tokens"):
        # Whichever of both an engine goes by.
        expected["max_tokens"] = min(fields["max_tokens"], expected[name])
    assert sent == expected


@given(st.binary(max_size=200) | VALUES.map(encoded))
def test_any_body_is_read_or_refused(body: bytes) -> None:
    try:
        parsed = parse(COMPLETIONS, body)
        parsed.prompt_size(body)
    except RequestError as error:
        status, model = error.status, None
    else:
        status, model = 200, parsed.model
    assert status == 400 or model == json.loads(body)["model"]


@pytest.mark.parametrize(
    ("body", "param", "text"),
    [
        ({}, "model", "model: is required"),
        ([], None, "Expected object, got array"),
        ({"model": 1}, "model", "model: Expected str, got int"),
        ({"model": ""}, "model", "length >= 1"),
        ({"model": "x" * 300}, "model", "length <= 256"),
        ({"model": "a", "stream": "true"}, "stream", "got str"),
        ({"model": "a", "max_tokens": -1}, "max_tokens", "int >= 1"),
        ({"model": "a", "max_tokens": 10**12}, "max_tokens", "int <= 1000000000"),
        ({"model": "a", "max_tokens": 1.5}, "max_tokens", "got float"),
        ({"model": "a", "n": 0}, "n", "int >= 1"),
        ({"model": "a", "n": 10**6}, "n", "int <= 128"),
        ({"model": "a", "stream_options": []}, "stream_options", "got array"),
    ],
)
def test_a_wrong_field_is_named(body: object, param: str | None, text: str) -> None:
    with pytest.raises(RequestError) as caught:
        parse(CHAT, encoded(body))
    assert (caught.value.status, caught.value.param) == (400, param)
    assert text in caught.value.message


@pytest.mark.parametrize(
    "body", [b"", b"{", b"null", b'{"model":"a"} x', b'{"model":"a","x":NaN}', b"\xff\xfe"]
)
def test_what_is_no_json_object_is_refused(body: bytes) -> None:
    with pytest.raises(RequestError) as caught:
        parse(CHAT, body)
    assert caught.value.status == 400


@pytest.mark.parametrize("padding", [b"", b" " * 2**15])
@pytest.mark.parametrize(
    "rest", [b'"stream_options": {"\xed\xa0\x80": 1}', b'"stream_options": {}, "\xed\xa0\x80": 1']
)
def test_names_that_are_no_text_are_refused(rest: bytes, padding: bytes) -> None:
    body = b'{"model": "chat", "messages": [], "stream": true, %b%b}' % (padding, rest)
    with pytest.raises(RequestError, match="no valid JSON"):
        body_for_engine(body, parse(CHAT, body), "chat", None)


def test_values_that_the_gateway_does_not_read_stay_as_sent() -> None:
    body = b'{"model": "chat", "stream": true, "stream_options": {"other":"\xed\xa0\x80"}}'
    assert b'"other":"\xed\xa0\x80"' in body_for_engine(body, parse(CHAT, body), "chat", None)


def test_deep_nesting_is_refused() -> None:
    with pytest.raises(RequestError, match="nested too deep"):
        parse(CHAT, b'{"model":"a","messages":' + b"[" * 10**6)


@pytest.mark.parametrize(
    ("fields", "choices"),
    [
        ({"prompt": "a"}, 1),
        ({"prompt": ["a", "b"]}, 2),
        ({"prompt": [1, 2, 3]}, 1),
        ({"prompt": [[1], [2]], "n": 3}, 6),
        ({"prompt": "a", "n": 2, "best_of": 4}, 4),
        ({"prompt": "a", "n": 2, "best_of": 0}, 2),
        ({"prompt": []}, 1),
        ({"prompt": [[], [1, 2], "c, [d]", '"\\', "\n\u00e9"]}, 5),
        ({"prompt": ["a"] * MAX_TEXTS}, MAX_TEXTS),
    ],
)
def test_every_answer_of_a_completion_counts(fields: dict[str, Any], choices: int) -> None:
    assert parse(COMPLETIONS, encoded({"model": "a", **fields})).choices == choices


@given(st.lists(st.text() | st.lists(st.integers()), min_size=1), st.none() | st.integers(0, 2))
def test_prompts_are_counted_however_they_are_written(
    prompts: list[Any], indent: int | None
) -> None:
    for ascii_only in (True, False):
        body = encoded({"model": "a", "prompt": prompts}, ascii_only=ascii_only, indent=indent)
        assert parse(COMPLETIONS, body).choices == len(prompts)


@pytest.mark.parametrize(
    ("prompt", "text"),
    [
        (["a"] * (MAX_TEXTS + 1), "at most 2048 texts"),
        ([[1]] * (MAX_TEXTS + 1), "at most 2048 texts"),
        (["a", 1], "a list of tokens"),
        ([[[1]]], "a list of tokens"),
    ],
)
def test_prompts_that_are_too_many_or_of_another_shape_are_refused(
    prompt: list[Any], text: str
) -> None:
    with pytest.raises(RequestError, match=text) as caught:
        _ = parse(COMPLETIONS, encoded({"model": "a", "prompt": prompt})).choices
    assert (caught.value.status, caught.value.param) == (400, "prompt")


@pytest.mark.parametrize("items", [b"1," * 500_000 + b"1", b"[%b1]" % (b"1," * 500_000)])
def test_tokens_of_a_prompt_take_no_memory_beside_the_body(items: bytes) -> None:
    body = b'{"model":"a","prompt":[%b]}' % items
    tracemalloc.start()
    try:
        fields = parse(COMPLETIONS, body)
        choices = [fields.choices for _ in range(3)]
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert choices == [1, 1, 1]
    size = len(body)
    assert peak < size


def test_responses_that_would_need_the_same_replica_are_refused() -> None:
    decoder = PATHS["/v1/responses"].decoder
    for field, value in (("background", True), ("previous_response_id", "resp_1")):
        with pytest.raises(RequestError) as caught:
            parse(decoder, encoded({"model": "a", field: value}))
        assert caught.value.param == field
