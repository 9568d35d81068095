"""Behind a route a refusal for money says what it says without: which limit, and what is left."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from tessera.api.ref import Ref
from tessera.domain.charge.scopes import MemberKind
from tessera.domain.gateway.reasons import RequestReason
from tessera.gateway.refusals import MONEY_REASONS, REFUSALS, RequestError, no_target
from tests.gateway.charging import a_charge_limit, paying, prices
from tests.gateway.course.paths import BODIES, STREAMING
from tests.gateway.harness import (
    TENANT,
    Answer,
    RunningGateway,
    a_directory,
    a_gateway,
    an_api_key,
)
from tests.gateway.route.test_routes import AUTH, LARGE, SMALL, a_route, a_target

pytestmark = pytest.mark.anyio
MANY = 10**15
KEYS = {"keys": [an_api_key(team="search")]}


def spent(kind: MemberKind | None = None) -> dict[str, Any]:
    """Return what a directory has where a limit of the tenant, or of a part of it, is spent."""
    return paying(MANY, a_charge_limit(1, name="small", kind=kind))


CASES: Mapping[str, tuple[RequestReason, dict[str, Any]]] = {
    "tenant": (RequestReason.BUDGET_EXCEEDED, spent()),
    **{
        kind.value: (RequestReason.BUDGET_EXCEEDED, spent(kind))
        for kind in MemberKind
        # A request with a key has no user.
        if kind is not MemberKind.USER
    },
    "no price": (RequestReason.PRICE_MISSING, paying(MANY) | {"prices": prices(models=("x",))}),
    "no answer": (RequestReason.BUDGET_UNAVAILABLE, paying(MANY)),
}


def refusal_of(answer: Answer) -> Any:
    """Return what a client reads, without what differs by the time and the name of the model."""
    error = dict(answer.error)
    error["message"] = re.sub(r"retry in \d+ s|needed [0-9.]+|`\w+`|\[\w+\]", "", error["message"])
    named = {"x-should-retry", "retry-after"} & {name.lower() for name in answer.headers}
    return answer.status, error, named


async def refusals(gateway: RunningGateway, name: str, paths: Sequence[str]) -> list[Any]:
    return [
        refusal_of(
            await gateway.post(
                BODIES[path] | {"model": name, **({"stream": True} if streams else {})},
                path,
                **AUTH,
            )
        )
        for path in paths
        for streams in (False, True)
    ]


def test_every_refusal_for_money_is_played() -> None:
    words = "TenantBudget/", "What is left of TenantBudget/"
    of_money = {reason for reason, row in REFUSALS.items() if row.message.startswith(words)}
    assert of_money == MONEY_REASONS == {reason for reason, _ in CASES.values()}


@pytest.mark.parametrize("case", CASES)
async def test_a_refusal_for_money_is_the_same_behind_a_route(case: str) -> None:
    reason, changes = CASES[case]
    models = a_target("small", "127.0.0.1:9"), a_target("large", "127.0.0.1:9")
    directory = a_directory(*models, a_route(SMALL, LARGE), **KEYS, **changes)
    async with a_gateway(directory) as gateway:
        gateway.accounts.answers = case != "no answer"
        # Each waits for an answer.
        paths = STREAMING if gateway.accounts.answers else STREAMING[:1]
        direct = await refusals(gateway, "small", paths)
        assert await refusals(gateway, "assistant", paths) == direct
        assert {error["code"] for _, error, _ in direct} == {
            re.sub("(?<!^)([A-Z])", r"_\1", reason).lower()
        }
        assert {record.reason for record in gateway.records} == {reason}
        assert gateway.records[-1].model_route == f"{TENANT}/assistant"


def test_a_target_that_may_answer_sooner_says_so_in_place_of_the_money() -> None:
    of_money = RequestError(RequestReason.BUDGET_EXCEEDED, *range(7), retry_seconds=86_400)
    full = RequestError(RequestReason.QUEUE_FULL, "team-a/large", retry_seconds=3)
    skipped = {"small": RequestReason.BUDGET_EXCEEDED, "large": RequestReason.QUEUE_FULL}
    error = no_target(Ref(TENANT, "assistant"), skipped, [of_money, full])
    assert (error.status, error.code, error.retry_seconds) == (503, "no_target", 3)
    assert "small: BudgetExceeded, large: QueueFull" in error.message
