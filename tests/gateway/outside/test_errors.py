"""What published errors of providers mean, in the forms in which each of them writes its errors."""

import json
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tessera.gateway.outside.errors import (
    ErrorKind,
    header_retry_seconds,
    named_field,
    read_error,
)

CONTEXT, FILTER, MODEL = ErrorKind.CONTEXT, ErrorKind.FILTER, ErrorKind.MODEL
KEY_PERMISSION = ErrorKind.KEY_PERMISSION
NO_CREDIT, BAD_KEY = ErrorKind.NO_CREDIT, ErrorKind.BAD_KEY
RATE, OVERLOADED = ErrorKind.RATE, ErrorKind.OVERLOADED
REFUSED, FAILED = ErrorKind.REFUSED, ErrorKind.FAILED


def openai(message: str = "It was not possible.", **fields: Any) -> dict[str, Any]:
    return {"error": {"message": message, "type": None, "param": None, "code": None, **fields}}


def anthropic(kind: str, message: str = "It was not possible.") -> dict[str, Any]:
    return {"type": "error", "error": {"type": kind, "message": message}, "request_id": "req_1"}


def google(code: int, status: str, message: str, *details: dict[str, Any]) -> dict[str, Any]:
    error = {"code": code, "message": message, "status": status, "details": list(details)}
    return {"error": error}


def openrouter(code: int, message: str = "Provider returned error", **metadata: Any) -> Any:
    return {"error": {"code": code, "message": message, "metadata": metadata}, "user_id": "u"}


def xai(code: str, error: str) -> dict[str, Any]:
    return {"code": code, "error": error}


def mistral(**fields: Any) -> dict[str, Any]:
    return {"object": "error", "type": "invalid_request_error", "code": None, **fields}


INVALID = {"type": "invalid_request_error"}
FORBIDDEN = {
    **{"type": "extra_forbidden", "loc": ["body", "max_completion_tokens"], "input": 9},
    "msg": "Extra inputs are not permitted",
}
LONG_TEXT = {"code": "string_above_max_length"}
OVERFLOW = "This model's maximum context length is 8192 tokens. However, "
RATE_LIMITED = {"code": "rate_limit_exceeded", "type": "tokens"}
EXHAUSTED = "Resource has been exhausted (e.g. check quota)."
NO_QUOTA = json.dumps(openai("Insufficient Balance", code="insufficient_quota"))
ARGUMENT = "Client specified an invalid argument"
LOW_CREDIT = "Your credit balance is too low to access the Anthropic API. Please buy credits."

