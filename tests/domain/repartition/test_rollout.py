"""A planned layout is carried out: who leaves when, what is asked, what is said."""

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from tessera.api.mig import MaintenanceWindow, Mig, Unit
from tessera.api.reasons import LayoutReady
from tessera.api.ref import Ref
from tessera.domain.mig.layouts import SlicePlacement
from tessera.domain.repartition.actions import PoolActions
from tessera.domain.repartition.rollout import MAX_ATTEMPTS, RolloutInputs, advance_rollout
from tests.domain.repartition.pool_simulation import (
    START,
    Pinned,
    SimService,
    Whole,
    World,
    spots,
)

HALF, OTHER = SlicePlacement(0, "3g.40gb"), SlicePlacement(4, "3g.40gb")
SPEED = {"3g.40gb": 3.0, "1g.10gb": 1.0, "7g.80gb": 7.0, "4g.40gb": 3.5}
HALVES, SEVENTHS = ["3g.40gb@0", "3g.40gb@4"], [f"1g.10gb@{at}" for at in range(7)]


def chat(
    replicas: int = 1, floor: float = 3.0, *, downtime: bool = False, protected: bool = False
) -> SimService:
    return SimService("chat", "3g.40gb", replicas, floor, SPEED, downtime, protected)


def a_world(
    *nodes: Sequence[str],
    backend: Pinned | Whole | None = None,
    mig: Mig | None = None,
    target: Sequence[Sequence[str]] | None = None,
) -> World:
    """Nodes of one GPU."""
    made = backend or Pinned()
    names = [f"n{at}" for at in range(len(nodes))]
    layouts = {name: [spots(*tiles)] for name, tiles in zip(names, nodes, strict=True)}
    world = World(layouts, made, made, mig=mig)
    if target is not None:
        world.plan({name: [one] for name, one in zip(names, target, strict=True)})
    return world


def seen(world: World) -> RolloutInputs:
    return world.scene()


def until(world: World, phase: str, ticks: int = 60) -> PoolActions:
    """Play until the first unit is in this phase."""
    for _ in range(ticks):
        orders, _ = world.turn()
        if orders.status and [one.phase for one in orders.status.units][:1] == [phase]:
            return orders
        world.tick()
    raise AssertionError(orders.verdict)


def test_a_pool_without_a_plan_is_left_alone() -> None:
    orders = advance_rollout(seen(a_world(HALVES)))
    assert (orders.verdict.reason, orders.tainted_nodes, orders.requests) == (
        LayoutReady.PLANNING,
        frozenset(),
        {},
    )


def test_a_pool_that_is_as_planned_gets_no_orders() -> None:
    world = a_world(HALVES, target=[HALVES])
    world.serve(chat(), [("n0", 0, HALF)])
    orders = advance_rollout(seen(world))
    assert orders.verdict.reason is LayoutReady.AS_PLANNED
    assert [*orders.tainted_nodes, *orders.displaced, *orders.evictions, *orders.requests] == []
    assert orders.verdict.message == "planned layout on 1 of 1 GPU"


def test_an_idle_gpu_is_tainted_first_and_cut_then() -> None:
    world = a_world(SEVENTHS, target=[HALVES])
    first, _ = world.turn()
    assert first.tainted_nodes == {"n0"}
    assert not first.requests
    world.tick()
    second, _ = world.turn()
    assert list(second.requests) == ["n0"]
    assert world.play().verdict.reason is LayoutReady.AS_PLANNED
    assert world.layouts() == {"n0": [HALVES]}
    assert not world.nodes["n0"].tainted


def test_a_replica_leaves_only_when_another_is_ready() -> None:
    world = a_world(HALVES, HALVES, target=[["4g.40gb@0", "3g.40gb@4"], HALVES])
    world.serve(chat(), [("n0", 0, HALF)])
    announced, _ = world.turn()
    assert (len(announced.displaced), announced.draining) == (1, frozenset())
    orders = world.play()
    assert orders.verdict.reason is LayoutReady.AS_PLANNED
    assert (world.served()["chat"], world.evictions) == (3.0, 1)


def test_the_neighbour_of_a_slice_that_goes_stays_where_the_backend_can_do_that() -> None:
    world = a_world(HALVES, HALVES, target=[["4g.40gb@0", "3g.40gb@4"], HALVES])
    world.serve(chat(), [("n0", 0, OTHER)])
    orders, _ = world.turn()
    assert orders.displaced == frozenset()
    world.play()
    assert world.evictions == 0


