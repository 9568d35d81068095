"""Who answers the requests of a route, and what that saves, in words."""

from dataclasses import replace
from typing import Any

from tessera.api.model_route import ModelRouteSpec
from tessera.domain.explain.route import explain_route
from tessera.domain.observed.routes import ObservedRoute
from tessera.domain.reporting.decision import Decision
from tessera.domain.routes.savings import RouteUse
from tests.domain.status.test_routes import a_route, a_target, statuses

QUICK = {"name": "quick", "service": "small", "when": {"maxScore": 2}}
USE = RouteUse(
    requests={"quick": 60, "large": 40},
    fallbacks=1,
    currency="USD",
    tokens={"quick": 30e6, "large": 5e6},
    charges={"quick": 6e9, "large": 4e9},
    at_last=28e9,
    failed=1e9,
)


def an_observed_route(*targets: dict[str, Any], ready: int = 1, **spec: Any) -> ObservedRoute:
    route = a_route(targets=[*(targets or (QUICK, {"service": "large"}))], **spec)
    status = statuses(route, a_target("small"), a_target("large", ready))["assistant"]
    return replace(route, status=status)


def decisions_of(route: ObservedRoute, *uses: RouteUse) -> dict[str, Decision]:
    return {each.topic: each for each in explain_route(route, uses)}


def test_a_route_says_what_each_target_answered_and_cost() -> None:
    accepted = decisions_of(an_observed_route(ready=0), USE)["accepted"]
    assert accepted.reason == "Valid"
    assert dict(accepted.numbers) == {
        "quick": "team-a/small: Available, 60.0% of the requests, 0.2000 USD a million tokens",
        "large": (
            "team-a/large: NoReadyReplica, 40.0% of the requests, 0.8000 USD a million tokens"
        ),
        "fallback": "1.0% of the requests",
    }
    assert dict(decisions_of(an_observed_route(ready=0))["accepted"].numbers)["quick"] == (
        "team-a/small: Available"
    )


def test_the_heuristic_of_the_source_sends_two_signals_to_the_large_model() -> None:
    selection = decisions_of(an_observed_route())["selection"]
    assert dict(selection.numbers) == {"score 1 to 2": "quick", "score 3 to 5": "large"}
    three: list[dict[str, Any]] = [
        {**QUICK, "name": "a", "when": {"maxScore": 1}},
        QUICK,
        {"service": "large"},
    ]
    assert dict(decisions_of(an_observed_route(*three))["selection"].numbers) == {
        "score 1": "a",
        "score 2": "quick",
        "score 3 to 5": "large",
    }
    weights: list[dict[str, Any]] = [{"service": "small", "weight": 9}, {"service": "large"}]
    selection = decisions_of(an_observed_route(*weights, select="Weights"))["selection"]
    assert dict(selection.numbers) == {
        "small": "90% of the conversations",
        "large": "10% of the conversations",
    }


def test_a_target_that_is_skipped_is_named_with_the_one_that_answers_instead() -> None:
    absent = {"name": "nope", "service": "nope", "when": {"maxScore": 1}}
    targets: list[dict[str, Any]] = [absent, QUICK, {"service": "large"}]

    def answers(**spec: Any) -> dict[str, str]:
        return dict(decisions_of(an_observed_route(*targets, ready=0, **spec))["selection"].numbers)

    assert answers() == {
        "score 1": "nope, skipped (TargetNotFound): quick answers",
        "score 2": "quick",
        "score 3 to 5": "large, skipped (NoReadyReplica): quick answers",
    }
    assert answers(fallback=["Context"])["score 3 to 5"] == "large (NoReadyReplica)"
    targets = [{"service": "nope", "weight": 9}, {"service": "large"}]
    assert answers(select="Weights") == {
        "nope": "90% of the conversations, skipped (TargetNotFound): no target answers",
        "large": "10% of the conversations, skipped (NoReadyReplica): no target answers",
    }


def test_a_route_says_what_it_saved_and_what_other_shares_would() -> None:
    saving = decisions_of(an_observed_route(), USE)["saving"]
    assert (saving.reason, saving.message) == (
        "Saves",
        "in the last hour a million tokens cost 0.3143 USD, 60.7% less than 0.8000 for the same at "
        "large, the last target; calls without an answer took 5.6% of the saving",
    )
    assert dict(saving.numbers)["60% at quick"] == "0.4400 USD, 45.0% less"
    dear = replace(USE, charges={"quick": 0.0, "large": 30e9}, failed=0.0)
    saving = decisions_of(an_observed_route(), dear)["saving"]
    assert saving.reason == "SavesNothing"
    assert "0.8571 USD, 7.1% more than 0.8000 for the same at large, the last target" in (
        saving.message
    )
    unknown = replace(USE, tokens={}, charges={}, at_last=0.0)
    assert decisions_of(an_observed_route(), unknown)["saving"].reason == "NotKnown"
    assert "saving" not in decisions_of(an_observed_route(), replace(USE, currency=None))


def test_a_route_that_is_invalid_or_new_says_so() -> None:
    route = replace(an_observed_route(), spec=None)
    assert list(decisions_of(route, USE)) == ["accepted"]
    new = replace(a_route("small"), spec=ModelRouteSpec.model_validate({"targets": [QUICK]}))
    assert decisions_of(new)["accepted"].message == "the operator has not reconciled it yet"