CASES: list[tuple[str, int, Any, ErrorKind]] = [
    # OpenAI
    ("openai context", 400, openai(**INVALID, code="context_length_exceeded"), CONTEXT),
    ("openai text", 400, openai(OVERFLOW + "your messages resulted in 9000 tokens."), CONTEXT),
    ("openai quota", 429, openai("Check your plan.", type="insufficient_quota"), NO_CREDIT),
    ("openai credits", 429, openai(code="credit_balance_exhausted"), NO_CREDIT),
    ("openai rate", 429, openai("Rate limit reached for gpt-x", **RATE_LIMITED), RATE),
    ("openai minute", 429, openai("Request too large for gpt-x: Limit 9", **RATE_LIMITED), CONTEXT),
    ("openai key", 401, openai(**INVALID, code="invalid_api_key"), BAD_KEY),
    ("openai flagged", 400, openai(**INVALID, code="invalid_prompt"), FILTER),
    ("openai model", 404, openai(**INVALID, code="model_not_found"), MODEL),
    ("openai busy", 503, openai(code="server_is_overloaded"), OVERLOADED),
    ("openai parameter", 400, openai(code="unsupported_parameter", param="top_k"), REFUSED),
    ("openai down", 500, openai(type="server_error"), FAILED),
    ("openai message", 400, openai(**LONG_TEXT, param="messages[1].content"), CONTEXT),
    ("openai input", 400, openai(**LONG_TEXT, param="input[0].content[0].text"), CONTEXT),
    ("openai call", 400, openai(**LONG_TEXT, param="messages[2].tool_calls[0].id"), REFUSED),
    ("openai tool", 0, openai(**LONG_TEXT, param="tools[5].function.description"), REFUSED),
    (
        "responses event",
        0,
        {"type": "response.failed", "response": openai(code="context_length_exceeded")},
        CONTEXT,
    ),
    ("responses error", 0, {"type": "error", "code": "rate_limit_exceeded", "param": None}, RATE),
    # Anthropic
    ("anthropic credit", 400, anthropic("invalid_request_error", LOW_CREDIT), NO_CREDIT),
    ("anthropic billing", 402, anthropic("billing_error"), NO_CREDIT),
    (
        "anthropic limit",
        400,
        anthropic("invalid_request_error", "You have reached your specified API usage limits."),
        NO_CREDIT,
    ),
    ("anthropic key", 401, anthropic("authentication_error"), BAD_KEY),
    ("anthropic permission", 403, anthropic("permission_error"), MODEL),
    (
        "anthropic permission of a key",
        403,
        anthropic("permission_error", "Your API key does not have permission to use it."),
        KEY_PERMISSION,
    ),
    ("anthropic model", 404, anthropic("not_found_error", "model: claude-x"), MODEL),
    ("anthropic bytes", 413, anthropic("request_too_large"), CONTEXT),
    ("anthropic rate", 429, anthropic("rate_limit_error"), RATE),
    ("anthropic busy", 529, anthropic("overloaded_error"), OVERLOADED),
    ("anthropic busy event", 0, anthropic("overloaded_error"), OVERLOADED),
    (
        "anthropic context",
        400,
        anthropic("invalid_request_error", "prompt is too long: 9000 tokens > 8192 maximum"),
        CONTEXT,
    ),
    (
        "anthropic filter",
        400,
        anthropic("invalid_request_error", "Output blocked by content filtering policy"),
        FILTER,
    ),
    # Google
    (
        "google key",
        400,
        google(400, "INVALID_ARGUMENT", "API key not valid. Please pass a valid API key."),
        BAD_KEY,
    ),
    (
        "google key detail",
        400,
        google(400, "INVALID_ARGUMENT", "It expired.", {"reason": "API_KEY_INVALID"}),
        BAD_KEY,
    ),
    ("google rate in a list", 429, [google(429, "RESOURCE_EXHAUSTED", EXHAUSTED)], RATE),
    ("google busy", 503, google(503, "UNAVAILABLE", "The model is overloaded."), OVERLOADED),
    ("google model", 404, google(404, "NOT_FOUND", "models/x is not found"), MODEL),
    (
        "google context",
        400,
        google(
            *(400, "INVALID_ARGUMENT"),
            "The input token count (9000) exceeds the maximum number of tokens allowed (8192).",
        ),
        CONTEXT,
    ),
    ("google permission", 403, google(403, "PERMISSION_DENIED", "You are not permitted."), MODEL),
    (
        "google leaked key",
        403,
        google(403, "PERMISSION_DENIED", "Your API key was reported as leaked."),
        BAD_KEY,
    ),
    # Azure
    (
        "azure filter",
        400,
        openai(code="X", innererror={"code": "ResponsibleAIPolicyViolation"}, status=400),
        FILTER,
    ),
    ("azure deployment", 404, openai(code="DeploymentNotFound"), MODEL),
    ("azure number", 0, openai("Wait.", code="429"), RATE),
    # OpenRouter
    (
        "openrouter raw",
        0,
        openrouter(400, raw=json.dumps(openai(OVERFLOW + "you requested about 9000 tokens"))),
        CONTEXT,
    ),
    ("openrouter text", 0, openrouter(429, raw="x/y is rate-limited upstream."), RATE),
    ("openrouter credit", 402, openrouter(402, "Insufficient credits"), NO_CREDIT),
    (
        "openrouter credit of a request",
        402,
        openrouter(402, "This request requires more credits, or fewer max_tokens. You asked for 9"),
        REFUSED,
    ),
    ("openrouter prompt", 402, openrouter(402, "Prompt tokens limit exceeded: 9 > 8."), REFUSED),
    ("openrouter upstream quota", 429, openrouter(429, raw=NO_QUOTA), RATE),
    ("openrouter upstream credit", 402, openrouter(402, raw="Insufficient Balance"), FAILED),
    ("openrouter upstream key", 0, openrouter(401, raw={"error": {"code": 401}}), FAILED),
    ("openrouter flagged", 403, openrouter(403, "Flagged", flagged_input="you"), FILTER),
    ("openrouter down", 0, openrouter(502), FAILED),
    ("openrouter choice", 0, {"choices": [openrouter(429) | {"message": {}}]}, RATE),
    # Mistral
    ("mistral parameter", 422, {"detail": [FORBIDDEN]}, REFUSED),
    ("mistral nested", 422, mistral(message={"detail": [FORBIDDEN]}), REFUSED),
    (
        "mistral context",
        400,
        mistral(message="Prompt contains 9000 tokens, too large for model with 8192 maximum "
                "context length"),
        CONTEXT,
    ),
    ("mistral busy", 429, mistral(type="service_tier_capacity_exceeded"), OVERLOADED),
    ("mistral key", 401, {"message": "Unauthorized", "request_id": "1"}, BAD_KEY),
    # DeepSeek
    ("deepseek credit", 402, openai("Insufficient Balance", type="unknown_error"), NO_CREDIT),
    ("deepseek credit event", 0, openai("Insufficient Balance", type="unknown_error"), NO_CREDIT),
    ("deepseek filter", 400, openai("Content Exists Risk", **INVALID), FILTER),
    ("deepseek model", 400, openai("Model Not Exist", **INVALID), MODEL),
    # Moonshot
    ("moonshot credit", 429, openai(type="exceeded_current_quota_error"), NO_CREDIT),
    ("moonshot busy", 429, openai(type="engine_overloaded_error"), OVERLOADED),
    ("moonshot rate", 429, openai(type="rate_limit_reached_error"), RATE),
    ("moonshot filter", 400, openai(type="content_filter", param="prompt"), FILTER),
    (
        "moonshot context",
        400,
        openai(
            "Invalid request: Your request exceeded model token limit: 8192 (requested: 9000)",
            **INVALID,
        ),
        CONTEXT,
    ),
    # Groq
    ("groq minute", 413, openai("Request too large for model `x`", **RATE_LIMITED), CONTEXT),
    ("groq flex", 498, openai(code="capacity_exceeded"), OVERLOADED),
    ("groq blocked", 403, openai(code="model_permission_blocked_project"), MODEL),
    ("groq model", 400, openai(**INVALID, code="model_decommissioned"), MODEL),
    # xAI
    ("xai key", 400, xai(ARGUMENT, "Incorrect API key provided: na***ys."), BAD_KEY),
    (
        "xai credit",
        429,
        xai(
            "Some resource has been exhausted",
            "Your team 1-a has either used all available credits or reached its monthly spending "
            "limit.",
        ),
        NO_CREDIT,
    ),
    ("xai filter", 403, xai("permission-denied", "Content violates usage guidelines. "), FILTER),
    (
        "xai context",
        400,
        xai(
            ARGUMENT,
            "This model's maximum prompt length is 8192 but the request contains 9000 tokens.",
        ),
        CONTEXT,
    ),
    (
        "xai new team",
        403,
        xai("permission-denied", "Your newly created team doesn't have any credits or licenses."),
        NO_CREDIT,
    ),
    # Together
    ("together context", 403, openai(**INVALID, param="max_tokens"), CONTEXT),
    (
        "together text",
        403,
        openai("Input validation error: `inputs` tokens + `max_new_tokens` must be <= 8192."),
        CONTEXT,
    ),
    # MiniMax
    ("minimax credit", 0, {"choices": None, "base_resp": {"status_code": 1008}}, NO_CREDIT),
    ("minimax text", 500, anthropic("api_error", "insufficient balance (1008)"), NO_CREDIT),
    ("minimax type", 429, anthropic("insufficient_balance_error"), NO_CREDIT),
    # Cohere
    (
        "cohere context",
        400,
        {"message": "too many tokens: total number of tokens in the prompt cannot exceed 9 - got"},
        CONTEXT,
    ),
    ("cohere key", 401, {"id": "1", "message": "invalid api token"}, BAD_KEY),
    # Amazon Bedrock
    ("bedrock rate", 400, {"__type": "com.amazon#ThrottlingException"}, RATE),
    ("bedrock context", 400, {"message": "Input is too long for requested model."}, CONTEXT),
    ("bedrock time", 424, {"message": "The model failed."}, FAILED),
    # Z.ai, vLLM and SGLang
    (
        "zai credit",
        429,
        anthropic("rate_limit_error", "[1113][Insufficient balance or no resource package."),
        NO_CREDIT,
    ),
    (
        "sglang context",
        0,
        mistral(
            type="BadRequestError",
            message="Requested token count exceeds the model's maximum context length of 8192 "
            "tokens. You requested a total of 9000 tokens: 8000 of them",
        ),
        CONTEXT,
    ),
    # Others, by their status
    ("plain text", 400, b"Bad request", REFUSED),
    ("plain refusal", 403, openai(), REFUSED),
    ("page of a firewall", 403, b"<html>", REFUSED),
    ("plain page", 502, b"<html>", FAILED),
    ("nothing", 404, b"", MODEL),
    ("no object", 0, [1, None, "x"], FAILED),
]  # fmt: skip


