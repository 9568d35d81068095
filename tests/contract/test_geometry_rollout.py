"""Every backend in a rollout, on an unused node."""

from dataclasses import replace
from datetime import timedelta

import pytest

from tessera.api.mig import GpuTarget, Mig, MigPlan, MigStatus, NodeTarget
from tessera.api.pool_reasons import LayoutReady
from tessera.domain.hardware.gpu_layouts import Layout, geometry
from tessera.domain.repartition.actions import PoolActions
from tessera.domain.repartition.rollout import RolloutInputs, advance_rollout
from tests.builders import a_pool
from tests.contract.geometry_backends import (
    BACKENDS,
    HALVES,
    MIXED,
    SMALL,
    BackendAndNode,
    a_backend_and_node,
)


def a_plan(*layouts: Layout) -> MigPlan:
    gpus = tuple(
        GpuTarget(
            gpu=at, slices=tuple(f"{placement.profile}@{placement.start}" for placement in layout)
        )
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


def roll_out(
    backend_and_node: BackendAndNode, status: MigStatus, cycles: int = 200
) -> tuple[PoolActions, MigStatus, int]:
    """Run cycles to the end; return the last actions, the status and the number of writes."""
    backend, node = backend_and_node
    tainted, writes = False, 0
    for _ in range(cycles):
        pool = a_pool()
        pool = replace(pool, status=pool.status.model_copy(update={"mig": status}))
        mig_node = replace(node.observed(pool), tainted=tainted)
        actions = advance_rollout(
            RolloutInputs(
                pool="a100",
                mig=Mig(backend="Agent" if node.agent_partitions else "MigManager"),
                status=status,
                nodes=(mig_node,),
                services=(),
                backend=backend,
                own_pods=frozenset(),
                at=node.at,
            )
        )
        status = actions.status or status
        tainted = "a100-0" in actions.tainted_nodes
        if actions.verdict.reason is LayoutReady.AS_PLANNED and not actions.requests:
            break
        for request in actions.requests.values():
            for write in node.writes(request):
                write()
                writes += 1
        node.pass_time()
    return actions, status, writes


@pytest.mark.parametrize("name", BACKENDS)
def test_a_node_becomes_as_planned_and_then_nothing_is_written_any_more(name: str) -> None:
    backend_and_node = a_backend_and_node(name, HALVES, SMALL)
    actions, status, _ = roll_out(backend_and_node, MigStatus(target=a_plan(MIXED, HALVES)))
    assert actions.verdict.reason is LayoutReady.AS_PLANNED
    assert not actions.tainted_nodes
    layouts = backend_and_node[1].layouts()
    assert sorted(map(geometry, layouts.values())) == sorted(map(geometry, (MIXED, HALVES)))
    backend_and_node[1].now += timedelta(hours=1).total_seconds()
    _, _, writes = roll_out(backend_and_node, status)
    assert writes == 0
