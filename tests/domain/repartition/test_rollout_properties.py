"""Random pools go from a bad start to their plan, with operators that may die at any write."""

import random
from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from tessera.api.pool_reasons import LayoutReady
from tessera.api.ref import Ref
from tessera.domain.hardware.gpu_layouts import geometry
from tessera.domain.repartition.rollout import advance_rollout
from tests.cases import full
from tests.domain.repartition.pool_simulation import PoolSimulation, SimNode, placements
from tests.domain.repartition.random_pools import BACKENDS, RandomPool, a_random_pool
from tests.properties import applies, examples

QUICK = settings(max_examples=examples(32), deadline=None)
kinds = st.sampled_from(sorted(BACKENDS))
seeds = st.integers(0, 99_999)


def a_simulation(kind: str, seed: int, *, room: bool = True) -> PoolSimulation | None:
    random_pool = a_random_pool(seed, whole_node_idle=room)
    return None if random_pool is None else start_simulation(random_pool, kind, seed)


def a_planned_simulation(kind: str, seed: int, *, room: bool = True) -> PoolSimulation:
    """A property does not apply to a random pool that no plan serves."""
    simulation = a_simulation(kind, seed, room=room)
    assume(simulation is not None)
    assert simulation is not None
    return simulation


def start_simulation(random_pool: RandomPool, kind: str, seed: int) -> PoolSimulation:
    backend = BACKENDS[kind]()
    return random_pool.simulate(backend, backend, seed)


def as_planned(simulation: PoolSimulation, node: SimNode, gpu: int) -> bool:
    plan = simulation.status.target
    assert plan
    wanted = next(node_target for node_target in plan.nodes if node_target.node == node.name).gpus[
        gpu
    ]
    layout = placements(*wanted.slices)
    if simulation.backend.capabilities.pinned_starts:
        return layout == node.gpus[gpu]
    return geometry(layout) == geometry(node.gpus[gpu])


def startable_units(simulation: PoolSimulation) -> list[str]:
    """Return units that break no minimum, whichever pods the scheduler places."""
    can = simulation.backend.capabilities
    startable = []
    for node in simulation.nodes.values():
        differing = [gpu for gpu in node.gpus if not as_planned(simulation, node, gpu)]
        for unit in [[gpu] for gpu in differing] if can.knows_pods else [differing]:
            leaving = {
                pod.ref
                for pod in simulation.pods.values()
                if pod.node == node.name
                and pod.slice is not None
                and (pod.slice[0] in unit or not can.knows_pods)
                and (not can.sibling_safe or not _is_retained(simulation, node, *pod.slice))
            }
            if unit and _all_keep_minimum(simulation, node, leaving):
                startable.append(f"{unit} of {node.name}")
    return startable


def _is_retained(simulation: PoolSimulation, node: SimNode, gpu: int, placement: object) -> bool:
    plan = simulation.status.target
    assert plan
    wanted = next(node_target for node_target in plan.nodes if node_target.node == node.name).gpus[
        gpu
    ]
    return placement in placements(*wanted.slices)


def _all_keep_minimum(simulation: PoolSimulation, drained_node: SimNode, leaving: set[Ref]) -> bool:
    free = Counter[str]()
    for node in simulation.nodes.values():
        if node is not drained_node:
            taken = {pod.slice for pod in simulation.pods.values() if pod.node == node.name}
            free.update(
                placement.profile
                for gpu, layout in node.gpus.items()
                for placement in layout
                if (gpu, placement) not in taken
            )
    unscheduled = Counter(
        (pod.service, pod.profile) for pod in simulation.pods.values() if not pod.node
    )
    for pod in simulation.pods.values():
        if pod.ref in leaving and pod.profile == simulation.services[pod.service].profile:
            unscheduled[pod.service, pod.profile] += 1
    for service in simulation.services.values():
        ready_pods = [
            pod for pod in simulation.pods.values() if pod.service == service.name and pod.ready
        ]
        speed = sum(service.capacity[pod.profile] for pod in ready_pods)
        remaining = sum(
            service.capacity[pod.profile] for pod in ready_pods if pod.ref not in leaving
        )
        assert service.profile
        others = sum(
            count
            for (name, profile), count in unscheduled.items()
            if name != service.name and profile == service.profile
        )
        schedulable = min(
            unscheduled[service.name, service.profile], free[service.profile] - others
        )
        remaining += max(0, schedulable) * service.capacity[service.profile]
        if remaining < min(speed, service.min_capacity) - 1e-6:
            return False
    return True


@applies(24)
@QUICK
@given(kinds, seeds, st.booleans())
def test_every_pool_ends_as_planned_or_truly_lacks_surge_capacity(
    kind: str, seed: int, whole_node_idle: bool
) -> None:
    assert_ended(kind, seed, room=whole_node_idle)


def assert_ended(kind: str, seed: int, *, room: bool) -> None:
    simulation = a_planned_simulation(kind, seed, room=room)
    verdict = simulation.play().verdict
    assert verdict.reason in {LayoutReady.AS_PLANNED, LayoutReady.NO_SURGE_CAPACITY}
    if verdict.reason is LayoutReady.AS_PLANNED:
        assert all(
            as_planned(simulation, node, gpu)
            for node in simulation.nodes.values()
            for gpu in node.gpus
        )
    else:
        assert startable_units(simulation) == []


