"""The record of the spend: what a successor charges who knows only what was written."""

import json
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timedelta

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tessera.api.tenant_budget import TenantBudgetStatus
from tessera.domain.budget.budgets import BudgetView, build_budget_views
from tessera.domain.budget.meter import SpendMeter
from tessera.domain.budget.metering import metering_inputs
from tessera.domain.hardware.pools import discover
from tessera.domain.observed.snapshot import Budget, Pod
from tessera.domain.status.budget import MAX_NAMED_REPLICAS, budget_status
from tessera.resources.manifest import wire_format
from tests.builders import NOW, a_budget, a_node, a_pod, a_pool, a_snapshot
from tests.properties import examples

SLICE, WHOLE = {"nvidia.com/mig-1g.10gb": 1}, {"nvidia.com/gpu": 1}
POOL = a_pool()
NODES = (a_node(slices={"1g.10gb": 70}, partitioned=10),)
NAME = "a-service-with-quite-a-long-name-{index:05}"


def some_pods(count: int, bound: Sequence[int]) -> tuple[Pod, ...]:
    """Return pods that were bound so many seconds before now, in turn."""
    return tuple(
        a_pod(
            NAME.format(index=index),
            uid=f"{index:08}-0000-4000-8000-000000000000",
            node="a100-0",
            devices=WHOLE if index % 3 else SLICE,
            bound=NOW - timedelta(seconds=bound[index % len(bound)]),
        )
        for index in range(count)
    )


def view_of(
    budget: Budget, pods: Sequence[Pod], at: datetime, meter: SpendMeter | None = None
) -> BudgetView:
    snapshot = a_snapshot(at=at, pools=(POOL,), nodes=NODES, pods=tuple(pods), budgets=(budget,))
    views = discover(snapshot.pools, NODES, at.date())
    meters = {} if meter is None else {budget.name: meter}
    (view,) = build_budget_views(
        snapshot, metering_inputs(snapshot.pods, views), meters=meters, last_seen={}
    )
    return view


def recorded(view: BudgetView) -> Budget:
    """Return the budget as a successor reads it."""
    assert view.state is not None
    unrecorded = replace(view, budget=replace(view.budget, status=TenantBudgetStatus()))
    written = json.dumps(wire_format(budget_status(unrecorded, view.state.at)))
    return replace(view.budget, status=TenantBudgetStatus.model_validate_json(written))


def spent(view: BudgetView) -> int:
    assert view.state is not None
    return view.state.current_windows[0].spent


@given(
    count=st.one_of(
        st.integers(0, 5), st.integers(MAX_NAMED_REPLICAS - 1, MAX_NAMED_REPLICAS + 50)
    ),
    bound=st.lists(st.integers(0, 7200), min_size=1, max_size=5),
    late=st.integers(0, 5),
    gap=st.integers(0, 600),
    removed=st.integers(0, 5),
    new=st.integers(0, 3),
)
@settings(max_examples=examples(60), deadline=None, suppress_health_check=list(HealthCheck))
def test_a_successor_charges_from_the_record_what_the_predecessor_would_have(
    count: int, bound: list[int], late: int, gap: int, removed: int, new: int
) -> None:
    """Equal to the nano-unit; a replica that went meanwhile within its weight's last digit."""
    pods = some_pods(count, bound)
    before = view_of(a_budget(amount="100000"), pods, NOW - timedelta(seconds=60))
    seen = view_of(before.budget, pods, NOW + timedelta(seconds=late), before.meter)
    assert seen.state is not None
    later = NOW + timedelta(seconds=late + gap)
    added = [
        replace(pod, uid=f"new-{pod.uid}", bound=NOW + timedelta(seconds=late + gap / 2))
        for pod in some_pods(new, [0])
    ]
    remaining = [*pods[min(removed, count) :], *added]
    predecessor = view_of(seen.budget, remaining, later, seen.meter)
    successor = view_of(recorded(seen), remaining, later)
    assert abs(spent(successor) - spent(predecessor)) <= min(removed, count)
    assert len(successor.meter.running) == len(predecessor.meter.running)


@pytest.mark.parametrize("count", [4_000, 20_000])
def test_the_record_of_any_number_of_replicas_stays_below_a_quarter_of_a_mebibyte(
    count: int,
) -> None:
    view = view_of(a_budget(amount="100000"), some_pods(count, [10, 3600]), NOW)
    status = recorded(view).status
    assert len(json.dumps(wire_format(status))) < 2**18 / 2
    assert status.spend is not None
    replicas = sum(group.replicas for group in status.spend.running_groups)
    assert len(status.spend.running) + replicas == count