@pytest.mark.parametrize("knows", [False, True])
def test_without_that_every_replica_of_the_unit_leaves(knows: bool) -> None:
    backend = Whole(knows_pods=knows)
    world = a_world(
        HALVES, HALVES, HALVES, backend=backend, target=[["4g.40gb@0", "3g.40gb@4"], HALVES, HALVES]
    )
    world.serve(chat(2), [("n0", 0, HALF), ("n0", 0, OTHER)])
    orders, _ = world.turn()
    assert len(orders.displaced) == 2
    assert world.play().verdict.reason is LayoutReady.AS_PLANNED
    assert world.evictions == 2


def test_without_room_nothing_begins_and_it_is_said_what_would_help() -> None:
    world = a_world(HALVES, target=[SEVENTHS])
    world.serve(chat(), [("n0", 0, HALF)])
    orders, _ = world.turn()
    assert (orders.verdict.reason, orders.tainted_nodes) == (
        LayoutReady.NO_SURGE_CAPACITY,
        frozenset(),
    )
    message = orders.verdict.message
    assert message.startswith(
        "GPU 0 of Node/n0: draining team/chat-1 needs 1 more free 3g.40gb slice"
    )
    assert "team/chat falls below minReplicas" in message
    assert "spec.scaling.minReplicas" in message
    assert "tessera.dev/allow-downtime=true" in message


def test_a_service_may_allow_to_fall_below_its_floor() -> None:
    world = a_world(HALVES, target=[["4g.40gb@0", "3g.40gb@4"]])
    world.serve(chat(downtime=True), [("n0", 0, HALF)])
    assert world.play().verdict.reason is LayoutReady.AS_PLANNED
    assert world.served() == {"chat": 3.0}


def test_a_service_above_its_floor_gives_up_a_replica_where_there_is_no_room() -> None:
    world = a_world(HALVES, target=[["4g.40gb@0", "3g.40gb@4"]])
    world.serve(chat(2), [("n0", 0, HALF), ("n0", 0, OTHER)])
    assert world.play().verdict.reason is LayoutReady.AS_PLANNED
    assert world.served() == {"chat": 3.0}


def test_in_a_pool_of_one_node_replacements_come_before_the_taint() -> None:
    world = World({"n0": [spots(*HALVES), spots(*HALVES)]}, backend := Pinned(), backend)
    world.serve(chat(), [("n0", 0, HALF)])
    world.plan({"n0": [["4g.40gb@0", "3g.40gb@4"], HALVES]})
    orders, _ = world.turn()
    assert (len(orders.displaced), orders.tainted_nodes) == (1, frozenset())
    assert "slices of the same node" in orders.verdict.message
    assert world.play().verdict.reason is LayoutReady.AS_PLANNED
    assert world.served() == {"chat": 3.0}


def test_where_two_wait_for_each_other_an_idle_gpu_lends_room() -> None:
    small, other = ["3g.40gb@0", "2g.20gb@4"], ["2g.20gb@0", "3g.40gb@4"]
    world = a_world(["7g.80gb@0"], small, target=[["7g.80gb@0"], other])
    world.serve(chat(), [("n1", 0, HALF)])
    lending = until(world, "Draining")
    assert lending.status
    unit = lending.status.units[0]
    assert (unit.node, [one.slices for one in unit.temporary_layout]) == ("n0", [("3g.40gb@0",)])
    assert world.play().verdict.reason is LayoutReady.AS_PLANNED
    assert world.layouts() == {"n0": [["7g.80gb@0"]], "n1": [other]}


def test_a_foreign_pod_is_named_and_nobody_is_moved() -> None:
    world = a_world(HALVES, target=[SEVENTHS])
    world.foreign("notebook", "n0", 0, HALF)
    orders, _ = world.turn()
    assert (orders.verdict.reason, orders.tainted_nodes) == (LayoutReady.UNMANAGED_POD, frozenset())
    assert (
        "Pod/other/notebook was not created by Tessera and holds 3g.40gb@0 of GPU 0 of Node/n0"
        in (orders.verdict.message)
    )


def test_a_foreign_pod_on_one_gpu_does_not_keep_the_others_of_its_node() -> None:
    world = World({"n0": [spots(*HALVES), spots(*HALVES)]}, backend := Pinned(), backend)
    world.foreign("notebook", "n0", 0, HALF)
    world.plan({"n0": [SEVENTHS, SEVENTHS]})
    assert world.play().verdict.reason is LayoutReady.UNMANAGED_POD
    assert world.layouts() == {"n0": [HALVES, SEVENTHS]}


