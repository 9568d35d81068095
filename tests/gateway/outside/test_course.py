"""Requests that a model of a provider answers, and those that it does not."""

import json
from pathlib import Path

from tests.gateway.charging import INPUT, OUTPUT
from tests.gateway.outside.routing import a_body, routed

COST = 2 * (4 * INPUT + 8 * OUTPUT)


async def test_a_provider_answers_and_is_recorded_with_price_and_cost(tmp_path: Path) -> None:
    async with routed(tmp_path) as world:
        got = await world.gateway.post(a_body())
        assert got.status == 200, got.body
        assert json.loads(got.body)["model"] == "big-1"
        assert got.headers["x-tessera-target"] == "outside"
        assert got.headers["x-tessera-model"] == "big-1"
        (record,) = await world.records(1)
    assert (record.service, record.provider, record.target) == ("", "acme/big-1", "outside")
    assert (record.model, record.model_route, record.requests) == (
        "assistant",
        "team-a/assistant",
        1,
    )
    assert (record.input_tokens, record.output_tokens, record.estimated) == (4, 8, False)
    assert (record.charge_nanos, record.cost_nanos) == (COST // 2, COST)
