"""A planned layout is carried out: evictions, requests to the backend, messages."""

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from tessera.api.mig import MaintenanceWindow, Mig, Unit
from tessera.api.pool_reasons import LayoutReady
from tessera.api.ref import Ref
from tessera.domain.hardware.gpu_layouts import SlicePlacement
from tessera.domain.mig.layout_changes import repartitions
from tessera.domain.repartition.actions import PoolActions
from tessera.domain.repartition.rollout import MAX_ATTEMPTS, RolloutInputs, advance_rollout
from tests.domain.repartition.pool_simulation import (
    START,
    PinnedBackend,
    PoolSimulation,
    SimService,
    WholeGpuBackend,
    placements,
)
from tests.mig_builders import a_gpu

HALF, OTHER = SlicePlacement(0, "3g.40gb"), SlicePlacement(4, "3g.40gb")
SPEED = {"3g.40gb": 3.0, "1g.10gb": 1.0, "7g.80gb": 7.0, "4g.40gb": 3.5}
HALVES, SEVENTHS = ["3g.40gb@0", "3g.40gb@4"], [f"1g.10gb@{at}" for at in range(7)]


def chat(
    replicas: int = 1, floor: float = 3.0, *, downtime: bool = False, protected: bool = False
) -> SimService:
    return SimService("chat", "3g.40gb", replicas, floor, SPEED, downtime, protected)


def a_simulation(
    *nodes: Sequence[str],
    backend: PinnedBackend | WholeGpuBackend | None = None,
    mig: Mig | None = None,
    target: Sequence[Sequence[str]] | None = None,
) -> PoolSimulation:
    """Nodes of one GPU."""
    used_backend = backend or PinnedBackend()
    names = [f"n{index}" for index in range(len(nodes))]
    layouts = {name: [placements(*tiles)] for name, tiles in zip(names, nodes, strict=True)}
    simulation = PoolSimulation(layouts, used_backend, used_backend, mig=mig)
    if target is not None:
        simulation.plan({name: [slices] for name, slices in zip(names, target, strict=True)})
    return simulation


def inputs_of(simulation: PoolSimulation) -> RolloutInputs:
    return simulation.rollout_inputs()


def play_until(simulation: PoolSimulation, phase: str, ticks: int = 60) -> PoolActions:
    """Play until the first unit is in this phase."""
    for _ in range(ticks):
        actions, _ = simulation.reconcile()
        if actions.status and [unit.phase for unit in actions.status.units][:1] == [phase]:
            return actions
        simulation.tick()
    raise AssertionError(actions.verdict)


def reconcile_for(simulation: PoolSimulation, span: timedelta) -> None:
    end = simulation.at + span
    while simulation.at < end:
        simulation.reconcile()
        simulation.tick()


def test_a_pool_without_a_plan_is_left_alone() -> None:
    actions = advance_rollout(inputs_of(a_simulation(HALVES)))
    assert (actions.verdict.reason, actions.tainted_nodes, actions.requests) == (
        LayoutReady.PLANNING,
        frozenset(),
        {},
    )


def test_a_pool_that_is_as_planned_gets_no_actions() -> None:
    simulation = a_simulation(HALVES, target=[HALVES])
    simulation.serve(chat(), [("n0", 0, HALF)])
    actions = advance_rollout(inputs_of(simulation))
    assert actions.verdict.reason is LayoutReady.AS_PLANNED
    assert [*actions.tainted_nodes, *actions.displaced, *actions.evictions, *actions.requests] == []
    assert actions.verdict.message == "planned layout on 1 of 1 GPU"


def test_an_idle_gpu_is_tainted_first_and_then_partitioned() -> None:
    simulation = a_simulation(SEVENTHS, target=[HALVES])
    first, _ = simulation.reconcile()
    assert first.tainted_nodes == {"n0"}
    assert not first.requests
    simulation.tick()
    second, _ = simulation.reconcile()
    assert list(second.requests) == ["n0"]
    assert simulation.play().verdict.reason is LayoutReady.AS_PLANNED
    assert simulation.layouts() == {"n0": [HALVES]}
    assert not simulation.nodes["n0"].tainted