def test_a_pod_of_ours_that_nobody_can_replace_is_waited_for() -> None:
    world = a_world(HALVES, target=[SEVENTHS])
    batch = world.foreign("batch", "n0", 0, HALF)
    scene = replace(seen(world), own_pods=frozenset({batch}))
    orders = advance_rollout(scene)
    assert orders.verdict.reason is LayoutReady.REPARTITIONING
    assert orders.verdict.message.startswith("waiting for Pod/other/batch on 3g.40gb@0")


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ("ResetRequired", LayoutReady.GPU_RESET_REQUIRED),
        ("QueryFailed", LayoutReady.NODE_NOT_READY),
        ("UnknownProfile", LayoutReady.UNKNOWN_PROFILE),
    ],
)
def test_a_gpu_with_a_fault_is_left_alone(fault: str, reason: LayoutReady) -> None:
    world = a_world(HALVES, target=[SEVENTHS])
    world.nodes["n0"].faults[0] = (fault, "Xid 79")
    orders, _ = world.turn()
    assert (orders.verdict.reason, orders.tainted_nodes) == (reason, frozenset())
    assert "Xid 79" in orders.verdict.message


def test_processes_of_no_pod_keep_a_slice() -> None:
    scene = seen(a_world(HALVES, target=[SEVENTHS]))
    card = scene.nodes[0].gpus[0]
    busy = replace(card, instances=(replace(card.instances[0], processes=2), card.instances[1]))
    orders = advance_rollout(replace(scene, nodes=[replace(scene.nodes[0], gpus=(busy,))]))
    assert orders.verdict.reason is LayoutReady.GPU_IN_USE
    assert "3g.40gb@0 of GPU 0 of Node/n0" in orders.verdict.message


def test_a_node_that_is_not_ready_waits() -> None:
    world = a_world(HALVES, target=[SEVENTHS])
    world.nodes["n0"].ready = False
    orders, _ = world.turn()
    assert (orders.verdict.reason, orders.tainted_nodes) == (
        LayoutReady.NODE_NOT_READY,
        frozenset(),
    )


def test_a_node_whose_labels_disagree_is_left_alone() -> None:
    scene = seen(a_world(HALVES, target=[SEVENTHS]))
    lying = replace(scene.nodes[0], gpus=(), inconsistency="3 slices of 1g.10gb fit no layout")
    orders = advance_rollout(replace(scene, nodes=[lying]))
    assert (orders.verdict.reason, orders.tainted_nodes) == (
        LayoutReady.INCONSISTENT_LABELS,
        frozenset(),
    )


def test_a_profile_that_the_board_lacks_is_named() -> None:
    orders = advance_rollout(seen(a_world(HALVES, target=[["5g.60gb"]])))
    assert orders.verdict.reason is LayoutReady.UNKNOWN_PROFILE
    assert "A100-80GB has no profile 5g.60gb" in orders.verdict.message


def test_slices_that_do_not_fit_on_one_gpu_are_named() -> None:
    orders = advance_rollout(seen(a_world(HALVES, target=[["4g.40gb", "4g.40gb"]])))
    assert "4g.40gb + 4g.40gb does not fit on 1 A100-80GB" in orders.verdict.message


def test_a_gpu_that_is_not_in_mig_mode_is_named() -> None:
    scene = seen(a_world(HALVES, target=[SEVENTHS]))
    orders = advance_rollout(replace(scene, nodes=[replace(scene.nodes[0], gpus=())]))
    assert orders.verdict.reason is LayoutReady.NODE_NOT_READY
    assert "GPU 0 of Node/n0 is missing or not in MIG mode" in orders.verdict.message


def test_a_backend_that_fails_is_asked_again() -> None:
    world = a_world(HALVES, backend=Whole(fails=2), target=[SEVENTHS])
    assert world.play().verdict.reason is LayoutReady.AS_PLANNED


def test_a_backend_that_fails_too_often_keeps_its_node_shut_and_says_so() -> None:
    world = a_world(HALVES, backend=Whole(fails=99), target=[SEVENTHS])
    for _ in range(60):
        orders, _ = world.turn()
        world.tick()
    assert orders.verdict.reason is LayoutReady.BACKEND_FAILED
    assert orders.tainted_nodes == {"n0"}
    assert orders.status
    assert orders.status.units[0].attempt == MAX_ATTEMPTS


def test_a_node_that_is_stuck_does_not_keep_another_but_two_do() -> None:
    world = a_world(*[HALVES] * 3, backend=Whole(fails=99), target=[SEVENTHS] * 3)
    for _ in range(120):
        orders, _ = world.turn()
        world.tick()
    assert len(orders.tainted_nodes) == 2


def test_outside_the_window_nothing_begins_but_what_began_is_finished() -> None:
    mig = Mig(layout={}, maintenance_window=MaintenanceWindow(start="12:00", end="12:01"))
    world = a_world(HALVES, HALVES, mig=mig, target=[SEVENTHS, SEVENTHS])
    for _ in range(9):
        world.turn()
        world.tick()
    world.at = datetime(2026, 11, 20, 13, tzinfo=UTC)
    orders = world.play()
    assert orders.verdict.reason is LayoutReady.OUTSIDE_MAINTENANCE_WINDOW
    assert "Fri 13:00 in UTC, the window is 12:00 to 12:01" in orders.verdict.message
    assert world.layouts() == {"n0": [SEVENTHS], "n1": [HALVES]}


