"""A tenant who offers the names of others: their requests and keys go where they went before."""

import time
from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from tessera.api.rate_limits import RateLimitsSpec
from tessera.api.ref import Ref
from tessera.api.tenant_budget import TenantBudgetSpec
from tessera.domain.config import Config
from tessera.domain.gateway.access import tenant_models
from tessera.domain.gateway.build import GatewayObservations, build_directory
from tessera.domain.gateway.directory import Directory
from tessera.domain.gateway.name_conflicts import find_name_conflicts
from tessera.domain.observed.snapshot import Budget, ObservedService
from tessera.domain.status.events import event_notes
from tessera.domain.status.service import service_status
from tests.builders import NOW, a_budget, a_service, a_snapshot, a_spec, plan_of
from tests.gateway.harness import (
    CHAT,
    COMPLETION,
    ScriptedEngine,
    a_gateway,
    a_replica,
    an_api_key,
)
from tests.hostile.score import SCORE

pytestmark = pytest.mark.anyio
EVIL = "team-evil"
GRANTED = ("gpt-4o", "claude-sonnet-4-5", "llama-3")
PUBLIC: dict[str, Any] = {"public": True}
BUDGETS = (
    a_budget("team-a", publishing=[{"names": GRANTED, **PUBLIC}]),
    a_budget("team-b"),
    a_budget("team-c", publishing=[{"names": ["code"], "tenants": ["team-b"]}]),
    a_budget(EVIL, publishing=[{"names": ["evil"], **PUBLIC}]),
)
OTHERS = ("team-a", "team-b", "team-c")


def assert_equal(hostile: Any, peaceful: Any) -> None:
    """Compare what a scene shows with its twin, and count it."""
    SCORE.add(int(hostile != peaceful))
    assert hostile == peaceful


def serve(
    name: str, namespace: str = "team-a", age_days: int = 1, **fields: Any
) -> ObservedService:
    return a_service(
        name,
        a_spec(**fields),
        ref=Ref(namespace, name),
        uid=f"uid-{namespace}-{name}",
        created=NOW - timedelta(days=age_days),
    )


def a_directory(*services: ObservedService, budgets: Sequence[Budget] = BUDGETS) -> Directory:
    observed = GatewayObservations(services=services, budgets=budgets)
    return build_directory(observed, RateLimitsSpec())


LLAMA = serve("llama-3", access={"aliases": ["gpt-4o"], **PUBLIC})
CODE = serve("code", "team-c", access={"tenants": ["team-b"]})
ATTEMPTS: dict[str, dict[str, Any]] = {
    "aliases": {"access": {"aliases": GRANTED, **PUBLIC}},
    "a served name": {"model": {"servedName": "llama-3"}, "access": PUBLIC},
    "adapters": {
        "model": {"adapters": [{"name": "llama-3", "uri": "hf://a/b"}]},
        "access": {"tenants": OTHERS},
    },
    "another case": {"access": {"aliases": ["GPT-4o", "Llama-3", "LLAMA-3", "Code"], **PUBLIC}},
    "for one tenant": {"access": {"aliases": ["llama-3", "code"], "tenants": ["team-b"]}},
}
# What is there of the others: all, and nothing while they are recreated.
STATES = {
    "all": (LLAMA, CODE),
    "deleted": (),
    "ending": (replace(LLAMA, deleting=True), replace(CODE, deleting=True)),
    "recreated": (replace(LLAMA, created=NOW, uid="again"), replace(CODE, created=NOW, uid="too")),
    "moved": (replace(LLAMA, ref=Ref("team-a", "elsewhere")), CODE),
}


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("attempt", ATTEMPTS)
def test_whatever_a_tenant_offers_names_with_a_grant_mean_what_they_meant(
    attempt: str, state: str
) -> None:
    """He gets no other name to anybody either."""
    evil = serve("evil-names", EVIL, 99, **ATTEMPTS[attempt])
    beside, alone = a_directory(*STATES[state], evil), a_directory(*STATES[state])
    for tenant in OTHERS:
        assert_equal(tenant_models(beside, tenant), tenant_models(alone, tenant))