def test_units_begin_in_the_order_that_a_plan_without_a_cluster_shows() -> None:
    target = [SEVENTHS, SEVENTHS, SEVENTHS, HALVES, HALVES]
    simulation = a_simulation(*[HALVES] * 5, target=target)
    simulation.serve(chat(3), [("n0", 0, HALF), ("n0", 0, OTHER), ("n1", 0, OTHER)])
    begun: dict[str, None] = {}
    for _ in range(200):
        actions, _ = simulation.reconcile()
        begun |= dict.fromkeys(unit.node for unit in (actions.status or simulation.status).units)
        simulation.tick()
    assert actions.verdict.reason is LayoutReady.AS_PLANNED
    before = (
        a_gpu("n0", "3g.40gb@0=chat", "3g.40gb@4=chat"),
        a_gpu("n1", "3g.40gb@0", "3g.40gb@4=chat"),
        a_gpu("n2", "3g.40gb@0", "3g.40gb@4"),
    )
    shown = repartitions(before, [a_gpu(gpu.name, *SEVENTHS) for gpu in before])
    assert [step.gpu for step in shown] == list(begun) == ["n2", "n1", "n0"]


def test_a_replica_leaves_only_when_another_is_ready() -> None:
    simulation = a_simulation(HALVES, HALVES, target=[["4g.40gb@0", "3g.40gb@4"], HALVES])
    simulation.serve(chat(), [("n0", 0, HALF)])
    announced, _ = simulation.reconcile()
    assert (len(announced.displaced), announced.draining) == (1, frozenset())
    actions = simulation.play()
    assert actions.verdict.reason is LayoutReady.AS_PLANNED
    assert (simulation.ready_capacity()["chat"], simulation.evictions) == (3.0, 1)


def test_the_neighbour_of_a_slice_that_goes_stays_where_the_backend_can_do_that() -> None:
    simulation = a_simulation(HALVES, HALVES, target=[["4g.40gb@0", "3g.40gb@4"], HALVES])
    simulation.serve(chat(), [("n0", 0, OTHER)])
    actions, _ = simulation.reconcile()
    assert actions.displaced == frozenset()
    simulation.play()
    assert simulation.evictions == 0


@pytest.mark.parametrize("knows", [False, True])
def test_without_that_every_replica_of_the_unit_leaves(knows: bool) -> None:
    backend = WholeGpuBackend(knows_pods=knows)
    simulation = a_simulation(
        HALVES, HALVES, HALVES, backend=backend, target=[["4g.40gb@0", "3g.40gb@4"], HALVES, HALVES]
    )
    simulation.serve(chat(2), [("n0", 0, HALF), ("n0", 0, OTHER)])
    actions, _ = simulation.reconcile()
    assert len(actions.displaced) == 2
    assert simulation.play().verdict.reason is LayoutReady.AS_PLANNED
    assert simulation.evictions == 2


def test_without_surge_capacity_nothing_begins_and_the_message_says_what_would_help() -> None:
    simulation = a_simulation(HALVES, target=[SEVENTHS])
    simulation.serve(chat(), [("n0", 0, HALF)])
    actions, _ = simulation.reconcile()
    assert (actions.verdict.reason, actions.tainted_nodes) == (
        LayoutReady.NO_SURGE_CAPACITY,
        frozenset(),
    )
    message = actions.verdict.message
    assert message.startswith(
        "GPU 0 of Node/n0: draining team/chat-1 needs 1 more free 3g.40gb slice"
    )
    assert "team/chat falls below minReplicas" in message
    assert "spec.scaling.minReplicas" in message
    assert "tessera.dev/allow-downtime=true" in message


def test_a_service_may_allow_to_fall_below_its_minimum() -> None:
    simulation = a_simulation(HALVES, target=[["4g.40gb@0", "3g.40gb@4"]])
    simulation.serve(chat(downtime=True), [("n0", 0, HALF)])
    assert simulation.play().verdict.reason is LayoutReady.AS_PLANNED
    assert simulation.ready_capacity() == {"chat": 3.0}


def test_a_service_above_its_minimum_gives_up_a_replica_without_surge_capacity() -> None:
    simulation = a_simulation(HALVES, target=[["4g.40gb@0", "3g.40gb@4"]])
    simulation.serve(chat(2), [("n0", 0, HALF), ("n0", 0, OTHER)])
    assert simulation.play().verdict.reason is LayoutReady.AS_PLANNED
    assert simulation.ready_capacity() == {"chat": 3.0}


