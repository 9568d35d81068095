"""What a client reads whose request gets no engine."""

import json
import re
from datetime import UTC, datetime
from typing import Any

import pytest

from tessera.api.rate_limits import PeriodLimits, RateLimitsSpec
from tessera.api.ref import Ref
from tessera.domain.gateway.reasons import RequestReason
from tessera.gateway.refusals import REFUSALS
from tests.gateway.harness import (
    CHAT,
    COMPLETION,
    EngineCall,
    ScriptedEngine,
    a_directory,
    a_gateway,
    a_model,
    a_replica,
)

pytestmark = pytest.mark.anyio
TOKENS_PER_MINUTE = RateLimitsSpec(total_tokens=PeriodLimits(per_minute=500))
CREATED = int(datetime(2026, 11, 22, tzinfo=UTC).timestamp())


def test_every_reason_has_its_answer_but_those_that_no_client_reads() -> None:
    unread = {RequestReason.GATEWAY_KILLED, RequestReason.INTERNAL_ERROR}
    assert REFUSALS.keys() == set(RequestReason) - unread


async def take_490_tokens(call: EngineCall) -> None:
    await call.whole({**COMPLETION, "usage": {"prompt_tokens": 7, "completion_tokens": 483}})


async def test_a_rate_limit_says_of_what_it_is_and_for_how_long() -> None:
    async with ScriptedEngine(take_490_tokens) as engine:
        model = a_model(a_replica(engine.address))
        async with a_gateway(a_directory(model, default_limits=TOKENS_PER_MINUTE)) as gateway:
            body = {**CHAT, "max_tokens": 400}
            assert (await gateway.post(body)).status == 200
            refused = await gateway.post(body)
    assert refused.status == 429
    assert re.fullmatch(
        r"Tenant/team-a: default limit 500 tokens per minute, remaining \d+, needed 4\d\d; "
        r"retry in \d+ s\.",
        refused.error["message"],
    )


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        (
            RateLimitsSpec(input_tokens=PeriodLimits(per_day=2)),
            r"Tenant/team-a: default limit 2 input tokens per day, needed \d+\. It never fits: .*",
        ),
        (
            RateLimitsSpec(max_context_tokens=16),
            r"prompt is too long: \d+ tokens > 16 maximum of prompt and answer\. Shorten it\.",
        ),
    ],
)
async def test_a_request_that_never_fits_reads_what_it_needs(
    limits: RateLimitsSpec, message: str
) -> None:
    directory = a_directory(a_model(a_replica("127.0.0.1:1")), default_limits=limits)
    async with a_gateway(directory) as gateway:
        refused = await gateway.post(CHAT)
    assert refused.status == 400
    assert re.fullmatch(message, refused.error["message"])


async def test_a_stopped_service_says_so_and_names_no_time() -> None:
    async with a_gateway(a_directory(a_model(stopped=True))) as gateway:
        refused = await gateway.post(CHAT)
    assert (refused.status, refused.error["code"]) == (503, "service_stopped")
    assert "spec.replicas is 0" in refused.error["message"]
    assert "retry-after" not in refused.headers


async def test_a_service_that_was_never_accepted_is_no_model_of_the_list() -> None:
    refused = a_model(
        uid="uid-refused", service=Ref("team-a", "refused"), names=("refused",), is_listed=False
    )
    async with (
        a_gateway(a_directory(a_model(), refused)) as gateway,
        gateway.client.get(f"{gateway.url}/v1/models") as response,
    ):
        body = json.loads(await response.read())
    assert [model["id"] for model in body["data"]] == ["chat"]


async def test_models_are_as_old_as_their_services() -> None:
    async with a_gateway(a_directory(a_model(created=CREATED))) as gateway:
        bodies: list[Any] = []
        for path in ("/v1/models", "/v1/models/chat"):
            async with gateway.client.get(gateway.url + path) as response:
                bodies.append(json.loads(await response.read()))
    assert [bodies[0]["data"][0]["created"], bodies[1]["created"]] == [CREATED, CREATED]