async def test_a_prompt_for_a_service_that_is_away_reaches_no_engine_of_another_tenant() -> None:
    """Nor by a key that is for that name or service alone."""
    async with ScriptedEngine(lambda call: call.whole(COMPLETION)) as engine:
        evil = serve("x", EVIL, access={"aliases": ["llama-3"], **PUBLIC})
        keys = {
            "all": an_api_key("tsk-all", name="all", tenant="team-b"),
            "name": an_api_key("tsk-name", name="name", tenant="team-b", models=("llama-3",)),
            "service": an_api_key(
                "tsk-service", name="s", tenant="team-b", services=frozenset({LLAMA.ref})
            ),
        }
        for services in ([evil], [LLAMA, evil]):
            directory = a_directory(*services)
            models = tuple(
                replace(model, replicas=(a_replica(engine.address),))
                if model.tenant == EVIL
                else model
                for model in directory.models
            )
            by_digest = {key.digest: key for key in keys.values()}
            async with a_gateway(replace(directory, models=models, keys=by_digest)) as gateway:
                for secret in keys:
                    answer = await gateway.post(
                        {**CHAT, "model": "llama-3"}, authorization=f"Bearer tsk-{secret}"
                    )
                    assert_equal(answer.status, 503 if LLAMA in services else 404)
        assert_equal(engine.calls, [])


def test_however_many_services_list_a_name_its_owner_is_told_the_same_once() -> None:
    """By one sentence, without an Event."""

    def statuses(count: int) -> tuple[Any, Any]:
        evil = [
            serve(f"x{number}", EVIL, access={"aliases": GRANTED, **PUBLIC})
            for number in range(count)
        ]
        snapshot = a_snapshot(LLAMA, *evil, budgets=BUDGETS)
        plan = plan_of(snapshot, Config(gateways=True))
        status = service_status(snapshot, plan.service_plans[LLAMA.ref], None, None)
        accepted = next(each for each in status.conditions if each.type == "Accepted")
        notes = [note for note in event_notes(LLAMA.status, status) if note.action == "Accepted"]
        return (accepted.reason, accepted.status, accepted.message), notes

    (reason, status, message), notes = statuses(1)
    assert (reason, status, notes) == ("NameContested", "True", [])
    assert EVIL not in message
    assert_equal(statuses(40), statuses(1))


def test_many_services_with_many_names_cost_a_cycle_little() -> None:
    """An edit of one of many services with sixteen names each that all others have too."""
    tenants = {f"t{number}": (f"t{number}",) for number in range(500)}
    access = {"aliases": [f"name-{number}" for number in range(16)], **PUBLIC}
    services = [serve(f"x{number}", EVIL, access=access) for number in range(400)]
    rights = a_directory().name_rights
    began = time.process_time()
    conflicts = find_name_conflicts(services, {EVIL: (EVIL,), **tenants}, rights)
    took = time.process_time() - began
    assert len(conflicts) == 400
    # It takes 0.4 s; a look at each tenant for each service and name took four times as much.
    assert took < 4


UNSAFE = {
    "ten thousand": [f"name-{number}" for number in range(10_000)],
    "none": [],
    "upper case": ["GPT-4o"],
    "Cyrillic o": ["gpt-4\u043e"],
    "full-width digits": ["gpt-\uff14o"],
    "a ligature": ["\ufb01ne"],
    "a zero-width space": ["gpt\u200b-4o"],
    "a combining mark": ["gpt-4o\u0301"],
    "a line break": ["gpt-4o\n"],
    "a space": ["gpt 4o"],
    "an encoding": ["gpt%2D4o"],
    "too long": ["a" * 129],
    "every name": ["*"],
    "empty": [""],
}


@pytest.mark.parametrize("names", UNSAFE.values(), ids=UNSAFE)
def test_a_grant_has_few_names_in_lower_case_letters_of_ascii(names: list[str]) -> None:
    spec = a_budget().spec
    assert spec is not None
    body = spec.model_dump(by_alias=True, mode="json")
    with pytest.raises(ValueError, match=r"publishing\.0\.names"):
        TenantBudgetSpec.model_validate({**body, "publishing": [{"names": names, **PUBLIC}]})