def test_in_a_pool_of_one_node_replacements_come_before_the_taint() -> None:
    simulation = PoolSimulation(
        {"n0": [placements(*HALVES), placements(*HALVES)]}, backend := PinnedBackend(), backend
    )
    simulation.serve(chat(), [("n0", 0, HALF)])
    simulation.plan({"n0": [["4g.40gb@0", "3g.40gb@4"], HALVES]})
    actions, _ = simulation.reconcile()
    assert (len(actions.displaced), actions.tainted_nodes) == (1, frozenset())
    assert "slices of the same node" in actions.verdict.message
    assert simulation.play().verdict.reason is LayoutReady.AS_PLANNED
    assert simulation.ready_capacity() == {"chat": 3.0}


def test_a_unit_to_which_other_replicas_come_gives_up_and_says_how_many_left() -> None:
    simulation = a_simulation(HALVES, HALVES, target=[SEVENTHS, HALVES])
    simulation.tolerant = True
    simulation.serve(chat(), [("n0", 0, HALF)])
    simulation.serve(SimService("mail", "3g.40gb", 1, 3.0, SPEED), [("n1", 0, HALF)])
    simulation.reconcile()
    simulation.foreign("notebook", "n1", 0, OTHER)
    reconcile_for(simulation, timedelta(minutes=9))
    actions, _ = simulation.reconcile()
    assert simulation.evictions <= 7
    assert actions.verdict.reason is LayoutReady.NO_SURGE_CAPACITY
    assert "6 replicas left its 2 slices and others started there" in actions.verdict.message


def test_where_two_units_wait_for_each_other_an_idle_gpu_gets_a_temporary_layout() -> None:
    small, other = ["3g.40gb@0", "2g.20gb@4"], ["2g.20gb@0", "3g.40gb@4"]
    simulation = a_simulation(["7g.80gb@0"], small, target=[["7g.80gb@0"], other])
    simulation.serve(chat(), [("n1", 0, HALF)])
    actions = play_until(simulation, "Draining")
    assert actions.status
    unit = actions.status.units[0]
    assert (unit.node, [temporary.slices for temporary in unit.temporary_layout]) == (
        "n0",
        [("3g.40gb@0",)],
    )
    assert simulation.play().verdict.reason is LayoutReady.AS_PLANNED
    assert simulation.layouts() == {"n0": [["7g.80gb@0"]], "n1": [other]}


def test_an_unmanaged_pod_is_named_and_no_replica_is_moved() -> None:
    simulation = a_simulation(HALVES, target=[SEVENTHS])
    simulation.foreign("notebook", "n0", 0, HALF)
    actions, _ = simulation.reconcile()
    assert (actions.verdict.reason, actions.tainted_nodes) == (
        LayoutReady.UNMANAGED_POD,
        frozenset(),
    )
    assert (
        "Pod/other/notebook was not created by Tessera and holds 3g.40gb@0 of GPU 0 of Node/n0"
        in (actions.verdict.message)
    )


def test_a_node_cannot_claim_a_replica_that_runs_elsewhere() -> None:
    simulation = a_simulation(HALVES, HALVES, target=[SEVENTHS, HALVES])
    simulation.serve(chat(), [("n1", 0, HALF)])
    (replica,) = simulation.pods
    inputs = inputs_of(simulation)
    n0, n1 = inputs.nodes
    (gpu,) = n0.gpus
    instances = tuple(replace(instance, holders=(replica,)) for instance in gpu.instances)
    liar = replace(n0, gpus=(replace(gpu, instances=instances),))
    actions = advance_rollout(replace(inputs, nodes=(liar, n1)))
    assert (actions.verdict.reason, actions.displaced) == (LayoutReady.UNMANAGED_POD, frozenset())
    assert "but the pod runs on another node" in actions.verdict.message


def test_an_unmanaged_pod_on_one_gpu_does_not_block_the_others_of_its_node() -> None:
    simulation = PoolSimulation(
        {"n0": [placements(*HALVES), placements(*HALVES)]}, backend := PinnedBackend(), backend
    )
    simulation.foreign("notebook", "n0", 0, HALF)
    simulation.plan({"n0": [SEVENTHS, SEVENTHS]})
    assert simulation.play().verdict.reason is LayoutReady.UNMANAGED_POD
    assert simulation.layouts() == {"n0": [HALVES, SEVENTHS]}