def as_bytes(body: Any) -> bytes:
    return body if isinstance(body, bytes) else json.dumps(body).encode()


@pytest.mark.parametrize(
    ("status", "body", "kind"), [pytest.param(*case, id=name) for name, *case in CASES]
)
def test_an_error_means_what_its_provider_says_of_it(
    status: int, body: Any, kind: ErrorKind
) -> None:
    assert read_error(as_bytes(body), status).kind is kind


@pytest.mark.parametrize(
    ("status", "body"),
    [
        pytest.param(status, body, id=name)
        for name, status, body, kind in CASES
        if kind is CONTEXT and "9000" in json.dumps(body)
    ],
)
def test_a_prompt_that_is_too_long_has_the_numbers_of_the_error(status: int, body: Any) -> None:
    error = read_error(as_bytes(body), status)
    assert (error.needed, error.limit) == (9000, 8192)


@pytest.mark.parametrize(
    "body",
    [
        # A prompt that the error repeats, behind what the provider says itself.
        openai(f"Invalid value in messages[0]: '{LOW_CREDIT}'", **INVALID),
        {"detail": [{**FORBIDDEN, "input": openai(LOW_CREDIT, code="insufficient_quota")}]},
        {"detail": [{**FORBIDDEN, "ctx": {"error": {"code": "insufficient_quota"}}}]},
        openai(json.dumps(openai(LOW_CREDIT, code="insufficient_quota")), **INVALID),
        {"response": {"metadata": {"code": "insufficient_quota"}, "error": INVALID}},
    ],
)
def test_a_prompt_in_an_error_decides_nothing(body: Any) -> None:
    assert read_error(as_bytes(body), 400).kind is REFUSED


