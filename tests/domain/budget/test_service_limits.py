"""Limits of basis Cost that hold for single services, beside those of the tenant."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from tessera.api.budget_reasons import WithinBudget
from tessera.api.inference_service import InferenceServiceSpec
from tessera.api.reasons import ScalingReason
from tessera.domain.budget.budgets import BudgetView
from tessera.domain.budget.meter import SpendRecord
from tessera.domain.money import NANO
from tessera.domain.observed.snapshot import Budget, ObservedService, Ref
from tessera.domain.planning.plan import PlanMemory
from tessera.domain.status.budget import budget_status
from tessera.resources.spend_records import parse_spend_records, spend_records_manifest
from tests.builders import NOW, a_budget, a_node, a_pod, a_pool, a_service, a_snapshot, a_spec
from tests.builders import plan_of as planned
from tests.domain.variant_fleet import VariantFleet

CHAT, CODE = Ref("team-a", "chat"), Ref("team-a", "code")
POOL = a_pool("paid", "1.00")
WIDE = {"window": "Month", "amount": "100000"}


def for_service(amount: str, service: str = "*", window: str = "Month") -> dict[str, Any]:
    return {"window": window, "amount": amount, "for": {"service": service}}


def beyond_minimum(count: int) -> InferenceServiceSpec:
    return a_spec(replicas=count, scaling={"minReplicas": 0})


def a_fleet(*limits: Mapping[str, Any], chat: int = 3, code: int = 3) -> VariantFleet:
    return VariantFleet(
        service=a_service("chat", beyond_minimum(chat)),
        others=[a_service("code", beyond_minimum(code))],
        pools=(POOL,),
        nodes=[a_node("paid", whole=8)],
        fields={"budgets": (a_budget(limits=limits),)},
    )


def replicas(fleet: VariantFleet) -> tuple[int, int]:
    return fleet.counts(CHAT)["paid"], fleet.counts(CODE)["paid"]


def view_of(fleet: VariantFleet, memory: PlanMemory | None = None) -> BudgetView:
    (view,) = planned(fleet.snapshot(), fleet.config, memory or fleet.memory).budgets
    return view


def spent(view: BudgetView) -> dict[str, int]:
    return {window.period.key: window.spent for window in view.state.current_windows}


def services(fleet: VariantFleet, *refs: ObservedService) -> None:
    fleet.service, *fleet.others = refs


@pytest.mark.parametrize(
    ("limits", "expected"),
    [
        ([WIDE], (3, 3)),
        ([WIDE, for_service("0.25", "team-a/chat", "Hour")], (1, 3)),
        ([for_service("0.25", "team-a/chat", "Hour")], (1, 3)),
        ([WIDE, for_service("0.25", window="Hour")], (1, 1)),
        ([for_service("0"), WIDE], (0, 0)),
        ([WIDE, for_service("0.25", "team-a/none", "Hour")], (3, 3)),
        ([{**WIDE, "window": "Hour", "amount": "1"}, for_service("100", "team-a/chat")], (3, 2)),
        ([WIDE, for_service("0.25", window="Hour") | {"tier": "Reserved"}], (1, 1)),
        ([WIDE, for_service("0.25", window="Hour") | {"tier": "OnDemand"}], (3, 3)),
    ],
    ids=[
        *("none", "one", "one alone", "each", "nothing", "another", "both hold"),
        *("of its tier", "of another tier"),
    ],
)
def test_the_scale_up_of_a_service_ends_where_its_own_limit_or_that_of_the_tenant_ends(
    limits: Sequence[Mapping[str, Any]], expected: tuple[int, int]
) -> None:
    # Ten minutes of a replica cost a sixth of a unit.
    fleet = a_fleet(*limits)
    fleet.run(120)
    assert replicas(fleet) == expected


def test_a_refusal_names_the_limit_of_the_service_and_others_go_on() -> None:
    fleet = a_fleet(WIDE, for_service("0.25", "team-a/chat", "Hour"))
    chat = fleet.run(120)
    assert chat.scale.reason is ScalingReason.BUDGET_EXHAUSTED
    assert "hour limit of service team-a/chat 0.2500 USD" in chat.scale.message
    assert "raise spec.limits[1].amount" in chat.scale.message
    assert fleet.plans[CODE].scale.reason is not ScalingReason.BUDGET_EXHAUSTED


def test_replicas_within_min_replicas_are_never_removed() -> None:
    fleet = a_fleet(WIDE, chat=2)
    fleet.service = replace(fleet.service, spec=a_spec(scaling={"minReplicas": 2}))
    fleet.run(120)
    fleet.fields = {"budgets": (a_budget(limits=[WIDE, for_service("0", "team-a/chat")]),)}
    fleet.run(120)
    assert replicas(fleet) == (2, 3)
    assert view_of(fleet).within_budget.reason is WithinBudget.BUDGET_EXHAUSTED


def test_each_service_spends_of_its_own_limit_and_all_of_that_of_the_tenant() -> None:
    fleet = a_fleet(WIDE, for_service("50"), for_service("20", "team-a/code"), chat=1, code=2)
    fleet.run(1800)
    view = view_of(fleet)
    amounts = spent(view)
    assert set(amounts) == {"Month", "Month/team-a/chat", "Month/team-a/code"}
    assert amounts["Month"] == amounts["Month/team-a/chat"] + amounts["Month/team-a/code"]
    assert amounts["Month/team-a/code"] == pytest.approx(NANO, rel=0.1)
    assert amounts["Month/team-a/chat"] == pytest.approx(NANO / 2, rel=0.1)
    wide, each, code = budget_status(view, fleet.snapshot().at, must_record=True).limits
    assert (wide.name, wide.members, wide.nearest) == ("cost-month", None, ())
    assert (each.name, each.members) == ("cost-month-service", 2)
    assert [account.member for account in each.nearest] == ["team-a/code", "team-a/chat"]
    assert each.spent == each.nearest[0].spent
    assert (code.name, code.members, code.nearest) == ("cost-month-service-team-a/code", None, ())
    assert code.spent == each.spent


def test_the_status_has_the_five_services_nearest_to_their_limit() -> None:
    refs = [f"s{number}" for number in range(7)]
    pods = [
        a_pod(f"{name}-{index}", service=name, node="paid-0", devices={"nvidia.com/gpu": 1})
        for number, name in enumerate(refs)
        for index in range(number)
    ]
    snapshot = a_snapshot(
        *(a_service(name) for name in refs),
        pods=tuple(replace(pod, bound=NOW - timedelta(hours=1)) for pod in pods),
        pools=(POOL,),
        nodes=(a_node("paid", whole=32),),
        budgets=(a_budget(limits=[for_service("100000")]),),
    )
    (view,) = planned(snapshot).budgets
    (limit,) = budget_status(view, NOW).limits
    assert limit.members == 7
    assert [account.member for account in limit.nearest] == [
        f"team-a/s{number}" for number in (6, 5, 4, 3, 2)
    ]
    assert [account.spent for account in limit.nearest] == [6, 5, 4, 3, 2]
    assert view.within_budget.reason is WithinBudget.WITHIN_LIMITS


def recorded(fleet: VariantFleet) -> Budget:
    """Return the budget as a successor reads it."""
    view = view_of(fleet)
    return replace(view.budget, status=budget_status(view, fleet.snapshot().at, must_record=True))


def test_a_successor_goes_on_from_the_record_also_of_replicas_that_went_meanwhile() -> None:
    fleet = a_fleet(WIDE, for_service("50"), chat=1, code=2)
    fleet.run(1800)
    fleet.fields = {"budgets": (recorded(fleet),)}
    fleet.pods = {ref: pod for ref, pod in fleet.pods.items() if pod.service != CODE}
    fleet.now += timedelta(seconds=600)
    predecessor, successor = view_of(fleet), view_of(fleet, PlanMemory())
    assert spent(successor) == spent(predecessor)
    assert spent(successor)["Month/team-a/code"] > NANO


def test_a_service_that_is_created_again_goes_on_from_what_it_spent() -> None:
    fleet = a_fleet(WIDE, for_service("50"), chat=1, code=1)
    fleet.run(1800)
    before = spent(view_of(fleet))["Month/team-a/code"]
    services(fleet, fleet.service)
    fleet.pods = {ref: pod for ref, pod in fleet.pods.items() if pod.service != CODE}
    fleet.workloads = {ref: each for ref, each in fleet.workloads.items() if each.service != CODE}
    fleet.run(600)
    fleet.fields = {"budgets": (recorded(fleet),)}
    fleet.memory = PlanMemory()
    services(fleet, fleet.service, a_service("code", beyond_minimum(1)))
    assert spent(view_of(fleet))["Month/team-a/code"] >= before


def test_what_single_services_spent_is_unknown_where_the_status_is_lost() -> None:
    fleet = a_fleet(WIDE, for_service("50"), chat=1, code=1)
    fleet.run(1800)
    meter = view_of(fleet).meter
    written = spend_records_manifest(
        "tessera", {"team-a": SpendRecord(currency="USD", meter=meter)}, NOW
    )
    assert "team-a/chat" not in written.body["data"]["team-a"]
    memory = PlanMemory(spend_records=parse_spend_records(written.body["data"]))
    restored = view_of(fleet, memory)
    limits = {window.period.key: window.limit for window in restored.state.current_windows}
    assert limits["Month"] == 100_000 * NANO
    assert limits["Month/team-a/chat"] == 0, "spec.onSpendUnknown.allowUpTo"
    assert restored.within_budget.reason is WithinBudget.SPEND_UNKNOWN
    status = budget_status(restored, fleet.snapshot().at, must_record=True)
    fleet.fields = {"budgets": (replace(restored.budget, status=status),)}
    again = view_of(fleet, PlanMemory())
    assert again.within_budget == restored.within_budget


def test_a_pod_that_bears_the_name_of_a_service_alone_is_not_its_cost() -> None:
    fleet = a_fleet(WIDE, for_service("50"), chat=1, code=0)
    fleet.run(600)
    alien = a_pod("alien", node="paid-0", devices={"nvidia.com/gpu": 1})
    alien = replace(alien, service=Ref("team-a", ""), bound=NOW)
    fleet.pods[alien.ref] = alien
    fleet.run(600)
    amounts = spent(view_of(fleet))
    assert amounts["Month"] > amounts["Month/team-a/chat"] + amounts["Month/team-a/code"]
