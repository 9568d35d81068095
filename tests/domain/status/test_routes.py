"""What the status of a route says of its name and its targets."""

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from tessera.api.model_route import ModelRouteSpec, ModelRouteStatus
from tessera.api.ref import Ref
from tessera.api.service_status import InferenceServiceStatus
from tessera.domain.observed.providers import ObservedProvider
from tessera.domain.observed.routes import ObservedRoute
from tessera.domain.observed.snapshot import Budget, ObservedService
from tessera.domain.status.routes import route_status, route_statuses
from tests.builders import NOW, a_budget, a_provider, a_service, a_snapshot, a_spec, plan_of
from tests.domain.test_steps import EVIL, Raising

EMBEDS = {"parameters": 10**8, "layers": 12, "attentionHeads": 12, "kvHeads": 12, "headDim": 64}
SHAPE = {**EMBEDS, "maxPositionEmbeddings": 512, "pooling": "Embed"}
GRANT = {"names": ["large"], "tenants": ["team-a"]}


def a_target(ref: str, ready: int = 1, spec: Any = None, **status: Any) -> ObservedService:
    namespace, _, name = ref.rpartition("/")
    return a_service(
        name,
        a_spec(**spec or {}),
        ref=Ref(namespace or "team-a", name),
        uid=f"uid-{ref}",
        created=NOW - timedelta(days=3),
        status=InferenceServiceStatus.model_validate({"readyReplicas": ready, **status}),
    )


def a_provider_target(model: str = "Big", **fields: Any) -> dict[str, Any]:
    return {"name": "outside", "provider": {"name": "acme", "model": model}, **fields}


def a_route(*targets: str, name: str = "assistant", days: int = 1, **spec: Any) -> ObservedRoute:
    fields = {"targets": [{"service": target} for target in targets], **spec}
    return ObservedRoute(
        ref=Ref("team-a", name),
        uid=f"uid-route-{name}",
        created=NOW - timedelta(days=days),
        generation=3,
        spec=ModelRouteSpec.model_validate(fields),
    )


def statuses(
    *objects: ObservedRoute | ObservedService, budgets: tuple[Budget, ...] = (), **options: Any
) -> dict[str, ModelRouteStatus]:
    budgets = budgets or (a_budget("team-a"), a_budget("team-b"))
    return {
        ref.name: status
        for ref, status in route_statuses(
            [each for each in objects if isinstance(each, ObservedRoute)],
            [each for each in objects if isinstance(each, ObservedService)],
            plan_of(a_snapshot(budgets=budgets)).budgets,
            NOW,
            **{"gateways": True, **options},
        ).items()
    }


def accepted(status: ModelRouteStatus) -> tuple[str, str, str]:
    (condition,) = status.conditions
    assert condition.type == "Accepted"
    assert condition.observed_generation == status.observed_generation == 3
    return condition.status, condition.reason, condition.message


MAY_SLEEP = {"scaling": {"minReplicas": 0, "idle": {"after": "10m"}}}
ASLEEP = {"desiredReplicas": 0, "reason": "ScaledToZero", "message": "no request for 10m"}


@pytest.mark.parametrize(
    ("target", "state"),
    [
        (a_target("small"), "Available"),
        (a_target("small", 0), "NoReadyReplica"),
        (a_target("small", 0, {"replicas": 0}), "ServiceStopped"),
        (a_target("small", 0, MAY_SLEEP), "NoReadyReplica"),
        (
            a_target("small", 0, MAY_SLEEP, scaling=ASLEEP),
            "ServiceAsleep",
        ),
    ],
)
def test_each_target_says_whether_it_can_answer(target: ObservedService, state: str) -> None:
    status = statuses(a_route("small", "large"), target, a_target("large", 2))["assistant"]
    ready = 1 + (state == "Available")
    assert status.summary == ("1/2: large" if ready == 1 else "2/2: small, large")
    assert [(each.name, each.service, each.reason) for each in status.targets] == [
        ("small", "team-a/small", state),
        ("large", "team-a/large", "Available"),
    ]
    assert accepted(status) == ("True", "Valid", f"{ready} of 2 targets can answer now")


