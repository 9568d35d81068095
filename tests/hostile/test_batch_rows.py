"""What a hostile engine answers to the rows of a batch, which reach it past the gateway."""

import json

import pytest

from tessera.batch_runner.answers.results import RowResult, row_result
from tessera.batch_runner.engine import EngineClient, ProbeRequest
from tests.gateway.harness import EngineCall, ScriptedEngine
from tests.hostile.answers import WHOLE
from tests.hostile.paths import BODY
from tests.hostile.score import SCORE

pytestmark = pytest.mark.anyio
PATH = "/v1/chat/completions"


@pytest.mark.parametrize("answer", WHOLE)
async def test_a_row_has_one_result_whatever_its_engine_answers(
    answer: str, caplog: pytest.LogCaptureFixture
) -> None:
    async def script(call: EngineCall) -> None:
        await WHOLE[answer].answer(call)

    body = json.dumps(BODY).encode()
    async with ScriptedEngine(script) as engine:
        client = EngineClient(
            f"http://{engine.address}", ProbeRequest(PATH, body), timeout=60, away_timeout=60
        )
        reply = await client.send_row(0, PATH, body, "row")
        await client.close()
    problems = _problems(row_result("line", "row", reply))
    problems += [record.getMessage() for record in caplog.records if record.exc_info]
    SCORE.add(bool(problems))
    assert not problems


def _problems(result: RowResult) -> list[str]:
    problems = []
    if b"\n" in result.line:
        problems.append("it is more than one line")
    line = json.loads(result.line, parse_constant=problems.append)
    if line["custom_id"] != "row" or (line["error"] is None) is not result.good:
        problems.append(f"the line {line}")
    if not min(result.prompt_tokens, result.output_tokens) >= 0:
        problems.append(f"{result.prompt_tokens} and {result.output_tokens} tokens")
    if max(result.prompt_tokens, result.output_tokens) > 2**31:
        problems.append(f"{result.prompt_tokens} and {result.output_tokens} tokens")
    return problems
