"""The contract of `GeometryBackend`, each with its simulated node."""

from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tessera.api.pool_reasons import LayoutReady
from tessera.domain.hardware.gpu_layouts import Layout, geometry
from tessera.domain.hardware.gpu_models import gpu_models
from tessera.domain.mig_backends.agent import AgentBackend
from tessera.domain.mig_backends.backend import GeometryBackend
from tests.contract.geometry_backends import (
    BACKENDS,
    HALVES,
    MIXED,
    PROFILES,
    SMALL,
    BackendAndNode,
    a_backend_and_node,
    a_layout,
)
from tests.mig_oracles import enumerate_layouts
from tests.properties import examples
from tests.simulated_mig_nodes import BackendRun, SimulatedMigNode

LAYOUTS = enumerate_layouts(gpu_models()["A100-80GB"], PROFILES)


def is_desired(backend: GeometryBackend, actual: Layout, desired: Layout) -> bool:
    if backend.capabilities.pinned_starts:
        return actual == desired
    return geometry(actual) == geometry(desired)


@pytest.fixture(params=BACKENDS)
def backend_and_node(request: pytest.FixtureRequest) -> BackendAndNode:
    return a_backend_and_node(request.param, HALVES, SMALL)


def desired_layouts(
    backend_and_node: BackendAndNode, gpu: int, layout: Layout
) -> dict[int, Layout]:
    """Return the desired layouts: of all GPUs if the backend does not know where pods run."""
    backend, node = backend_and_node
    others = {} if backend.capabilities.knows_pods else dict(node.layouts())
    return others | {gpu: layout}


def uuids(node: SimulatedMigNode, gpu: int) -> Sequence[str]:
    return [instance.uuid for instance in node.gpu_driver.gpus[gpu].instances]


def test_a_gpu_gets_its_desired_layout_and_its_instances_become_allocatable(
    backend_and_node: BackendAndNode,
) -> None:
    backend, node = backend_and_node
    status = BackendRun(
        backend=backend, node=node, desired=desired_layouts(backend_and_node, 0, MIXED)
    ).run()
    assert status.done
    assert is_desired(backend, node.layouts()[0], MIXED)
    assert {name: count for name, count in node.allocatable.items() if count} == {
        "nvidia.com/mig-4g.40gb": 1,
        "nvidia.com/mig-2g.20gb": 1,
        "nvidia.com/mig-1g.10gb": 4,
    }


def test_gpus_outside_of_the_unit_are_not_changed(backend_and_node: BackendAndNode) -> None:
    backend, node = backend_and_node
    before = uuids(node, 1)
    assert (
        BackendRun(backend=backend, node=node, desired=desired_layouts(backend_and_node, 0, MIXED))
        .run()
        .done
    )
    assert uuids(node, 1) == before


def test_equal_input_gives_equal_requests_and_a_finished_unit_requests_nothing(
    backend_and_node: BackendAndNode,
) -> None:
    backend, node = backend_and_node
    desired = desired_layouts(backend_and_node, 0, MIXED)
    assert backend.request(node.observed(), desired, 1, node.at) == backend.request(
        node.observed(), desired, 1, node.at
    )
    run = BackendRun(backend=backend, node=node, desired=desired)
    run.run()
    request = backend.request(node.observed(), desired, run.attempt, node.at)
    assert not request.labels
    assert request.layout_spec in (None, node.spec)


def test_an_instance_in_use_survives_every_attempt(backend_and_node: BackendAndNode) -> None:
    backend, node = backend_and_node
    used = node.gpu_driver.gpus[0].instances[0]
    node.gpu_driver.attach(used.uuid, "engine")
    status = BackendRun(
        backend=backend, node=node, desired=desired_layouts(backend_and_node, 0, MIXED)
    ).run()
    assert not status.done
    assert used.uuid in uuids(node, 0)
    assert status.problem is not None
    expected = (
        LayoutReady.GPU_IN_USE if isinstance(backend, AgentBackend) else LayoutReady.BACKEND_FAILED
    )
    assert status.problem.reason is expected


def test_only_a_sibling_safe_backend_partitions_beside_an_instance_in_use(
    backend_and_node: BackendAndNode,
) -> None:
    backend, node = backend_and_node
    used = node.gpu_driver.gpus[0].instances[0]
    node.gpu_driver.attach(used.uuid, "engine")
    desired = a_layout("3g@0 2g@4 1g@6")
    status = BackendRun(
        backend=backend, node=node, desired=desired_layouts(backend_and_node, 0, desired)
    ).run()
    assert status.done is backend.capabilities.sibling_safe
    assert used.uuid in uuids(node, 0)


def test_wherever_the_operator_dies_the_next_one_completes_the_unit(
    backend_and_node: BackendAndNode,
) -> None:
    undisturbed = BackendRun(
        backend=backend_and_node[0],
        node=backend_and_node[1],
        desired=desired_layouts(backend_and_node, 0, MIXED),
    )
    undisturbed.run()
    name = (
        BACKENDS[2]
        if isinstance(backend_and_node[0], AgentBackend)
        else BACKENDS[int(backend_and_node[0].capabilities.knows_pods)]
    )
    for stop in range(undisturbed.writes):
        backend, node = restarted = a_backend_and_node(name, HALVES, SMALL)
        run = BackendRun(backend=backend, node=node, desired=desired_layouts(restarted, 0, MIXED))
        assert run.run(killed_at_write=stop).done, stop
        assert is_desired(backend, node.layouts()[0], MIXED)


@pytest.mark.parametrize("name", BACKENDS)
@settings(max_examples=examples(25), deadline=None)
@given(st.lists(st.sampled_from(LAYOUTS), min_size=4, max_size=4))
def test_every_layout_is_reached_from_every_other(name: str, layouts: Sequence[Layout]) -> None:
    backend, node = a_backend_and_node(name, *layouts[:2])
    desired = dict(enumerate(layouts[2:]))
    assert BackendRun(backend=backend, node=node, desired=desired).run().done
    assert all(is_desired(backend, node.layouts()[at], layout) for at, layout in desired.items())
