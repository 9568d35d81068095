"""Definitions as clients send them pass to engines that several tenants use."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from tessera.gateway.bodies.constraints import check_compiled, compiled_values
from tessera.gateway.bodies.parsing import parse
from tessera.gateway.paths import PATHS

CHAT, RESPONSES, MESSAGES = "/v1/chat/completions", "/v1/responses", "/v1/messages"
TEXT, COUNT, FLAG = {"type": "string"}, {"type": "integer"}, {"type": "boolean"}


def an_object(required: Sequence[str] = (), /, **properties: Any) -> dict[str, Any]:
    return {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "type": "object",
        "properties": properties,
        "required": list(required),
        "additionalProperties": False,
    }


PATH = {"type": "string", "description": "The absolute path to the file. " + "It must exist. " * 20}
TODO = an_object(
    ("content", "status", "activeForm"),
    content={"type": "string", "minLength": 1},
    status={"type": "string", "enum": ["pending", "in_progress", "completed"]},
    activeForm={"type": "string", "minLength": 1},
)
OPTION = an_object(("label", "description"), label=TEXT, description=TEXT)
QUESTION = an_object(
    ("question", "header", "options"),
    question=TEXT,
    header=TEXT,
    options={"type": "array", "items": OPTION, "minItems": 2, "maxItems": 4},
    multiSelect={"type": "boolean", "default": False},
)
EDIT = an_object(("old_string", "new_string"), old_string=TEXT, new_string=TEXT, replace_all=FLAG)
# Of a coding client, of the kinds that Claude Code, opencode and Codex have.
CODING: Mapping[str, dict[str, Any]] = {
    "Bash": an_object(("command",), command=TEXT, timeout={"type": "number"}, description=TEXT),
    "Read": an_object(("file_path",), file_path=PATH, offset=COUNT, limit=COUNT),
    "Write": an_object(("file_path", "content"), file_path=PATH, content=TEXT),
    "MultiEdit": an_object(
        ("file_path", "edits"),
        file_path=PATH,
        edits={"type": "array", "items": EDIT, "minItems": 1},
    ),
    "Grep": an_object(
        ("pattern",),
        pattern={"type": "string", "description": "A regular expression, as `^a{2}$`"},
        output_mode={"type": "string", "enum": ["content", "files_with_matches", "count"]},
        **{"-A": COUNT, "-B": COUNT, "-i": FLAG, "head_limit": COUNT, "multiline": FLAG},
    ),
    "TodoWrite": an_object(("todos",), todos={"type": "array", "items": TODO}),
    "AskUserQuestion": an_object(
        ("questions",),
        questions={"type": "array", "items": QUESTION, "minItems": 1, "maxItems": 4},
        answers={"type": "object", "additionalProperties": TEXT},
    ),
    "WebFetch": an_object(("url",), url={"type": "string", "format": "uri"}, prompt=TEXT),
    "WebSearch": an_object(
        ("query",),
        query={"type": "string", "minLength": 2},
        allowed_domains={"type": "array", "items": TEXT},
    ),
    "NotebookEdit": an_object(
        ("notebook_path",),
        notebook_path=PATH,
        edit_mode={"type": "string", "enum": ["replace", "insert", "delete"]},
    ),
}
FILTER: dict[str, Any] = {
    "anyOf": [
        an_object(("property", "equals"), property=TEXT, equals={"type": ["string", "null"]}),
        an_object(("and",), **{"and": {"type": "array", "items": {"$ref": "#/$defs/filter"}}}),
    ]
}
# Of servers of the Model Context Protocol for issues, pages, a browser, databases.
MCP: Mapping[str, dict[str, Any]] = {
    "create_issue": an_object(
        ("owner", "repo", "title"),
        owner={"type": "string", "pattern": "^[a-zA-Z0-9](?:[a-zA-Z0-9]|-(?=[a-zA-Z0-9])){0,38}$"},
        repo=TEXT,
        title=TEXT,
        labels={"type": "array", "items": TEXT, "maxItems": 100},
        assignees={"type": "array", "items": TEXT, "maxItems": 10},
        milestone=COUNT,
    ),
    "list_issues": an_object(
        ("owner", "repo"),
        owner=TEXT,
        repo=TEXT,
        state={"type": "string", "enum": ["OPEN", "CLOSED"]},
        perPage={"type": "number", "minimum": 1, "maximum": 100},
        since={"type": "string", "format": "date-time"},
    ),
    "query_pages": {
        **an_object(("id",), id={"type": "string", "format": "uuid"}, filter=FILTER),
        "$defs": {"filter": FILTER},
    },
    "browser_fill_form": an_object(
        ("fields",),
        fields={
            "type": "array",
            "items": an_object(
                ("name", "type", "ref", "value"),
                name=TEXT,
                type={"type": "string", "enum": ["textbox", "checkbox", "radio", "combobox"]},
                ref=TEXT,
                value=TEXT,
            ),
        },
    ),
    "run_query": an_object(("sql",), sql=TEXT, limit={**COUNT, "minimum": 1, "maximum": 10_000}),
}
DOCUMENTED = [
    (
        f"mcp__server{number}__{name}",
        f"{name}: " + "What it does, and when to use it. " * 20,
        schema,
    )
    for number in range(8)
    for name, schema in {**CODING, **MCP}.items()
][:65]
# A body of an API, as frameworks generate them from OpenAPI.
ADDRESS = an_object(
    ("street", "city", "country"),
    street=TEXT,
    city=TEXT,
    postalCode={"type": "string", "pattern": "^[A-Z0-9 -]{3,10}$"},
    country={"type": "string", "pattern": "^[A-Z]{2}$"},
)
ORDER = an_object(
    ("id", "customer", "lines", "status"),
    id={"type": "string", "format": "uuid"},
    customer=an_object(
        ("name", "email"),
        name={"type": "string", "minLength": 1, "maxLength": 255},
        email={"type": "string", "format": "email"},
        phone={"type": "string", "pattern": r"^\+[1-9]\d{1,14}$"},
        addresses={"type": "array", "items": ADDRESS, "maxItems": 5},
    ),
    lines={
        "type": "array",
        "minItems": 1,
        "maxItems": 100,
        "items": an_object(
            ("sku", "quantity", "price"),
            sku={"type": "string", "pattern": "^[A-Z]{3}-[0-9]{4,8}$"},
            note={"type": "string", "minLength": 1, "maxLength": 255},
            quantity={"type": "integer", "minimum": 1, "maximum": 999},
            price={"type": "string", "pattern": r"^\d+\.\d{2}$"},
        ),
    },
    status={"type": "string", "enum": ["open", "paid", "shipped", "returned"]},
    createdAt={"type": "string", "format": "date-time"},
)


def passes(path: str, **fields: Any) -> int:
    """Return the bytes of a body that passes with something to compile."""
    body = json.dumps({"model": "m", **fields}).encode()
    assert check_compiled(compiled_values(parse(PATHS[path].listed, body)))
    return len(body)


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "Read"}}])
def test_65_kb_of_tools_of_a_coding_client_with_mcp_pass_where_one_must_be_called(
    choice: Any,
) -> None:
    functions = [
        {"name": name, "description": text, "parameters": schema}
        for name, text, schema in DOCUMENTED
    ]
    tools = [{"type": "function", "function": each} for each in functions]
    assert passes(CHAT, tools=tools, tool_choice=choice) > 65_000
    strict = [{"type": "function", **each, "strict": True} for each in functions]
    passes(RESPONSES, tools=strict, tool_choice="auto")


def test_they_pass_as_claude_code_sends_them() -> None:
    tools = [
        {"name": name, "description": text, "input_schema": schema}
        for name, text, schema in DOCUMENTED
    ]
    passes(MESSAGES, tools=tools, tool_choice={"type": "any"})


def test_a_body_of_an_openapi_passes_as_the_format_of_an_answer() -> None:
    schema = {"name": "order", "schema": ORDER, "strict": True}
    passes(CHAT, response_format={"type": "json_schema", "json_schema": schema})
    passes(RESPONSES, text={"format": {"type": "json_schema", **schema}})
    passes(MESSAGES, output_config={"format": {"type": "json_schema", "schema": ORDER}})


@pytest.mark.parametrize(
    "outputs",
    [
        {"regex": r"^\w+@\w+\.(com|org)\n"},
        {"regex": r"^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$"},
        {"regex": r"^(0|[1-9]\d*)\.(0|[1-9]\d*)\.(0|[1-9]\d*)(?:-[0-9a-zA-Z-.]+)?$"},
        {"choice": ["positive", "negative", "neutral"]},
        {
            "grammar": """
            root ::= select_statement
            select_statement ::= "SELECT " column " from " table " where " condition
            column ::= "col_1 " | "col_2 "
            table ::= "table_1 " | "table_2 "
            condition ::= column "= " number
            number ::= [0-9]+ ("." [0-9]{1,4})?
            """
        },
    ],
)
def test_the_structured_outputs_of_vllms_examples_pass(outputs: dict[str, Any]) -> None:
    passes(CHAT, structured_outputs=outputs)