def test_unknown_and_pooling_targets_are_named_and_the_others_still_count() -> None:
    broken = replace(a_target("broken"), spec=None, problem="spec.model: Field required")
    embeds = a_target("embeds", spec={"model": {"shape": SHAPE}})
    route = a_route("embeds", "gone", "broken", "large")
    status = statuses(route, broken, embeds, a_target("large"))["assistant"]
    reasons = [each.reason for each in status.targets]
    assert reasons == ["PoolingTarget", "TargetNotFound", "TargetNotFound", "Available"]
    value, reason, message = accepted(status)
    assert (value, reason, status.summary) == ("False", "TargetNotFound", "1/4: large")
    assert message.partition(". This ends")[0] == "; ".join(
        f"spec.targets[{number}].service: InferenceService/team-a/{name} does not exist, or its "
        "spec is invalid; requests skip it"
        for number, name in ((1, "gone"), (2, "broken"))
    )
    value, reason, message = accepted(statuses(a_route("embeds"), embeds)["assistant"])
    assert (value, reason) == ("False", "PoolingTarget")
    assert "spec.targets[0].service: InferenceService/team-a/embeds generates no" in message


@pytest.mark.parametrize(
    ("access", "publishing", "state"),
    [
        ({"tenants": ["team-a"]}, [GRANT], "Available"),
        ({"public": True}, [{"names": ["large"], "public": True}], "Available"),
        ({"tenants": ["team-a"]}, [], "TargetNotFound"),
        ({}, [GRANT], "TargetNotFound"),
        ({"tenants": ["team-c"]}, [GRANT], "TargetNotFound"),
    ],
)
def test_a_target_of_another_tenant_has_to_be_offered_as_gateways_demand_it(
    access: dict[str, Any], publishing: list[dict[str, Any]], state: str
) -> None:
    budgets = (a_budget("team-a"), a_budget("team-b", publishing=publishing))
    shared = a_target("team-b/large", spec={"access": access})
    status = statuses(a_route("team-b/large"), shared, budgets=budgets)["assistant"]
    assert [each.reason for each in status.targets] == [state]


def test_a_tenant_learns_nothing_of_services_that_it_may_not_use() -> None:
    route = a_route("team-b/secret")
    of_none, of_another = statuses(route), statuses(route, a_target("team-b/secret"))
    assert of_none == of_another
    assert accepted(of_none["assistant"])[1] == "TargetNotFound"
    assert "is not shared with TenantBudget/team-a" in accepted(of_none["assistant"])[2]


def test_a_service_of_the_tenant_keeps_its_name_and_so_does_the_older_route() -> None:
    newer, older = a_route("large", days=0), a_route("large", name="older", servedName="assistant")
    large = a_target("large")
    two = statuses(newer, older, large)
    assert accepted(two["older"])[1] == "Valid"
    value, reason, message = accepted(two["assistant"])
    assert (value, reason) == ("False", "NameConflict")
    assert message.partition(". This ends")[0] == (
        "metadata.name: assistant is also a name of ModelRoute/team-a/older, which gets the "
        "requests of TenantBudget/team-a at the gateway; choose another name"
    )
    namesake = a_target("chat", spec={"access": {"aliases": ["assistant"]}})
    for status in statuses(newer, older, large, namesake).values():
        assert "a name of InferenceService/team-a/chat, which gets" in accepted(status)[2]
    shared = {"access": {"aliases": ["assistant"], "public": True}}
    grant = {"names": ["assistant"], "public": True}
    budgets = (a_budget("team-a"), a_budget("team-b", publishing=[grant]))
    of_others = a_target("team-b/chat", spec=shared)
    status = statuses(older, large, of_others, budgets=budgets)["older"]
    assert accepted(status)[1] == "Valid", "what is their own comes first"


def test_a_name_that_the_budget_gives_to_other_namespaces_is_not_that_of_the_route() -> None:
    grant = {"names": ["assistant"], "namespaces": ["team-x"]}
    tenant = {"namespaces": ["team-a", "team-x"]}
    budget = a_budget("team-a", tenant=tenant, publishing=[grant])
    status = statuses(a_route("large"), a_target("large"), budgets=(budget,))["assistant"]
    assert accepted(status)[1] == "NameConflict"
    assert "belongs to other namespaces by spec.publishing" in accepted(status)[2]


