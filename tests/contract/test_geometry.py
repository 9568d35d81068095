"""What every `GeometryBackend` must do, each with its far end."""

from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tessera.api.reasons import LayoutReady
from tessera.domain.mig.gpu_models import gpu_models
from tessera.domain.mig.layouts import Layout, geometry
from tessera.domain.mig_backends.agent import AgentBackend
from tessera.domain.mig_backends.backend import GeometryBackend
from tessera.domain.mig_backends.by_name import StaticBackend
from tests.contract.geometry_sides import (
    HALVES,
    MIXED,
    PROFILES,
    SIDES,
    SMALL,
    Side,
    a_layout,
    a_side,
)
from tests.mig_oracles import enumerate_layouts
from tests.simulated_mig_nodes import Course, FarEnd

LAYOUTS = enumerate_layouts(gpu_models()["A100-80GB"], PROFILES)


def as_wanted(backend: GeometryBackend, got: Layout, wanted: Layout) -> bool:
    if backend.capabilities.pinned_starts:
        return got == wanted
    return geometry(got) == geometry(wanted)


@pytest.fixture(params=SIDES)
def side(request: pytest.FixtureRequest) -> Side:
    return a_side(request.param, HALVES, SMALL)


def of_unit(side: Side, gpu: int, layout: Layout) -> dict[int, Layout]:
    """Without knowing which GPU holds what, all of them are wanted."""
    backend, far = side
    others = {} if backend.capabilities.knows_pods else dict(far.layouts())
    return others | {gpu: layout}


def uuids(far: FarEnd, gpu: int) -> Sequence[str]:
    return [one.uuid for one in far.gpu_driver.gpus[gpu].instances]


def test_a_gpu_becomes_as_it_is_wanted_and_pods_are_offered_it(side: Side) -> None:
    backend, far = side
    heard = Course(backend=backend, far=far, wanted=of_unit(side, 0, MIXED)).run()
    assert heard.done
    assert as_wanted(backend, far.layouts()[0], MIXED)
    assert {name: count for name, count in far.allocatable.items() if count} == {
        "nvidia.com/mig-4g.40gb": 1,
        "nvidia.com/mig-2g.20gb": 1,
        "nvidia.com/mig-1g.10gb": 4,
    }


def test_what_is_beside_the_unit_is_not_touched(side: Side) -> None:
    backend, far = side
    before = uuids(far, 1)
    assert Course(backend=backend, far=far, wanted=of_unit(side, 0, MIXED)).run().done
    assert uuids(far, 1) == before


def test_equal_input_asks_for_the_same_and_what_is_done_asks_for_nothing_more(side: Side) -> None:
    backend, far = side
    wanted = of_unit(side, 0, MIXED)
    assert backend.request(far.ground(), wanted, 1) == backend.request(far.ground(), wanted, 1)
    course = Course(backend=backend, far=far, wanted=wanted)
    course.run()
    ask = backend.request(far.ground(), wanted, course.attempt)
    assert not ask.labels
    assert ask.layout_spec in (None, far.spec)


def test_a_slice_that_computes_outlives_every_attempt(side: Side) -> None:
    backend, far = side
    used = far.gpu_driver.gpus[0].instances[0]
    far.gpu_driver.attach(used.uuid, "engine")
    heard = Course(backend=backend, far=far, wanted=of_unit(side, 0, MIXED)).run()
    assert not heard.done
    assert used.uuid in uuids(far, 0)
    assert heard.problem is not None
    expected = (
        LayoutReady.GPU_IN_USE if isinstance(backend, AgentBackend) else LayoutReady.BACKEND_FAILED
    )
    assert heard.problem.reason is expected


def test_only_a_sibling_safe_backend_cuts_beside_a_slice_that_computes(side: Side) -> None:
    backend, far = side
    used = far.gpu_driver.gpus[0].instances[0]
    far.gpu_driver.attach(used.uuid, "engine")
    wanted = a_layout("3g@0 2g@4 1g@6")
    heard = Course(backend=backend, far=far, wanted=of_unit(side, 0, wanted)).run()
    assert heard.done is backend.capabilities.sibling_safe
    assert used.uuid in uuids(far, 0)


def test_wherever_the_operator_dies_another_one_ends_it(side: Side) -> None:
    whole = Course(backend=side[0], far=side[1], wanted=of_unit(side, 0, MIXED))
    whole.run()
    name = (
        SIDES[2]
        if isinstance(side[0], AgentBackend)
        else SIDES[int(side[0].capabilities.knows_pods)]
    )
    for stop in range(whole.writes):
        backend, far = again = a_side(name, HALVES, SMALL)
        course = Course(backend=backend, far=far, wanted=of_unit(again, 0, MIXED))
        assert course.run(stop=stop).done, stop
        assert as_wanted(backend, far.layouts()[0], MIXED)


@pytest.mark.parametrize("name", SIDES)
@settings(max_examples=25, deadline=None)
@given(st.lists(st.sampled_from(LAYOUTS), min_size=4, max_size=4))
def test_every_layout_is_reached_from_every_other(name: str, layouts: Sequence[Layout]) -> None:
    backend, far = a_side(name, *layouts[:2])
    wanted = dict(enumerate(layouts[2:]))
    assert Course(backend=backend, far=far, wanted=wanted).run().done
    assert all(as_wanted(backend, far.layouts()[at], layout) for at, layout in wanted.items())


def test_a_pool_that_is_taken_as_it_is_asks_for_nothing_and_says_so() -> None:
    _, far = a_side(SIDES[0], HALVES)
    heard = StaticBackend().status(far.ground(), {0: SMALL}, 1, far.at, far.at)
    assert StaticBackend().request(far.ground(), {0: SMALL}, 1) == replace(
        StaticBackend().request(far.ground(), {}, 1)
    )
    assert heard.problem is not None
    assert heard.problem.reason is LayoutReady.NOT_MANAGED