def test_without_an_agent_nothing_is_cut_under_an_unmanaged_pod() -> None:
    simulation = a_simulation(HALVES, backend=WholeGpuBackend(), target=[SEVENTHS])
    simulation.foreign("notebook", "n0", 0, HALF)
    actions = simulation.play()
    assert actions.verdict.reason is LayoutReady.UNMANAGED_POD
    assert actions.verdict.message.startswith("Pod/other/notebook was not created by Tessera and")
    assert (actions.requests, simulation.layouts()) == ({}, {"n0": [HALVES]})


def test_an_unmanaged_pod_that_the_agent_has_not_reported_keeps_its_slice() -> None:
    simulation = a_simulation(HALVES, target=[SEVENTHS])
    simulation.foreign("notebook", "n0", 0, HALF)
    inputs = inputs_of(simulation)
    (node,) = inputs.nodes
    (gpu,) = node.gpus
    instances = tuple(replace(instance, holders=()) for instance in gpu.instances)
    late = replace(node, gpus=(replace(gpu, instances=instances),))
    actions = advance_rollout(replace(inputs, nodes=[late]))
    assert actions.verdict.reason is LayoutReady.UNMANAGED_POD
    assert actions.tainted_nodes == frozenset()


def test_the_slice_of_an_unmanaged_pod_is_no_room_for_a_replacement() -> None:
    backend = WholeGpuBackend()
    simulation = a_simulation(HALVES, ["3g.40gb@0"], backend=backend, target=[SEVENTHS, HALVES[:1]])
    simulation.serve(chat(), [("n0", 0, HALF)])
    simulation.foreign("notebook", "n1", 0, HALF)
    actions, _ = simulation.reconcile()
    assert actions.verdict.reason is LayoutReady.NO_SURGE_CAPACITY
    assert simulation.play().displaced == frozenset()


def test_an_own_pod_that_cannot_be_replaced_is_waited_for() -> None:
    simulation = a_simulation(HALVES, target=[SEVENTHS])
    batch = simulation.foreign("batch", "n0", 0, HALF)
    inputs = replace(inputs_of(simulation), own_pods=frozenset({batch}))
    actions = advance_rollout(inputs)
    assert actions.verdict.reason is LayoutReady.REPARTITIONING
    assert actions.verdict.message.startswith("waiting for Pod/other/batch on 3g.40gb@0")


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ("ResetRequired", LayoutReady.GPU_RESET_REQUIRED),
        ("QueryFailed", LayoutReady.NODE_NOT_READY),
        ("UnknownProfile", LayoutReady.UNKNOWN_PROFILE),
    ],
)
def test_a_gpu_with_a_fault_is_left_alone(fault: str, reason: LayoutReady) -> None:
    simulation = a_simulation(HALVES, target=[SEVENTHS])
    simulation.nodes["n0"].faults[0] = (fault, "Xid 79")
    actions, _ = simulation.reconcile()
    assert (actions.verdict.reason, actions.tainted_nodes) == (reason, frozenset())
    assert "Xid 79" in actions.verdict.message


def test_processes_of_no_pod_keep_a_slice() -> None:
    inputs = inputs_of(a_simulation(HALVES, target=[SEVENTHS]))
    gpu = inputs.nodes[0].gpus[0]
    busy = replace(gpu, instances=(replace(gpu.instances[0], processes=2), gpu.instances[1]))
    actions = advance_rollout(replace(inputs, nodes=[replace(inputs.nodes[0], gpus=(busy,))]))
    assert actions.verdict.reason is LayoutReady.GPU_IN_USE
    assert "3g.40gb@0 of GPU 0 of Node/n0" in actions.verdict.message


def test_a_node_that_is_not_ready_waits() -> None:
    simulation = a_simulation(HALVES, target=[SEVENTHS])
    simulation.nodes["n0"].ready = False
    actions, _ = simulation.reconcile()
    assert (actions.verdict.reason, actions.tainted_nodes) == (
        LayoutReady.NODE_NOT_READY,
        frozenset(),
    )


def test_a_node_with_inconsistent_labels_is_left_alone() -> None:
    inputs = inputs_of(a_simulation(HALVES, target=[SEVENTHS]))
    lying = replace(inputs.nodes[0], gpus=(), inconsistency="3 slices of 1g.10gb fit no layout")
    actions = advance_rollout(replace(inputs, nodes=[lying]))
    assert (actions.verdict.reason, actions.tainted_nodes) == (
        LayoutReady.INCONSISTENT_LABELS,
        frozenset(),
    )