@pytest.mark.parametrize(
    ("body", "field"),
    [
        (openai(param="top_k"), "top_k"),
        (openai(param="messages[3].content"), "messages"),
        ({"detail": [FORBIDDEN | {"loc": ["body", "top_k", 0]}]}, "top_k"),
        (mistral(message=json.dumps({"detail": [FORBIDDEN | {"loc": ["top_k"]}]})), "top_k"),
        (
            google(400, "INVALID_ARGUMENT", "No.", {"fieldViolations": [{"field": "top_k"}]}),
            "top_k",
        ),
        (anthropic("invalid_request_error", "thinking.budget_tokens: Input is small"), "thinking"),
        ({"detail": [FORBIDDEN]}, None),
        (openai("sk-secret: it is wrong", param="sk-secret"), None),
    ],
)
def test_a_field_of_the_request_is_named_and_nothing_else(body: Any, field: str | None) -> None:
    names = read_error(as_bytes(body), 400).parameters
    assert named_field(names, b'{"top_k": 1, "messages": [], "thinking": {}}') == field


NOW = datetime(2026, 11, 30, 12, tzinfo=UTC)


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"Retry-After": "2.5"}, 2.5),
        ({"Retry-After": "Mon, 30 Nov 2026 12:00:09 GMT"}, 9),
        ({"Retry-After": "Mon, 30 Nov 2026 12:00:09"}, 9),
        ({"Retry-After": "Mon, 30 Nov 2026 11:00:00 GMT"}, 0),
        ({"Retry-After": "Mon, 30 Nov 2099 12:00:00 GMT"}, 60),
        ({"Retry-After": "Mon, 30 Nov 99999999999 12:00:00 GMT"}, 0),
        ({"Retry-After-Ms": "1500", "Retry-After": "7"}, 1.5),
        ({"Retry-After-Ms": "soon", "Retry-After": "7"}, 7),
        ({"Retry-After": "86400"}, 60),
        ({"Retry-After": "nan"}, 0),
        ({"Retry-After": "-1"}, 0),
        ({"Retry-After": ""}, 0),
        ({}, 0),
    ],
)
def test_a_wait_is_seconds_or_a_date_or_milliseconds(
    headers: dict[str, str], seconds: float
) -> None:
    assert header_retry_seconds(headers, NOW) == seconds


