import json
from typing import Any

import pytest

from tessera.batch_runner.input.rows import BatchRow, RequestTarget, RowFault, read_row
from tests.batch_runner.harness import SERVED, a_row


def _read(**fields: Any) -> BatchRow | RowFault:
    return read_row(json.dumps(a_row(1, **fields)).encode())


@pytest.mark.parametrize("url", ["/v1/chat/completions", "/v1/completions", "/v1/embeddings"])
def test_a_row_of_each_kind_is_read(url: str) -> None:
    row = _read(url=url)
    assert isinstance(row, BatchRow)
    assert (row.custom_id, row.url, row.max_tokens) == ("row-1", url, 20)


@pytest.mark.parametrize(
    ("fields", "code", "param"),
    [
        ({"custom_id": None}, "missing_custom_id", "custom_id"),
        ({"custom_id": ""}, "missing_custom_id", "custom_id"),
        ({"custom_id": 7}, "invalid_custom_id", "custom_id"),
        ({"custom_id": "x" * 513}, "invalid_custom_id", "custom_id"),
        ({"method": "GET"}, "invalid_method", "method"),
        ({"url": None}, "unknown_url", "url"),
        ({"url": ["/v1/completions"]}, "unknown_url", "url"),
        ({"url": "/v1/responses"}, "unknown_url", "url"),
        ({"url": "https://api.openai.com/v1/completions"}, "unknown_url", "url"),
        ({"body": None}, "invalid_body", "body"),
        ({"body": "{}"}, "invalid_body", "body"),
        ({"body": {"stream": True}}, "stream_not_supported", "body.stream"),
        ({"body": {"stream": 1}}, "stream_not_supported", "body.stream"),
        ({"body": {"stream": "true"}}, "stream_not_supported", "body.stream"),
    ],
)
def test_a_wrong_field_is_named(fields: dict[str, Any], code: str, param: str) -> None:
    fault = _read(**fields)
    assert isinstance(fault, RowFault)
    assert (fault.code, fault.param) == (code, param)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"{", "not JSON"),
        (b"{} {}", "Extra data"),
        (b"[]", "an array"),
        (b'"{}"', "a string"),
        (b"null", "missing or null"),
        (b'{"body": NaN}', "NaN is not a JSON number"),
        (b'{"body": 1e999}', "exceeds the range"),
        (b'{"body": ' + b"9" * 5000 + b"}", "not JSON"),
        (b'{"custom_id": "\xff"}', "not UTF-8 at byte 15"),
        (b'\xef\xbb\xbf{"custom_id": "a"}', "without one"),
        (b"[" * 100_000, "nested too deeply"),
        (b'{"a": 1,}', "at character 9"),
        (b"\0" * 100, "byte 1 of the line is NUL"),
        (json.dumps(a_row(1)).encode("utf-16-le"), "byte 2 of the line is NUL"),
        (b'{"custom_id": "a"}\r{"custom_id": "b"}', "byte 19 of the line is a carriage return"),
    ],
)
def test_a_line_that_is_no_json_object_is_refused_with_the_reason(
    content: bytes, words: str
) -> None:
    fault = read_row(content)
    assert isinstance(fault, RowFault)
    assert fault.code == "invalid_json"
    assert words in fault.message
    assert len(fault.message) < 300


def test_the_method_may_be_absent_and_stream_may_be_false() -> None:
    row = a_row(1)
    del row["method"]
    row["body"]["stream"] = False
    assert isinstance(read_row(json.dumps(row).encode()), BatchRow)


@pytest.mark.parametrize(
    ("body", "limit"),
    [
        ({}, None),
        ({"max_tokens": 5}, 5),
        ({"max_tokens": 5, "max_completion_tokens": 9}, 9),
        ({"max_tokens": "5"}, None),
        ({"max_tokens": 2**63 - 1}, 2**31),
        ({"max_tokens": -1}, 0),
    ],
)
def test_the_limit_of_an_answer_is_read(body: dict[str, Any], limit: int | None) -> None:
    row = _read(body=body)
    assert isinstance(row, BatchRow)
    assert row.max_tokens == limit


@pytest.mark.parametrize(
    ("named", "sent"),
    [
        ({}, "tiny"),
        ({"model": None}, "tiny"),
        ({"model": "tiny"}, "tiny"),
        ({"model": "gpt-4o-mini"}, "tiny"),
        ({"model": "sql"}, "sql"),
    ],
)
def test_an_alias_is_sent_under_the_name_of_the_model(named: dict[str, Any], sent: str) -> None:
    row = _read(body={"prompt": "käse \ud800 漢", **named})
    assert isinstance(row, BatchRow)
    body = SERVED.request_body(row)
    assert json.loads(body) == {"prompt": "käse \ud800 漢", "model": sent}


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({}, None),
        ({"body": {"model": "tiny"}}, None),
        ({"body": {"model": "sql"}}, None),
        ({"body": {"model": "gpt-4o-mini"}}, None),
        ({"body": {"model": "gpt-4o"}}, "model_not_served"),
        ({"body": {"model": ["tiny"]}}, "model_not_served"),
        ({"url": "/v1/embeddings"}, "url_not_served"),
        ({"body": {"max_tokens": 1}}, None),
        ({"body": {"max_tokens": 2**31}}, None),
        ({"body": {"max_tokens": None}}, None),
        ({"body": {"max_tokens": 0, "echo": True}}, None),
        ({"body": {"max_tokens": 0}}, "invalid_max_tokens"),
        ({"body": {"max_tokens": -1}}, "invalid_max_tokens"),
        ({"body": {"max_tokens": 2**31 + 1}}, "invalid_max_tokens"),
        ({"body": {"max_tokens": 5, "max_completion_tokens": 2**63 - 1}}, "invalid_max_tokens"),
        ({"body": {"max_tokens": 10**4000}}, "invalid_max_tokens"),
    ],
)
def test_a_row_asks_for_what_the_engine_serves(fields: dict[str, Any], code: str | None) -> None:
    served = RequestTarget(
        name="tiny",
        adapters=("sql",),
        aliases=("gpt-4o-mini",),
        urls=("/v1/chat/completions", "/v1/completions"),
    )
    row = _read(**fields)
    assert isinstance(row, BatchRow)
    fault = served.fault(row)
    assert (fault and fault.code) == code
    if code == "model_not_served":
        assert fault is not None
        assert "this batch serves tiny, sql;" in fault.message
        assert "spec.modelAliases" in fault.message
