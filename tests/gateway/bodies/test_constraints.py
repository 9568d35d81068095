"""What an engine that several tenants use would compile, and what of it passes."""

import json
import time
from typing import Any

import pytest

from tessera.domain.gateway.schema_cost import MAX_SCHEMA_BYTES
from tessera.gateway.bodies.constraints import check_compiled, compiled_values
from tessera.gateway.bodies.parsing import parse
from tessera.gateway.paths import PATHS
from tessera.gateway.refusals import RequestError

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
RESPONSES, MESSAGES = "/v1/responses", "/v1/messages"
TEXT = {"type": "string"}
LONG = {"type": "string", "maxLength": 200}


def read(path: str, fields: Any) -> bytes | None:
    body = fields if isinstance(fields, bytes) else json.dumps({"model": "m", **fields}).encode()
    return check_compiled(compiled_values(parse(PATHS[path].listed, body)))


def answered(path: str, fields: Any) -> int:
    try:
        read(path, fields)
    except RequestError as error:
        return error.status
    return 200


def refused(path: str, fields: Any) -> RequestError:
    with pytest.raises(RequestError) as refusal:
        read(path, fields)
    assert refusal.value.status == 400
    return refusal.value


def an_object(properties: dict[str, Any], **others: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": list(properties), **others}


def nested(levels: int, schema: Any = TEXT) -> dict[str, Any]:
    for _ in range(levels):
        schema = an_object({"a": schema})
    return dict(schema)


def chat(schema: Any) -> dict[str, Any]:
    return {"response_format": {"type": "json_schema", "json_schema": {"schema": schema}}}


def a_tool(schema: Any, **others: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": "f", "parameters": schema, **others}}


DEAR = an_object({f"p{length}": {"type": "string", "maxLength": length} for length in (200, 201)})
WAYS: dict[str, tuple[str, dict[str, Any]]] = {
    "chat": (CHAT, chat(DEAR)),
    "by its other name": (
        CHAT,
        {"response_format": {"type": "json_schema", "json_schema": {"json_schema": DEAR}}},
    ),
    "completions": (COMPLETIONS, chat(DEAR)),
    "responses": (RESPONSES, {"text": {"format": {"type": "json_schema", "schema": DEAR}}}),
    "messages": (MESSAGES, {"output_config": {"format": {"type": "json_schema", "schema": DEAR}}}),
    "structured outputs": (CHAT, {"structured_outputs": {"json": DEAR}}),
    "as text": (COMPLETIONS, {"structured_outputs": {"json": json.dumps(DEAR)}}),
    "of responses": (RESPONSES, {"structured_outputs": {"json": DEAR}}),
    "a regular expression": (CHAT, {"structured_outputs": {"regex": "(.{1,20}){20}"}}),
    "a grammar": (CHAT, {"structured_outputs": {"grammar": "root ::= " + "[^x] " * 300}}),
    "a grammar with braces": (CHAT, {"structured_outputs": {"grammar": "root ::= (. {9,99}){99}"}}),
    "tags": (
        CHAT,
        {
            "structured_outputs": {
                "structural_tag": json.dumps({"format": {"type": "regex", "pattern": "(.?){99}"}})
            }
        },
    ),
    "tags as a format": (
        CHAT,
        {
            "response_format": {
                "type": "structural_tag",
                "triggers": ["<"],
                "structures": [{"begin": "<", "schema": DEAR, "end": ">"}],
            }
        },
    ),
    "a required tool": (CHAT, {"tools": [a_tool(DEAR)], "tool_choice": "required"}),
    "a named tool": (
        CHAT,
        {
            "tools": [a_tool(DEAR)],
            "tool_choice": {"type": "function", "function": {"name": "f"}},
        },
    ),
    "a strict tool": (CHAT, {"tools": [a_tool(DEAR, strict=True)]}),
    "a strict tool of responses": (
        RESPONSES,
        {"tools": [{"type": "function", "name": "f", "parameters": DEAR, "strict": True}]},
    ),
    "within a namespace": (
        RESPONSES,
        {
            "tools": [{"type": "namespace", "tools": [{"name": "f", "parameters": DEAR}]}],
            "tool_choice": "required",
        },
    ),
    "any tool": (
        MESSAGES,
        {"tools": [{"name": "f", "input_schema": DEAR}], "tool_choice": {"type": "any"}},
    ),
    "functions": (CHAT, {"functions": [{"name": "f", "parameters": DEAR}]}),
}


@pytest.mark.parametrize("way", WAYS)
def test_wherever_an_engine_compiles_a_schema_its_cost_counts(way: str) -> None:
    path, fields = WAYS[way]
    error = refused(path, fields)
    assert error.param in fields
    assert "limit 10 s" in error.message
    assert "your tenant's alone" in error.message


def test_a_refusal_names_the_keyword_its_place_and_the_limit() -> None:
    message = refused(CHAT, chat(DEAR)).message
    assert message == (
        "response_format at /json_schema/schema/properties/p201/maxLength: engines compile it for "
        "16 s, limit 10 s, most of it for maxLength: 201. Lower such bounds, or have fewer of them;"
        " or use a model that is your tenant's alone, since several may use this one."
    )


@pytest.mark.parametrize(
    "fields",
    [
        {"tools": [a_tool(DEAR)]},
        {"tools": [a_tool(DEAR, strict=False)], "tool_choice": "auto"},
        {"tools": [a_tool(DEAR, strict=None)], "tool_choice": "none"},
        {"tools": [a_tool({"type": "object", "description": "x" * 200_000})]},
        {"response_format": {"type": "json_object"}},
        {"response_format": None, "structured_outputs": None, "functions": None},
    ],
)
def test_tools_that_an_answer_may_call_are_not_compiled(fields: dict[str, Any]) -> None:
    read(CHAT, fields)


def test_a_strict_tool_is_seen_however_its_field_is_written() -> None:
    body = json.dumps({"model": "m", "tools": [a_tool(DEAR, strict=True)]})
    for written in ("\\u0073trict", "str\\u0069ct", "strict"):
        refused(CHAT, body.replace("strict", written).encode())


def test_a_tool_is_not_defined_among_messages() -> None:
    tool = {"type": "tool_definition", "definition": {"name": "f", "input_schema": DEAR}}
    content = [{"type": "tool_addition", "tool": tool}]
    fields = {"messages": [{"role": "system", "content": content}]}
    assert refused(MESSAGES, fields).param == "messages"
    body = json.dumps({"model": "m", **fields}).replace("tool_def", "tool\\u005Fdef")
    assert refused(MESSAGES, body.encode()).param == "messages"
    prose = 'Send {"type": "tool_definition"} to add a tool.'
    read(MESSAGES, {"messages": [{"role": "user", "content": prose}]})


def test_schemas_nest_up_to_32_deep_in_up_to_128_kib() -> None:
    read(CHAT, chat(nested(31)))
    assert "more than 32 deep" in refused(CHAT, chat(nested(40))).message
    deep: Any = TEXT
    for _ in range(70):
        deep = [deep]
    assert "more than 64" in refused(CHAT, chat({"enum": deep})).message
    wide = an_object({f"property_{number}": TEXT for number in range(2000)})
    read(CHAT, chat(wide))
    assert str(MAX_SCHEMA_BYTES) in refused(CHAT, chat({"const": "x" * 2**17})).message
    # What is deep and large at once is read for seconds by the thread that serves all.
    large = an_object({f"p{number}": TEXT for number in range(2000)})
    assert "levels above them" in refused(CHAT, chat(nested(28, large))).message


HOSTILE = [
    {"$defs": {"a": {"$ref": "#/$defs/a"}}, "$ref": "#/$defs/a"},
    {"type": "string", "maxLength": True, "minLength": "x", "pattern": 3},
    {"maxLength": 10**300, "minLength": -(10**30)},
    {"maxLength": 1e308, "minItems": -1.5},
    {"properties": [], "required": 3, "patternProperties": "x"},
    {"properties": {"maxLength": {"maxLength": 3}, "pattern": TEXT}, "required": [[], {}, 1]},
    {"pattern": "((((((a+)+)+)+)+)+)+b"},
    {"pattern": ")))((({}{1,2}{,}[[[\\"},
    {"pattern": "[]a]{3}[^]]*\\"},
    {"pattern": "(" * 5000 + ")" * 5000},
    {"pattern": "a{999999999999999999}{9}"},
    {"a/b~c": {"": {"\u0000": TEXT}}},
    [],
    None,
    True,
    "schema",
]


@pytest.mark.parametrize("schema", HOSTILE)
def test_nothing_that_is_sent_as_a_schema_raises_or_takes_long(schema: Any) -> None:
    bodies: list[tuple[str, Any]] = [
        (CHAT, chat(schema)),
        (CHAT, {"response_format": schema, "structured_outputs": schema, "functions": schema}),
        (CHAT, {"tools": schema, "tool_choice": schema}),
        (RESPONSES, {"text": schema, "tools": schema, "tool_choice": "required"}),
        (MESSAGES, {"output_config": schema, "messages": schema}),
    ]
    for path, fields in bodies:
        began = time.process_time()
        assert answered(path, fields) in (200, 400)
        assert time.process_time() - began < 0.2


@pytest.mark.parametrize(
    "text",
    [
        b'{"maxLength": 1e999}',
        b'{"maxLength": 3, "maxLength": 200, "minLength": 100, "minLength": 0}',
        b'{"max\\u004cength": 200}',
        b'{"a": ' + b'{"a":' * 2000 + b"1" + b"}" * 2001,
        b'{"pattern": "\xff"}',
        b'{"pattern": "\\ud800"}',
        b"{" * 100_000,
    ],
)
def test_text_that_is_read_in_two_ways_is_refused_or_priced(text: bytes) -> None:
    body = b'{"model":"m","structured_outputs":{"json":' + text + b"}}"
    began = time.process_time()
    for fields in (body, {"structured_outputs": {"json": text.decode(errors="replace")}}):
        assert answered(COMPLETIONS, fields) in (200, 400)
    assert time.process_time() - began < 0.2


def test_the_last_of_two_keywords_counts_and_an_escape_hides_none() -> None:
    body = b'{"model":"m","structured_outputs":{"json":{"anyOf":[%b,%b]}}}'
    first, escaped = b'{"maxLength": 3, "maxLength": 200}', b'{"max\\u004cength": 201}'
    refused(COMPLETIONS, body % (first, escaped))


@pytest.mark.parametrize(
    "schema",
    [
        {"enum": [{"a": 1}] * 8_000},
        {"anyOf": [{}] * 40_000},
        an_object({f"p{number}": {"pattern": "a?b*[c]{2}"} for number in range(1_000)}),
        {"pattern": "(a|b?)*" * 15_000},
        {"pattern": "[" * 100_000},
        {"pattern": "{1,2}" * 20_000},
    ],
)
def test_the_largest_schema_is_checked_in_little_time(schema: Any) -> None:
    began = time.process_time()
    assert answered(CHAT, chat(schema)) in (200, 400)
    assert time.process_time() - began < 0.6


SAMPLER = [
    ("allowed_token_ids", list(range(1024)), list(range(1025)), "1025 tokens, limit 1024"),
    (
        "logit_bias",
        {str(token): -1.5 for token in range(1024)},
        {str(token): -1.5 for token in range(1025)},
        "1025 tokens, limit 1024",
    ),
    ("stop_token_ids", [7] * 100, [7] * 101, "101 tokens, limit 100"),
    ("stop_token_ids", [7], [10**4000, 10**4000], "8006 bytes, limit 6400"),
    ("bad_words", ["abcd"] * 64, ["abcd"] * 65, "520 bytes, limit 512"),
]


@pytest.mark.parametrize(("name", "most", "more", "said"), SAMPLER)
def test_the_sampler_of_shared_engines_has_room_for_what_passes(
    name: str, most: Any, more: Any, said: str
) -> None:
    """Where more came, it raised in the process that computes for all."""
    read(CHAT, {name: most})
    assert said in refused(CHAT, {name: more}).message
    read(CHAT, {name: None})


def test_a_digest_is_that_of_all_that_is_compiled() -> None:
    assert read(CHAT, {"messages": []}) is None
    digest = read(CHAT, chat(LONG))
    assert digest == read(CHAT, chat(LONG)) != read(CHAT, chat(TEXT))
    assert digest != read(CHAT, {**chat(LONG), "tools": [a_tool({})], "tool_choice": "required"})


def test_integers_beyond_all_floats_count_as_bounds() -> None:
    lengths = [{"type": "string", "maxLength": 10**400 + number} for number in range(2)]
    assert "maxLength" in refused(CHAT, chat({"prefixItems": lengths})).message
    assert answered(CHAT, chat({"type": "string", "minLength": -(10**400)})) == 200


FORMATTED = [{"type": "string", "format": "uri-template"}] * 50
OPEN = [an_object({f"name-{number}": TEXT}, additionalProperties=TEXT) for number in range(60)]
RANGES = [{"exclusiveMinimum": -1, "exclusiveMaximum": 10**12}] * 650


@pytest.mark.parametrize(
    ("schemas", "words"),
    [
        (FORMATTED, "format: uri-template"),
        (OPEN, "additionalProperties: beside properties"),
        ([{}] * 20_000, "limit 10 s"),
        (RANGES, "levels"),
    ],
    ids=["formats", "other names", "empty", "ranges"],
)
def test_what_is_short_and_dear_is_refused_where_it_is_many(schemas: list[Any], words: str) -> None:
    assert words in refused(CHAT, chat({"prefixItems": schemas})).message
    assert answered(CHAT, chat({"prefixItems": schemas[: len(schemas) // 2]})) == 200


def test_an_object_that_closes_its_names_costs_no_more_for_them() -> None:
    names = an_object({f"a-name-that-is-long-{number}": TEXT for number in range(200)})
    assert answered(CHAT, chat({**names, "additionalProperties": False})) == 200
    assert answered(CHAT, chat(names)) == 200


def a_grammar(*rules: str) -> dict[str, Any]:
    numbered = {f"r{number}": rule for number, rule in enumerate(rules)}
    lines = [
        f"root ::= {' '.join(numbered)}",
        *(f"{name} ::= {numbered[name]}" for name in numbered),
    ]
    return {"structured_outputs": {"grammar": "\n".join(lines)}}


@pytest.mark.parametrize("empty", ['"a" | ""', '"a" | r200'])
def test_choices_of_nothing_are_refused_where_they_are_many(empty: str) -> None:
    rules = [empty] * 200 + ['"b" | ""']
    assert "grammar" in refused(CHAT, a_grammar(*rules)).message
    assert answered(CHAT, a_grammar(*rules[100:])) == 200
    assert answered(CHAT, a_grammar(*['"a" | "b"'] * 1000)) == 200
