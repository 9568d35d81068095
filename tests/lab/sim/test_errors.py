from typing import Any

import pytest

from tests.lab.sim.running import CAPTURED_KEYS, SLOW, keys, running

LIMITED = ("--max-model-len", "1024")

# Body, then status, `param`, `type` and message of a real server.
CAPTURED = [
    (
        {"prompt": "x" * 5000},
        400,
        "input_tokens",
        "BadRequestError",
        "This model's maximum context length is 1024 tokens. However, your prompt contains at "
        "least 1025 input tokens, which exceeds this limit even without any output tokens. Please "
        "reduce the length of the input prompt. (parameter=input_tokens, value=1025)",
    ),
    (
        {"prompt": "a", "max_tokens": 5000},
        400,
        "max_tokens",
        "BadRequestError",
        "max_tokens=5000 cannot be greater than max_model_len=1024. Please request fewer output "
        "tokens. (parameter=max_tokens, value=5000)",
    ),
    (
        {"prompt": "a", "model": "nope"},
        404,
        "model",
        "NotFoundError",
        "The model `nope` does not exist. Valid aliases: tiny.",
    ),
    (
        {"prompt": "a", "temperature": -1.0},
        400,
        "temperature",
        "BadRequestError",
        "temperature must be non-negative, got -1.0. (parameter=temperature, value=-1.0)",
    ),
    (
        {"prompt": "a", "max_tokens": "x"},
        400,
        "body.max_tokens",
        "Bad Request",
        "1 validation error:\n  {'type': 'int_parsing', 'loc': 'body.max_tokens', 'msg': 'Input "
        "should be a valid integer, unable to parse string as an integer', 'input': 'x'}",
    ),
    (
        {"prompt": "a", "logprobs": 50},
        400,
        "logprobs",
        "BadRequestError",
        "Requested sample logprobs of 50, which is greater than max allowed: 20 "
        "(parameter=logprobs, value=50)",
    ),
]


@pytest.mark.parametrize(("body", "status", "param", "kind", "message"), CAPTURED)
async def test_a_bad_request_is_refused_in_the_words_of_a_real_server(
    body: dict[str, Any], status: int, param: str, kind: str, message: str
) -> None:
    async with running(*LIMITED) as engine:
        response = await engine.post("/v1/completions", **body)
    assert response.status_code == status
    assert response.json() == {
        "error": {"message": message, "type": kind, "param": param, "code": status}
    }
    assert set(keys(response.json())) == set(CAPTURED_KEYS["too long"])


@pytest.mark.parametrize(
    ("body", "param", "text"),
    [
        ({}, "prompt", "must be provided"),
        ({"prompt": ["a", ""], "n": 0}, None, "at least 1"),
        ({"prompt": "a", "n": 2, "temperature": 0}, None, "greedy"),
        ({"prompt": [1, 99999]}, None, "out of vocabulary"),
        ({"prompt": "a", "stream_options": {}}, "stream_options", "`stream=True`"),
        ({"prompt": "a", "max_tokens": 0}, "max_tokens", "at least 1"),
        ({"prompt": "a", "max_tokens": 5, "min_tokens": 6}, None, "less than or equal"),
        ({"prompt": "a", "top_p": 2}, "top_p", "in (0, 1]"),
        ({"prompt": "a", "logprobs": -2}, "logprobs", "positive"),
    ],
)
async def test_other_bad_requests_say_which_parameter_is_wrong(
    body: dict[str, Any], param: str | None, text: str
) -> None:
    async with running(*LIMITED) as engine:
        response = await engine.post("/v1/completions", **body)
    error = response.json()["error"]
    assert (response.status_code, error["param"]) == (400, param)
    assert text in error["message"]


async def test_a_body_that_is_no_json_is_a_validation_error() -> None:
    async with running() as engine:
        headers = {"Content-Type": "application/json"}
        path = "/v1/chat/completions"
        response = await engine.http.post(path, content=b"{messages", headers=headers)
        untyped = await engine.http.post(path, content=b"{}")
    assert (response.status_code, response.json()["error"]["param"]) == (400, "body.1")
    assert "JSON decode error" in response.json()["error"]["message"]
    assert untyped.status_code == 400
    assert "Unsupported Media Type" in untyped.json()["error"]["message"]


async def test_an_answer_gets_what_the_prompt_leaves_of_the_context() -> None:
    asked = {"prompt": "x" * 4000, "max_tokens": 50, "ignore_eos": True}
    async with running(*LIMITED) as engine:
        response = await engine.post("/v1/completions", **asked)
    assert response.json()["usage"]["completion_tokens"] == 24


async def test_an_unknown_route_or_method_is_refused_in_another_form() -> None:
    async with running() as engine:
        answer = await engine.http.get("/is_sleeping")
        method = await engine.http.get("/v1/completions")
    assert (answer.status_code, answer.json()) == (404, {"detail": "Not Found"})
    assert (method.status_code, method.json()) == (405, {"detail": "Method Not Allowed"})


@pytest.mark.parametrize("keys_from", ["flag", "environment"])
async def test_a_key_guards_the_api_but_not_health_and_metrics(keys_from: str) -> None:
    by_flag = keys_from == "flag"
    arguments = ("--api-key", "secret", "other") if by_flag else ()
    environment = {} if by_flag else {"VLLM_API_KEY": "secret"}
    async with running(*arguments, **environment) as engine:
        without = await engine.http.get("/v1/models")
        wrong = await engine.http.get("/v1/models", headers={"Authorization": "Bearer no"})
        right = await engine.http.get("/v1/models", headers={"Authorization": "Bearer secret"})
        open_ones = [
            (await engine.http.get(path)).status_code
            for path in ("/health", "/metrics", "/load", "/version")
        ]
    assert (without.status_code, without.json()) == (401, {"error": "Unauthorized"})
    assert (wrong.status_code, right.status_code) == (401, 200)
    assert open_ones == [200] * 4


@pytest.mark.parametrize(
    ("flag", "limit", "text"),
    [("--max-num-queued-reqs", "1", "busy"), ("--max-num-queued-tokens", "1", "backlog")],
)
async def test_over_a_queue_limit_requests_are_rejected_at_once(
    flag: str, limit: str, text: str
) -> None:
    async with running(*SLOW, flag, limit) as engine:
        long = {"prompt": "x" * 20_000, "max_tokens": 3000, "ignore_eos": True}
        async with engine.http.stream("POST", "/v1/completions", json={**long, "stream": True}):
            response = await engine.post("/v1/completions", prompt="a", priority=-9)
            rejected = await engine.metrics()
    assert response.status_code == 503
    assert "retry-after" not in response.headers
    assert text in response.json()["error"]["message"]
    assert response.json()["error"]["type"] == "Service Unavailable"
    counter = f"admission_rejections_total {flag.removeprefix('--').replace('-', '_')}"
    assert rejected[counter] == 1