def test_a_profile_that_the_gpu_model_lacks_is_named() -> None:
    actions = advance_rollout(inputs_of(a_simulation(HALVES, target=[["5g.60gb"]])))
    assert actions.verdict.reason is LayoutReady.UNKNOWN_PROFILE
    assert "A100-80GB has no profile 5g.60gb" in actions.verdict.message


def test_slices_that_do_not_fit_on_one_gpu_are_named() -> None:
    actions = advance_rollout(inputs_of(a_simulation(HALVES, target=[["4g.40gb", "4g.40gb"]])))
    assert "4g.40gb + 4g.40gb does not fit on 1 A100-80GB" in actions.verdict.message


def test_a_gpu_that_is_not_in_mig_mode_is_named() -> None:
    inputs = inputs_of(a_simulation(HALVES, target=[SEVENTHS]))
    actions = advance_rollout(replace(inputs, nodes=[replace(inputs.nodes[0], gpus=())]))
    assert actions.verdict.reason is LayoutReady.NODE_NOT_READY
    assert "GPU 0 of Node/n0 is missing or not in MIG mode" in actions.verdict.message


def test_a_backend_that_fails_is_asked_again() -> None:
    simulation = a_simulation(HALVES, backend=WholeGpuBackend(fails=2), target=[SEVENTHS])
    assert simulation.play().verdict.reason is LayoutReady.AS_PLANNED


def test_a_backend_that_fails_too_often_keeps_its_node_shut_and_says_so() -> None:
    simulation = a_simulation(HALVES, backend=WholeGpuBackend(fails=99), target=[SEVENTHS])
    for _ in range(60):
        actions, _ = simulation.reconcile()
        simulation.tick()
    assert actions.verdict.reason is LayoutReady.BACKEND_FAILED
    assert actions.tainted_nodes == {"n0"}
    assert actions.status
    assert actions.status.units[0].attempt == MAX_ATTEMPTS


def test_a_node_that_is_stuck_does_not_keep_another_but_two_do() -> None:
    simulation = a_simulation(
        *[HALVES] * 3, backend=WholeGpuBackend(fails=99), target=[SEVENTHS] * 3
    )
    for _ in range(120):
        actions, _ = simulation.reconcile()
        simulation.tick()
    assert len(actions.tainted_nodes) == 2


def test_outside_the_window_nothing_begins_but_what_began_is_finished() -> None:
    mig = Mig(layout={}, maintenance_window=MaintenanceWindow(start="12:00", end="12:01"))
    simulation = a_simulation(HALVES, HALVES, mig=mig, target=[SEVENTHS, SEVENTHS])
    for _ in range(9):
        simulation.reconcile()
        simulation.tick()
    simulation.at = datetime(2026, 11, 20, 13, tzinfo=UTC)
    actions = simulation.play()
    assert actions.verdict.reason is LayoutReady.OUTSIDE_MAINTENANCE_WINDOW
    assert "Fri 13:00 in UTC, the window is 12:00 to 12:01" in actions.verdict.message
    assert simulation.layouts() == {"n0": [SEVENTHS], "n1": [HALVES]}


def test_as_many_nodes_as_allowed_are_worked_on_at_once() -> None:
    mig = Mig(layout={}, max_concurrent=2)
    actions, _ = a_simulation(*[HALVES] * 3, mig=mig, target=[SEVENTHS] * 3).reconcile()
    assert actions.tainted_nodes == {"n0", "n1"}


def test_two_nodes_are_not_drained_at_once_when_that_would_break_a_minimum() -> None:
    mig = Mig(layout={}, max_concurrent=2)
    halves = ["4g.40gb@0", "3g.40gb@4"]
    simulation = a_simulation(
        HALVES, HALVES, ["3g.40gb@0"], mig=mig, target=[halves, halves, ["3g.40gb@0"]]
    )
    simulation.serve(chat(2, floor=6.0), [("n0", 0, HALF), ("n1", 0, HALF)])
    actions, _ = simulation.reconcile()
    assert len(actions.tainted_nodes) == 1