@QUICK
@given(kinds, seeds, st.booleans())
def test_services_on_several_profiles_keep_their_minimum_and_end_as_planned(
    kind: str, seed: int, whole_node_idle: bool
) -> None:
    random_pool = a_random_pool(seed, whole_node_idle=whole_node_idle, mixes=True)
    assume(random_pool is not None)
    assert random_pool is not None
    simulation = start_simulation(random_pool, kind, seed)
    verdict = simulation.play().verdict
    assert verdict.reason in {LayoutReady.AS_PLANNED, LayoutReady.NO_SURGE_CAPACITY}
    if verdict.reason is LayoutReady.AS_PLANNED:
        for service in simulation.services.values():
            pods = [pod for pod in simulation.pods.values() if pod.service == service.name]
            assert Counter(pod.profile for pod in pods) == service.planned


@applies(24)
@QUICK
@given(kinds, seeds, st.integers(0, 40))
def test_at_any_moment_the_order_of_what_is_seen_does_not_matter(
    kind: str, seed: int, cycles: int
) -> None:
    simulation = a_planned_simulation(kind, seed)
    for _ in range(cycles):
        simulation.reconcile()
        simulation.tick()
    inputs, rng = simulation.rollout_inputs(), random.Random(seed)  # noqa: S311 - no secret
    shuffled_services = [
        replace(service, replicas=tuple(rng.sample(service.replicas, len(service.replicas))))
        for service in rng.sample(inputs.services, len(inputs.services))
    ]
    shuffled_nodes = rng.sample(inputs.nodes, len(inputs.nodes))
    assert advance_rollout(
        replace(inputs, services=shuffled_services, nodes=shuffled_nodes)
    ) == advance_rollout(inputs)


@applies(24)
@QUICK
@given(kinds, seeds)
def test_an_operator_that_sees_everything_late_breaks_no_invariant(kind: str, seed: int) -> None:
    simulation = a_planned_simulation(kind, seed)
    late_inputs = simulation.rollout_inputs()
    for _ in range(150):
        simulation.reconcile(
            inputs=replace(late_inputs, status=simulation.status, at=simulation.at)
        )
        late_inputs = simulation.rollout_inputs()
        simulation.tick()


@applies(24)
@QUICK
@given(kinds, seeds, st.integers(0, 200))
def test_plans_that_change_on_the_way_break_no_invariant(kind: str, seed: int, cycles: int) -> None:
    simulation = a_planned_simulation(kind, seed)
    planned = simulation.status.target
    start = simulation.layouts()
    for _ in range(cycles % 40):
        simulation.reconcile()
        simulation.tick()
    simulation.plan(start, "plan-2")
    for _ in range(cycles % 7):
        simulation.reconcile()
        simulation.tick()
    simulation.status = simulation.status.model_copy(update={"target": planned})
    simulation.play()


def count_killed_runs(kind: str, seed: int) -> Counter[str]:
    """One play for each write of an undisturbed one, in which the operator dies before it."""
    counts = Counter[str]()
    simulation = a_simulation(kind, seed)
    if simulation is None or simulation.play().verdict.reason is not LayoutReady.AS_PLANNED:
        return counts
    for at in range(simulation.writes):
        again = a_simulation(kind, seed)
        assert again
        verdict = again.play(killed_at=at).verdict
        counts["faults"] += 1
        if verdict.reason is LayoutReady.AS_PLANNED:
            assert all(
                as_planned(again, node, gpu) for node in again.nodes.values() for gpu in node.gpus
            )
        else:
            assert verdict.reason is LayoutReady.NO_SURGE_CAPACITY
            assert startable_units(again) == []
            counts["no room after all"] += 1
    return counts


def print_counts(kind: str, counts: Counter[str]) -> None:
    after_all = counts["no room after all"]
    print(f"{kind}: n={counts['faults']} kills, {after_all} ended without room")  # noqa: T201 - n is asked for


@pytest.mark.parametrize("kind", ["pinned", *full("whole", "whole, with an agent")])
def test_an_operator_that_dies_before_any_write_goes_on_where_it_was(kind: str) -> None:
    counts = count_killed_runs(kind, 2)
    print_counts(kind, counts)
    assert counts["faults"] > 10


@pytest.mark.full
@pytest.mark.long
@pytest.mark.parametrize("kind", sorted(BACKENDS))
@pytest.mark.parametrize("chosen", [range(3, 13), range(13, 40)])
def test_many_operators_that_die_go_on_where_they_were(kind: str, chosen: range) -> None:
    counts = Counter[str]()
    for seed in chosen:
        counts += count_killed_runs(kind, seed)
    print_counts(kind, counts)
    assert counts["faults"] > 100


@pytest.mark.long
@applies(40)
@settings(max_examples=examples(50), deadline=None)
@given(kinds, seeds, st.booleans())
def test_a_great_many_pools_end_as_planned_or_truly_lack_room(
    kind: str, seed: int, whole_node_idle: bool
) -> None:
    assert_ended(kind, seed, room=whole_node_idle)
