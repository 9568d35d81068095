import asyncio
import json

import pytest

from tessera.batch_runner.answers.results import row_result
from tessera.batch_runner.engine import outcome_of, parse_reply
from tessera.batch_runner.retry import RequestOutcome
from tessera.batch_runner.sender import MemoryLimiter
from tests.batch_runner.harness import DEADLINE_SECONDS

BODY = b'{"id":"chatcmpl-1","usage":{"prompt_tokens":3,"completion_tokens":5},"choices":[]}'


def _ending(
    body: bytes, status: int = 200
) -> tuple[RequestOutcome, dict[str, object], tuple[int, int]]:
    reply = parse_reply(status, body)
    result = row_result("batch_req_1", 'q "1" \ud800', reply)
    assert b"\n" not in result.line
    return reply.outcome, json.loads(result.line), (result.prompt_tokens, result.output_tokens)


@pytest.mark.parametrize("body", [BODY, json.dumps(json.loads(BODY), indent=2).encode()])
def test_an_answer_keeps_the_engines_body_on_one_line(body: bytes) -> None:
    outcome, line, tokens = _ending(body)
    assert (outcome, tokens) == (RequestOutcome.ANSWERED, (3, 5))
    assert line == {
        "id": "batch_req_1",
        "custom_id": 'q "1" \ud800',
        "response": {"status_code": 200, "request_id": "chatcmpl-1", "body": json.loads(BODY)},
        "error": None,
    }


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b'{"a":NaN}',
        b'{"a":-Infinity}',
        b"{",
        b"\xff",
        b"\xef\xbb\xbf{}",
        '{"a":1}'.encode("utf-16"),
        b"[" * 10**5,
    ],
)
def test_what_is_no_answer_is_a_failure(body: bytes) -> None:
    outcome, line, _ = _ending(body)
    assert (outcome, line["response"]) == (RequestOutcome.FAILED, None)
    assert isinstance(error := line["error"], dict)
    assert error["code"] == "invalid_response"


@pytest.mark.parametrize(("digits", "tokens"), [(10, 2**31), (18, 2**31), (4300, 2**31), (3, 999)])
def test_a_figure_beyond_all_models_is_clamped(digits: int, tokens: int) -> None:
    usage = f'{{"prompt_tokens":{"9" * digits},"completion_tokens":1}}'
    assert _ending(f'{{"usage":{usage}}}'.encode())[2] == (tokens, 1)


@pytest.mark.parametrize("usage", ["null", "[]", '{"prompt_tokens":"3"}', '{"prompt_tokens":-3}'])
def test_odd_usage_counts_as_none(usage: str) -> None:
    assert _ending(f'{{"usage":{usage}}}'.encode())[2] == (0, 0)


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b'{"error":{"message":"too long","type":"BadRequestError"}}', "400: too long"),
        (b'{"message":"too long"}', "400: too long"),
        (b'{"error":"too long"}', "400: too long"),
        (b"too long", "400: too long"),
        (b'{"error":{}}', '400: {"error":{}}'),
    ],
)
def test_a_refusal_repeats_the_engines_words(body: bytes, said: str) -> None:
    outcome, line, _ = _ending(body, 400)
    assert outcome is RequestOutcome.REFUSED
    assert line["error"] == {"code": "request_refused", "message": said}


@pytest.mark.parametrize(
    ("status", "outcome"),
    [
        (200, RequestOutcome.ANSWERED),
        (307, RequestOutcome.REFUSED),
        (400, RequestOutcome.REFUSED),
        (404, RequestOutcome.REFUSED),
        (408, RequestOutcome.FAILED),
        (429, RequestOutcome.FAILED),
        (500, RequestOutcome.FAILED),
        (503, RequestOutcome.FAILED),
    ],
)
def test_status_codes_mean_what_they_say(status: int, outcome: RequestOutcome) -> None:
    assert outcome_of(status) is outcome


async def test_rows_wait_for_memory_and_a_huge_row_is_sent_alone() -> None:
    limiter, inside, most = MemoryLimiter(10), list[int](), list[int]()

    async def pass_through(size: int) -> None:
        async with limiter.reserve(size):
            inside.append(size)
            most.append(sum(inside))
            await asyncio.sleep(0)
            inside.remove(size)

    async with asyncio.timeout(DEADLINE_SECONDS):
        await asyncio.gather(*(pass_through(size) for size in (4, 5, 99, 6, 4, 10, 1)))
    assert len(most) == 7
    assert all(used <= 10 or used == 99 for used in most)