def test_a_plan_that_changes_before_anything_was_destroyed_is_forgotten() -> None:
    simulation = a_simulation(HALVES, HALVES, target=[["4g.40gb@0", "3g.40gb@4"], HALVES])
    simulation.serve(chat(), [("n0", 0, HALF)])
    simulation.reconcile()
    assert simulation.nodes["n0"].tainted
    simulation.plan({"n0": [HALVES], "n1": [HALVES]}, "plan-2")
    actions, _ = simulation.reconcile()
    assert actions.verdict.reason is LayoutReady.AS_PLANNED
    assert not simulation.nodes["n0"].tainted


def test_an_eviction_that_a_disruption_budget_forbids_is_reported() -> None:
    simulation = a_simulation(HALVES, HALVES, target=[["4g.40gb@0", "3g.40gb@4"], HALVES])
    simulation.serve(chat(protected=True), [("n0", 0, HALF)])
    for _ in range(30):
        actions, _ = simulation.reconcile()
        simulation.tick()
    assert list(actions.evictions) == [Ref("team", "chat-1")]
    assert "evicting team/chat-1" in actions.verdict.message
    simulation.services["chat"].protected = False
    assert simulation.play().verdict.reason is LayoutReady.AS_PLANNED


def test_a_pod_that_terminates_is_evicted_no_more() -> None:
    simulation = a_simulation(HALVES, HALVES, target=[["4g.40gb@0", "3g.40gb@4"], HALVES])
    simulation.serve(chat(), [("n0", 0, HALF)])
    pod = next(iter(simulation.pods))
    requests = 0
    for _ in range(30):
        actions, _ = simulation.reconcile()
        requests += pod in actions.evictions
        simulation.tick()
    assert (requests, pod in simulation.pods) == (1, False)


def stuck_simulation(**mig: Any) -> PoolSimulation:
    """Return a repartition whose only replica never finishes its requests."""
    return a_simulation(
        HALVES, HALVES, target=[["4g.40gb@0", "3g.40gb@4"], HALVES], mig=Mig(layout={}, **mig)
    )


def test_with_evict_a_replica_that_never_leaves_is_deleted_at_the_deadline() -> None:
    simulation = stuck_simulation(on_deadline="Evict")
    simulation.serve(chat(protected=True), [("n0", 0, HALF)])
    simulation.services["chat"].busy = True
    reconcile_for(simulation, timedelta(minutes=29))
    assert [unit.phase for unit in simulation.status.units] == ["Draining"]
    reconcile_for(simulation, timedelta(minutes=11))
    assert simulation.status.units == ()
    assert simulation.play().verdict.reason is LayoutReady.AS_PLANNED


def test_with_evict_replacements_that_never_become_ready_hold_no_node() -> None:
    simulation = stuck_simulation(on_deadline="Evict")
    simulation.serve(chat(), [("n0", 0, HALF)])
    simulation.services["chat"].broken = True
    reconcile_for(simulation, timedelta(minutes=40))
    assert simulation.status.units == ()
    assert not simulation.nodes["n0"].tainted


@pytest.mark.parametrize("fault", ["busy", "broken"])
def test_a_node_that_is_not_free_at_the_deadline_takes_pods_again(fault: str) -> None:
    simulation = stuck_simulation()
    simulation.serve(chat(protected=True), [("n0", 0, HALF)])
    setattr(simulation.services["chat"], fault, True)
    reconcile_for(simulation, timedelta(minutes=31))
    actions, _ = simulation.reconcile()
    assert actions.verdict.reason is LayoutReady.DRAIN_DEADLINE_EXCEEDED
    assert "canceled after 30m" in actions.verdict.message
    assert "spec.mig.onDeadline" in actions.verdict.message
    assert (actions.tainted_nodes, actions.draining, actions.displaced) == (frozenset(),) * 3
    assert [unit.phase for unit in simulation.status.units] == ["Canceled"]
    assert not simulation.nodes["n0"].tainted
    assert simulation.ready_capacity()["chat"] > 0


def test_a_canceled_repartition_begins_again_after_as_much_time_as_it_had() -> None:
    simulation = stuck_simulation(drain_deadline="10m")
    simulation.serve(chat(), [("n0", 0, HALF)])
    simulation.services["chat"].busy = True
    reconcile_for(simulation, timedelta(minutes=11))
    simulation.services["chat"].busy = False
    reconcile_for(simulation, timedelta(minutes=8))
    assert [unit.phase for unit in simulation.status.units] == ["Canceled"]
    reconcile_for(simulation, timedelta(minutes=3))
    assert simulation.play().verdict.reason is LayoutReady.AS_PLANNED


