"""A request is within all limits of its sender before it waits, or takes nothing of them."""

from collections.abc import AsyncIterator
from typing import Any

import pytest

from tessera.api.rate_limits import PeriodLimits, RateLimitsSpec
from tessera.domain.gateway.directory import Identity, OfferedModel
from tessera.domain.gateway.reasons import RequestReason
from tessera.domain.gateway.requests import RequestPriority, RequestShape
from tessera.domain.perf.step import StepTime
from tessera.gateway.refusals import RequestError
from tests.gateway.harness import (
    RunningGateway,
    a_chosen_request,
    a_directory,
    a_gateway,
    a_model,
    a_replica,
    an_api_key,
)

LIMITS = RateLimitsSpec(max_output_tokens=8, requests=PeriodLimits(per_day=1))
SENDER = Identity(tenant="team-a", key="ci", limits=LIMITS)
STEP = StepTime(weights=6e-3, kv_token=4e-8, token=3e-5, pair=2e-10)
MODEL = a_model(a_replica("127.0.0.1:1", step_time=STEP))


@pytest.fixture
async def gateway() -> AsyncIterator[RunningGateway]:
    async with a_gateway(a_directory(MODEL, keys=(an_api_key(limits=LIMITS),))) as running:
        yield running


def a_shape(**changes: Any) -> RequestShape:
    return RequestShape(**{"model": "chat", "input_tokens": 1, "max_output_tokens": 10, **changes})


async def refusal(gateway: RunningGateway, model: OfferedModel, **shape: Any) -> RequestReason:
    chosen = a_chosen_request(SENDER, model, a_shape(**shape))
    with pytest.raises(RequestError) as error:
        await gateway.admission.reservations.reserve(chosen)
    return error.value.reason


async def test_a_reservation_says_what_is_left_and_is_refused_where_nothing_is(
    gateway: RunningGateway,
) -> None:
    reservations = gateway.admission.reservations
    reserved = await reservations.reserve(a_chosen_request(SENDER, MODEL, a_shape()))
    assert reserved.max_output_tokens == 8
    assert dict(reserved.headers)[b"x-ratelimit-remaining-requests"] == b"0"
    assert await refusal(gateway, MODEL) is RequestReason.TOO_MANY_REQUESTS
    # A request counts though it used no tokens.
    reservations.settle(reserved, input_tokens=0, output_tokens=0)
    assert await refusal(gateway, MODEL) is RequestReason.TOO_MANY_REQUESTS


async def test_what_may_not_wake_a_service_takes_nothing_of_the_limits(
    gateway: RunningGateway,
) -> None:
    asleep = a_model(uid="uid-asleep", tenant="team-b", is_asleep=True, may_sleep=True)
    assert await refusal(gateway, asleep) is RequestReason.SERVICE_ASLEEP
    reserved = a_chosen_request(SENDER, MODEL, a_shape())
    await gateway.admission.reservations.reserve(reserved)


@pytest.mark.parametrize(
    ("priority", "becomes"),
    [(RequestPriority.BATCH, RequestPriority.DEFAULT), (RequestPriority.SHEDDABLE, None)],
)
async def test_others_do_not_wait_for_a_long_prompt_that_yields(
    gateway: RunningGateway, priority: RequestPriority, becomes: RequestPriority | None
) -> None:
    long = {"input_tokens": 10**7, "priority": priority}
    if becomes is None:
        assert await refusal(gateway, MODEL, **long) is RequestReason.SHEDDABLE_TOO_LONG
        return
    chosen = a_chosen_request(SENDER, MODEL, a_shape(**long))
    assert (await gateway.admission.reservations.reserve(chosen)).shape.priority is becomes