@pytest.mark.parametrize(
    ("delay", "seconds"), [("4.07s", 4.07), ("900s", 60), ("s", 0), ("-3s", 0), (3, 0)]
)
def test_google_says_in_its_error_how_long_to_wait(delay: Any, seconds: float) -> None:
    detail = {"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": delay}
    body = google(429, "RESOURCE_EXHAUSTED", EXHAUSTED, detail)
    assert read_error(as_bytes(body), 429).retry_seconds == seconds


@pytest.mark.parametrize(
    "body",
    [
        b"[" * 60_000,
        b'{"error":' * 6000 + b"1" + b"}" * 6000,
        b"[" + b'{"error": {"code": "context_length_exceeded"}},' * 100_000 + b"1]",
        b'{"error": {"code": ' + b"9" * 5000 + b"}}",
        b'{"error": {"code": 1e999, "message": [], "type": {}, "param": 3}}',
        b'{"error": {"message": "\\ud800"}}',
        b'{"error": {"message": "' + b"a: " * 10_000 + b'"}}',
        b"\x00\xff",
    ],
)
def test_a_body_that_says_nothing_is_judged_by_its_status(body: bytes) -> None:
    assert read_error(body, 400).kind is REFUSED
    assert read_error(body).kind is FAILED


def test_a_code_is_read_beside_bytes_that_are_no_text() -> None:
    body = b'{"error": {"code": "context_length_exceeded", "message": "\xff"}}'
    assert read_error(body, 400).kind is CONTEXT


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(["error", "code", "message", "detail", "details", "loc", "raw"]), inner
        )
    ),
)


@given(values, st.sampled_from([0, 101, 307, 400, 422, 500]))
def test_no_body_is_a_fault(value: Any, status: int) -> None:
    read_error(as_bytes(value), status)


@given(st.binary(max_size=200))
def test_no_bytes_are_a_fault(body: bytes) -> None:
    assert read_error(body, 400).kind is REFUSED
    named_field(("a",), body)
