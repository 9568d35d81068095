"""Where devices are too few, no tenant takes those of another."""

from collections import Counter
from dataclasses import replace
from typing import Any

from hypothesis import assume, given, settings
from hypothesis import strategies as st

from tessera.api.reasons import ScalingReason
from tessera.domain.explain.explain import explain
from tessera.domain.observed.snapshot import ObservedService, Pod, Ref, Workload
from tessera.domain.planning.plan import Plan
from tessera.domain.scaling.state import ScaleDecision
from tests.builders import (
    H100,
    a_budget,
    a_node,
    a_pod,
    a_pool,
    a_service,
    a_snapshot,
    a_spec,
    a_workload,
    plan_of,
)
from tests.properties import examples

DEVICES = 14
NODES = tuple(a_node(slices={"1g.10gb": 7}, name=f"a100-{index}") for index in range(2))
WEIGHTS = {"team-a": "1", "team-b": "1", "team-c": "3"}


def of_tenant(namespace: str, replicas: int, name: str = "chat") -> ObservedService:
    ref = Ref(namespace, name)
    return a_service(name, a_spec(replicas=replicas), ref=ref, uid=f"uid-{ref}")


def running(service: ObservedService, count: int) -> tuple[tuple[Pod, ...], Workload]:
    namespace, name = service.ref
    pods = tuple(
        replace(
            a_pod(node="a100-0", devices={"nvidia.com/mig-1g.10gb": 1}),
            ref=Ref(namespace, f"{name}-{index}"),
            uid=f"uid-{namespace}-{name}-{index}",
            service=service.ref,
        )
        for index in range(count)
    )
    workload = a_workload(count)
    return pods, replace(workload, ref=Ref(namespace, workload.ref.name), service=service.ref)


def plan_fleet(*wishes: tuple[ObservedService, int], **fields: Any) -> Plan:
    objects = [running(service, count) for service, count in wishes]
    budgets = tuple(
        a_budget(name, amount="100000", weight=weight) for name, weight in WEIGHTS.items()
    )
    return plan_of(
        a_snapshot(
            *(service for service, _ in wishes),
            **{
                "nodes": NODES,
                "budgets": budgets,
                "pods": tuple(pod for pods, _ in objects for pod in pods),
                "workloads": tuple(workload for _, workload in objects if workload.replicas),
                **fields,
            },
        )
    )


def scales(plan: Plan) -> dict[str, ScaleDecision]:
    return {ref.namespace: service_plan.scale for ref, service_plan in plan.service_plans.items()}


def test_a_crowd_gets_its_share_and_no_pod_of_it_waits_for_devices_of_others() -> None:
    plan = plan_fleet((of_tenant("team-a", 6), 6), (of_tenant("team-b", 1000), 0))
    decided = scales(plan)
    assert (decided["team-a"].replicas, decided["team-b"].replicas) == (6, 8)
    assert decided["team-b"].reason is ScalingReason.FAIR_SHARE
    assert decided["team-b"].message == (
        "AcceleratorPool/a100: 2 tenants desire more than 14 nvidia.com/mig-1g.10gb, so with "
        "weight 1 the service gets 8 of 1000 replicas. Add nodes, or raise spec.weight of the "
        "TenantBudget."
    )


def test_a_replica_that_restarts_gets_its_device_back() -> None:
    before = plan_fleet((of_tenant("team-a", 6), 5), (of_tenant("team-b", 1000), 8))
    assert scales(before)["team-a"].replicas == 6
    assert scales(before)["team-b"].replicas == 8


def test_a_tenant_alone_keeps_all_its_pods_waiting() -> None:
    plan = plan_fleet((of_tenant("team-a", 20), 14), (of_tenant("team-a", 5, "code"), 0))
    replicas = {ref.name: entry.scale.replicas for ref, entry in plan.service_plans.items()}
    assert replicas == {"chat": 20, "code": 5}


def test_namespaces_without_a_budget_are_one_tenant() -> None:
    plan = plan_fleet(
        (of_tenant("team-a", 7), 0), (of_tenant("other", 14), 0), (of_tenant("third", 14), 0)
    )
    decided = scales(plan)
    assert decided["team-a"].replicas == 7
    assert decided["other"].replicas + decided["third"].replicas == 7


@given(
    wanted=st.fixed_dictionaries({name: st.integers(0, 30) for name in WEIGHTS}),
    at_work=st.fixed_dictionaries({name: st.integers(0, 4) for name in WEIGHTS}),
)
@settings(max_examples=examples(60), deadline=None)
def test_no_tenant_gets_more_than_its_share_while_another_lacks_its_own(
    wanted: dict[str, int], at_work: dict[str, int]
) -> None:
    running_now = {name: min(count, wanted[name]) for name, count in at_work.items()}
    plan = plan_fleet(
        *((of_tenant(name, count), running_now[name]) for name, count in wanted.items())
    )
    replicas = Counter({name: scale.replicas for name, scale in scales(plan).items()})
    if sum(wanted.values()) <= DEVICES:
        assert replicas == Counter(wanted)
        return
    assume(sum(count > 0 for count in wanted.values()) > 1)
    assert replicas.total() == DEVICES
    for name, weight in WEIGHTS.items():
        assert replicas[name] >= running_now[name]
        if replicas[name] == wanted[name]:
            continue
        own = (replicas[name] + 1) / int(weight)
        for other, other_weight in WEIGHTS.items():
            new = replicas[other] > running_now[other]
            assert not new or (replicas[other] - 1) / int(other_weight) <= own


def test_new_services_choose_hardware_in_turns_of_their_tenants() -> None:
    crowd = [(of_tenant("team-a", 1, f"a{index}"), 0) for index in range(7)]
    plan = plan_fleet(
        *crowd,
        (of_tenant("team-b", 2), 0),
        pools=(a_pool("a100", "1.60"), a_pool("h100", "9.00")),
        nodes=(a_node(slices={"1g.10gb": 7}), a_node("h100", slices={"1g.10gb": 7}, product=H100)),
    )
    choice = plan.service_plans[Ref("team-b", "chat")].choice
    assert choice is not None
    assert choice.offer.pool == "a100"


def test_explain_says_the_share() -> None:
    service = of_tenant("team-c", 1)
    snapshot_plan = plan_fleet((of_tenant("team-a", 1), 0), (service, 0))
    decisions = explain(a_snapshot(service), snapshot_plan, service.ref)
    budget = next(decision for decision in decisions if decision.topic == "budget")
    assert ("share", "75% of scarce devices, weight 3 of 4") in budget.numbers
