"""What an engine drafted for a request is counted by the temperature of the request."""

from typing import Any

import pytest

from tessera.domain.observed.drafts import DraftCounts, TemperatureClass
from tests.gateway.harness import (
    CHAT,
    COMPLETION,
    DONE,
    END,
    ROLE,
    STREAM,
    ScriptedEngine,
    a_delta,
    a_directory,
    a_gateway,
    a_model,
    a_replica,
    event,
)

pytestmark = pytest.mark.anyio
# As vLLM 0.32 reports them with `--per-request-spec-decode-metrics=summary`.
HONEST = {"num_spec_steps": 5, "num_draft_tokens": 20, "num_accepted_draft_tokens": 8, "other": 1}
USAGE = {"prompt_tokens": 7, "completion_tokens": 13, "total_tokens": 20}


async def drafts_counted(body: dict[str, Any], metrics: Any) -> DraftCounts | None:
    """Send a request to an engine that reports these metrics; return what its record has."""
    ending = {"choices": [], "usage": USAGE, "metrics": metrics}

    async def script(call: Any) -> None:
        if call.json.get("stream"):
            await call.stream(ROLE, a_delta(), END, event(ending), DONE)
        else:
            await call.whole({**COMPLETION, "usage": USAGE, "metrics": metrics})

    async with ScriptedEngine(script) as engine:
        directory = a_directory(a_model(a_replica(engine.address)))
        async with a_gateway(directory) as gateway:
            answer = await gateway.post(body)
            assert answer.status == 200
            record = await gateway.record()
    assert record.output_tokens == USAGE["completion_tokens"]
    return record.drafts


@pytest.mark.parametrize("body", [CHAT, STREAM])
@pytest.mark.parametrize(
    ("fields", "temperature"),
    [
        ({}, TemperatureClass.DEFAULT),
        ({"temperature": None}, TemperatureClass.DEFAULT),
        ({"temperature": "warm"}, TemperatureClass.DEFAULT),
        ({"temperature": -1}, TemperatureClass.DEFAULT),
        ({"temperature": 0}, TemperatureClass.GREEDY),
        ({"temperature": 0.8}, TemperatureClass.LOW),
        ({"temperature": 0.81}, TemperatureClass.HIGH),
    ],
)
async def test_drafts_have_the_temperature_of_their_request(
    body: dict[str, Any], fields: dict[str, Any], temperature: TemperatureClass
) -> None:
    drafts = await drafts_counted({**body, **fields}, {"speculative_decoding": HONEST})
    assert drafts == DraftCounts(
        temperature=temperature, drafts=5, drafted_tokens=20, accepted_tokens=8
    )


async def test_forged_drafts_are_cut_to_what_the_answer_could_have() -> None:
    forged = dict.fromkeys(HONEST, 10**9)
    drafts = await drafts_counted({**CHAT, "max_tokens": 20}, {"speculative_decoding": forged})
    assert drafts == DraftCounts(drafts=13, drafted_tokens=8 * 13, accepted_tokens=13)


@pytest.mark.parametrize("body", [CHAT, STREAM])
@pytest.mark.parametrize(
    "metrics", [None, 7, {}, {"speculative_decoding": None}, {"speculative_decoding": {"a": [1]}}]
)
async def test_metrics_of_another_shape_count_nothing_and_harm_nothing(
    body: dict[str, Any], metrics: Any
) -> None:
    assert await drafts_counted(body, metrics) is None