def test_a_deadline_may_be_at_most_a_day() -> None:
    with pytest.raises(ValueError, match="must be at most 24h"):
        Mig(layout={}, drain_deadline="25h")


def test_replacements_that_find_no_slice_are_named_after_three_minutes() -> None:
    simulation = a_simulation(HALVES, HALVES, target=[["4g.40gb@0", "3g.40gb@4"], HALVES])
    simulation.serve(chat(), [("n0", 0, HALF)])
    simulation.foreign("neighbor", "n0", 0, OTHER)
    simulation.reconcile()
    for placement in (HALF, OTHER):
        simulation.foreign(f"notebook-{placement.start}", "n1", 0, placement)
    reconcile_for(simulation, timedelta(minutes=2))
    assert simulation.reconcile()[0].verdict.reason is LayoutReady.REPARTITIONING
    reconcile_for(simulation, timedelta(minutes=2))
    verdict = simulation.reconcile()[0].verdict
    assert verdict.reason is LayoutReady.NO_SURGE_CAPACITY
    assert verdict.message.startswith(
        "GPU 0 of Node/n0: no free slice for Pod/team/chat-5, so team/chat-1 cannot leave; "
    )
    del simulation.pods[Ref("other", "notebook-0")]
    assert simulation.play().verdict.reason is LayoutReady.AS_PLANNED


def test_a_pod_that_comes_while_the_backend_partitions_leaves_first() -> None:
    simulation = a_simulation(HALVES, HALVES, target=[["4g.40gb@0", "3g.40gb@4"], HALVES])
    simulation.serve(chat(2), [("n0", 0, HALF), ("n1", 0, OTHER)])
    unit = Unit(node="n0", gpus=(0,), phase="Partitioning", since=START)
    simulation.status = simulation.status.model_copy(update={"units": (unit,)})
    actions, _ = simulation.reconcile()
    assert (actions.requests, len(actions.displaced)) == ({}, 1)
    assert simulation.play().verdict.reason is LayoutReady.AS_PLANNED


def test_a_replica_that_the_agent_has_not_reported_is_waited_for() -> None:
    simulation = a_simulation(HALVES, HALVES, target=[["4g.40gb@0", "3g.40gb@4"], HALVES])
    simulation.serve(chat(), [("n0", 0, HALF)])
    unit = Unit(node="n0", gpus=(0,), phase="Draining", since=START - timedelta(minutes=1))
    simulation.status = simulation.status.model_copy(update={"units": (unit,)})
    simulation.nodes["n0"].tainted = True
    inputs = inputs_of(simulation)
    unreported = replace(
        inputs.nodes[0],
        gpus=tuple(
            replace(
                gpu, instances=tuple(replace(instance, holders=()) for instance in gpu.instances)
            )
            for gpu in inputs.nodes[0].gpus
        ),
    )
    actions = advance_rollout(replace(inputs, nodes=[unreported, inputs.nodes[1]]))
    assert actions.requests == {}
    assert "the agent to report the slices of team/chat-1" in actions.verdict.message


def test_a_replica_on_a_profile_that_it_outgrew_leaves_when_the_new_ones_serve() -> None:
    simulation = a_simulation(SEVENTHS, HALVES, target=[SEVENTHS, HALVES])
    simulation.serve(
        chat(), [("n0", 0, SlicePlacement(0, "1g.10gb")), ("n0", 0, SlicePlacement(1, "1g.10gb"))]
    )
    first, _ = simulation.reconcile()
    assert (len(first.displaced), first.draining) == (2, frozenset())
    simulation.play()
    assert simulation.ready_capacity() == {"chat": 3.0}
    assert simulation.evictions == 2


def test_slices_without_placements_are_created_around_those_in_use() -> None:
    simulation = a_simulation(
        ["1g.10gb@0", "1g.10gb@1", "3g.40gb@4"], target=[["3g.40gb", "1g.10gb", "2g.20gb"]]
    )
    simulation.serve(chat(), [("n0", 0, OTHER)])
    assert simulation.play().verdict.reason is LayoutReady.AS_PLANNED
    assert (simulation.evictions, OTHER in simulation.nodes["n0"].gpus[0]) == (0, True)