def test_as_many_nodes_as_allowed_are_worked_on_at_once() -> None:
    mig = Mig(layout={}, max_concurrent=2)
    orders, _ = a_world(*[HALVES] * 3, mig=mig, target=[SEVENTHS] * 3).turn()
    assert orders.tainted_nodes == {"n0", "n1"}


def test_two_nodes_are_not_emptied_at_once_when_that_would_break_a_floor() -> None:
    mig = Mig(layout={}, max_concurrent=2)
    halves = ["4g.40gb@0", "3g.40gb@4"]
    world = a_world(HALVES, HALVES, ["3g.40gb@0"], mig=mig, target=[halves, halves, ["3g.40gb@0"]])
    world.serve(chat(2, floor=6.0), [("n0", 0, HALF), ("n1", 0, HALF)])
    orders, _ = world.turn()
    assert len(orders.tainted_nodes) == 1


def test_a_plan_that_changes_before_anything_was_destroyed_is_forgotten() -> None:
    world = a_world(HALVES, HALVES, target=[["4g.40gb@0", "3g.40gb@4"], HALVES])
    world.serve(chat(), [("n0", 0, HALF)])
    world.turn()
    assert world.nodes["n0"].tainted
    world.plan({"n0": [HALVES], "n1": [HALVES]}, "plan-2")
    orders, _ = world.turn()
    assert orders.verdict.reason is LayoutReady.AS_PLANNED
    assert not world.nodes["n0"].tainted


def test_an_eviction_that_a_budget_forbids_is_told() -> None:
    world = a_world(HALVES, HALVES, target=[["4g.40gb@0", "3g.40gb@4"], HALVES])
    world.serve(chat(protected=True), [("n0", 0, HALF)])
    for _ in range(30):
        orders, _ = world.turn()
        world.tick()
    assert list(orders.evictions) == [Ref("team", "chat-1")]
    assert "evicting team/chat-1" in orders.verdict.message
    world.services["chat"].protected = False
    assert world.play().verdict.reason is LayoutReady.AS_PLANNED


def test_a_pod_that_comes_while_the_backend_cuts_leaves_first() -> None:
    world = a_world(HALVES, HALVES, target=[["4g.40gb@0", "3g.40gb@4"], HALVES])
    world.serve(chat(2), [("n0", 0, HALF), ("n1", 0, OTHER)])
    unit = Unit(node="n0", gpus=(0,), phase="Partitioning", since=START)
    world.status = world.status.model_copy(update={"units": (unit,)})
    orders, _ = world.turn()
    assert (orders.requests, len(orders.displaced)) == ({}, 1)
    assert world.play().verdict.reason is LayoutReady.AS_PLANNED


def test_a_replica_of_which_the_agent_has_not_told_is_waited_for() -> None:
    world = a_world(HALVES, HALVES, target=[["4g.40gb@0", "3g.40gb@4"], HALVES])
    world.serve(chat(), [("n0", 0, HALF)])
    unit = Unit(node="n0", gpus=(0,), phase="Draining", since=START - timedelta(minutes=1))
    world.status = world.status.model_copy(update={"units": (unit,)})
    world.nodes["n0"].tainted = True
    scene = seen(world)
    untold = replace(
        scene.nodes[0],
        gpus=tuple(
            replace(card, instances=tuple(replace(tile, holders=()) for tile in card.instances))
            for card in scene.nodes[0].gpus
        ),
    )
    orders = advance_rollout(replace(scene, nodes=[untold, scene.nodes[1]]))
    assert orders.requests == {}
    assert "the agent to report the slices of team/chat-1" in orders.verdict.message


def test_a_replica_on_a_profile_that_it_outgrew_leaves_when_the_new_ones_serve() -> None:
    world = a_world(SEVENTHS, HALVES, target=[SEVENTHS, HALVES])
    world.serve(
        chat(), [("n0", 0, SlicePlacement(0, "1g.10gb")), ("n0", 0, SlicePlacement(1, "1g.10gb"))]
    )
    first, _ = world.turn()
    assert (len(first.displaced), first.draining) == (2, frozenset())
    world.play()
    assert world.served() == {"chat": 3.0}
    assert world.evictions == 2


def test_slices_without_places_are_cut_around_those_in_use() -> None:
    world = a_world(
        ["1g.10gb@0", "1g.10gb@1", "3g.40gb@4"], target=[["3g.40gb", "1g.10gb", "2g.20gb"]]
    )
    world.serve(chat(), [("n0", 0, OTHER)])
    assert world.play().verdict.reason is LayoutReady.AS_PLANNED
    assert (world.evictions, OTHER in world.nodes["n0"].gpus[0]) == (0, True)
