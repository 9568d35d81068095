"""Every backend under a rollout, on a node that nobody uses."""

from dataclasses import replace
from datetime import timedelta

import pytest

from tessera.api.mig import GpuTarget, Mig, MigPlan, MigStatus, NodeTarget
from tessera.api.reasons import LayoutReady
from tessera.domain.mig.layouts import Layout, geometry
from tessera.domain.repartition.actions import PoolActions
from tessera.domain.repartition.rollout import RolloutInputs, advance_rollout
from tests.builders import a_pool
from tests.contract.geometry_sides import HALVES, MIXED, SIDES, SMALL, Side, a_side


def a_plan(*layouts: Layout) -> MigPlan:
    gpus = tuple(
        GpuTarget(gpu=at, slices=tuple(f"{spot.profile}@{spot.start}" for spot in layout))
        for at, layout in enumerate(layouts)
    )
    return MigPlan.model_validate(
        {
            "name": "one",
            "at": "2026-11-20T12:00:00Z",
            "gpusBefore": 2,
            "gpusAfter": 2,
            "perHourBefore": "4",
            "perHourAfter": "4",
            "lowerBound": "4",
            "gap": "0",
            "nodes": [NodeTarget(node="a100-0", gpus=gpus)],
        }
    )


def rolled_out(
    side: Side, status: MigStatus, turns: int = 200
) -> tuple[PoolActions, MigStatus, int]:
    """The orders of the last turn, the status, and how many writes it took."""
    backend, far = side
    tainted, writes = False, 0
    for _ in range(turns):
        pool = a_pool()
        pool = replace(pool, status=pool.status.model_copy(update={"mig": status}))
        ground = replace(far.ground(pool), tainted=tainted)
        orders = advance_rollout(
            RolloutInputs(
                pool="a100",
                mig=Mig(backend="Agent" if far.cuts else "MigManager"),
                status=status,
                nodes=(ground,),
                services=(),
                backend=backend,
                own_pods=frozenset(),
                at=far.at,
            )
        )
        status = orders.status or status
        tainted = "a100-0" in orders.tainted_nodes
        if orders.verdict.reason is LayoutReady.AS_PLANNED and not orders.requests:
            break
        for ask in orders.requests.values():
            for write in far.writes(ask):
                write()
                writes += 1
        far.pass_time()
    return orders, status, writes


@pytest.mark.parametrize("name", SIDES)
def test_a_node_becomes_as_planned_and_then_nothing_is_written_any_more(name: str) -> None:
    side = a_side(name, HALVES, SMALL)
    orders, status, _ = rolled_out(side, MigStatus(target=a_plan(MIXED, HALVES)))
    assert orders.verdict.reason is LayoutReady.AS_PLANNED
    assert not orders.tainted_nodes
    got = side[1].layouts()
    assert sorted(map(geometry, got.values())) == sorted(map(geometry, (MIXED, HALVES)))
    side[1].now += timedelta(hours=1).total_seconds()
    _, _, writes = rolled_out(side, status)
    assert writes == 0
