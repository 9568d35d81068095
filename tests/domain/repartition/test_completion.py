"""A plan is carried out when its services run on slices that are offered."""

from dataclasses import replace

from tessera.api.mig import Assignment
from tessera.api.pool_reasons import LayoutReady
from tessera.domain.hardware.gpu_layouts import SlicePlacement
from tessera.domain.repartition.rollout import advance_rollout
from tests.domain.repartition.pool_simulation import (
    PinnedBackend,
    PoolSimulation,
    SimService,
    placements,
)

SMALL = [f"1g.10gb@{start}" for start in range(7)]
SPEED = {"7g.80gb": 7.0, "1g.10gb": 1.0}


def half_moved() -> PoolSimulation:
    """A service whose replica is still on 7g.80gb, while notebooks hold all planned slices."""
    backend = PinnedBackend()
    layouts = {"n0": [placements("7g.80gb@0")], "n1": [placements(*SMALL)]}
    simulation = PoolSimulation(layouts, backend, backend)
    simulation.plan({"n0": [["7g.80gb@0"]], "n1": [SMALL]})
    assert simulation.status.target is not None
    services = (Assignment(service="team/chat", profile="1g.10gb", replicas=1),)
    target = simulation.status.target.model_copy(update={"services": services})
    simulation.status = simulation.status.model_copy(update={"target": target})
    chat = SimService("chat", "1g.10gb", 1, 1.0, SPEED)
    simulation.serve(chat, [("n0", 0, SlicePlacement(0, "7g.80gb"))])
    for start in range(7):
        simulation.foreign(f"notebook-{start}", "n1", 0, SlicePlacement(start, "1g.10gb"))
    return simulation


def test_a_pool_is_not_as_planned_while_others_hold_the_slices_that_a_service_moves_to() -> None:
    simulation = half_moved()
    actions = simulation.play()
    assert actions.verdict.reason is LayoutReady.UNMANAGED_POD
    assert actions.verdict.message == (
        "1 replica of team/chat not yet on 1g.10gb: slices for 1 more pod are held by "
        "Pod/other/notebook-0, Pod/other/notebook-1, Pod/other/notebook-2 and 4 more; delete those "
        "pods, wait for their end, or add a node"
    )
    del simulation.pods[next(ref for ref in simulation.pods if ref.namespace == "other")]
    assert simulation.play().verdict.reason is LayoutReady.AS_PLANNED


def test_a_pool_is_not_as_planned_while_a_node_does_not_offer_its_slices() -> None:
    simulation = half_moved()
    inputs = simulation.rollout_inputs()
    n0, n1 = inputs.nodes
    actions = advance_rollout(replace(inputs, nodes=[n0, replace(n1, allocatable={})]))
    assert actions.verdict.reason is LayoutReady.DEVICES_MISSING
    assert actions.verdict.message.startswith("Node/n1 has 7x 1g.10gb as planned and offers no ")


def test_a_service_whose_planned_slices_do_not_exist_is_short_of_them_at_once() -> None:
    simulation = half_moved()
    simulation.pods = {ref: pod for ref, pod in simulation.pods.items() if pod.service}
    simulation.nodes["n1"].gpus[0] = placements("7g.80gb@0")
    assert simulation.status.target is not None
    assignment = simulation.status.target.services
    simulation.plan({"n0": [["7g.80gb@0"]], "n1": [["7g.80gb@0"]]})
    target = simulation.status.target.model_copy(update={"services": assignment})
    simulation.status = simulation.status.model_copy(update={"target": target})
    actions = advance_rollout(simulation.rollout_inputs())
    assert actions.verdict.reason is LayoutReady.INSUFFICIENT_CAPACITY
    assert actions.verdict.message == (
        "1 replica of team/chat not yet on 1g.10gb: 1 more free slice of that profile needed; add "
        "a node, or lower spec.scaling.minReplicas"
    )