@pytest.mark.parametrize(
    ("access", "publishing", "accepts", "words"),
    [
        ({"tenants": ["team-b"]}, [], None, "cannot be used by TenantBudget/team-b"),
        ({"public": True}, [], None, "cannot be used by other tenants"),
        ({"tenants": ["team-b"]}, [{"names": ["assistant"], "public": True}], None, ""),
        ({"tenants": ["team-b"]}, [{"names": ["assistant"], "public": True}], [], "TenantBudget"),
        ({"tenants": ["team-z"]}, [], None, ""),
    ],
)
def test_a_route_for_others_needs_a_grant_of_its_name(
    access: dict[str, Any], publishing: list[Any], accepts: list[str] | None, words: str
) -> None:
    budgets = (
        a_budget("team-a", publishing=publishing),
        a_budget("team-b", acceptedPublishers=accepts),
    )
    route = a_route("large", access=access)
    value, reason, message = accepted(
        statuses(route, a_target("large"), budgets=budgets)["assistant"]
    )
    assert (value, reason) == ("True", "NameNotPublished" if words else "Valid")
    assert words in message


@pytest.mark.parametrize(
    ("providers", "budget", "state", "words"),
    [
        ([a_provider()], {}, "Available", "1 of 1 target can answer now"),
        ([a_provider(tenants=["team-b"])], {}, "TargetNotFound", "does not list TenantBudget/"),
        ([replace(a_provider(), spec=None)], {}, "TargetNotFound", "does not exist, "),
        ([], {}, "TargetNotFound", "has no model Big; requests skip it"),
        (None, {}, "ProvidersDisabled", "gateway.providers.enabled is false"),
        (
            [a_provider(region="us")],
            {"dataResidency": ["eu"]},
            "DataResidency",
            "spec.dataResidency of TenantBudget/team-a",
        ),
        ([a_provider()], {"dataResidency": ["InCluster"]}, "DataResidency", "is skipped"),
        ([a_provider(region="eu")], {"dataResidency": ["eu"]}, "Available", "1 of 1"),
    ],
)
def test_a_model_of_a_provider_is_available_or_says_why_not(
    providers: list[ObservedProvider] | None, budget: dict[str, Any], state: str, words: str
) -> None:
    route = a_route(targets=[a_provider_target()])
    budgets = (a_budget("team-a", **budget),)
    status = statuses(route, budgets=budgets, providers=providers)["assistant"]
    assert [each.reason for each in status.targets] == [state]
    assert status.targets[0].provider == "acme/Big"
    value, reason, message = accepted(status)
    assert (value, reason) == (("True", "Valid") if state == "Available" else ("False", state))
    assert words in message


def test_a_model_that_a_provider_does_not_have_is_skipped() -> None:
    route = a_route("large", targets=[a_provider_target("big"), {"service": "large"}])
    status = statuses(route, a_target("large"), providers=[a_provider()])["assistant"]
    assert [each.reason for each in status.targets] == ["TargetNotFound", "Available"]
    assert "ModelProvider/acme does not exist" in accepted(status)[2]


def test_a_route_says_that_no_gateway_runs_or_that_its_spec_is_invalid() -> None:
    status = statuses(a_route("large"), a_target("large"), gateways=False)["assistant"]
    assert accepted(status)[:2] == ("True", "GatewayDisabled")
    invalid = replace(a_route("large"), spec=None, problem="spec.targets: Field required")
    status = statuses(invalid, a_route("large", name="other"))["assistant"]
    assert accepted(status) == (
        "False",
        "InvalidSpec",
        "spec.targets: Field required. This ends when the spec is edited.",
    )
    assert (status.targets, status.summary) == ((), "")


def test_a_route_that_raises_has_its_last_status_and_stops_no_other(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    last = ModelRouteStatus(summary="1/1")
    evil = replace(a_route("large", name="chat"), ref=Ref(EVIL, "chat"), status=last)
    monkeypatch.setattr(route_status, "function", Raising(route_status.function))
    both = statuses(evil, a_route("large"), a_target("large"))
    assert both["chat"] is last
    assert accepted(both["assistant"])[1] == "Valid"
