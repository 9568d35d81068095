"""What every `GeometryBackend` must do, each with its far end."""

from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fakegpu.silicon import Silicon
from tessera.api.reasons import LayoutReady
from tessera.domain.mig.gpu_models import gpu_models
from tessera.domain.mig.layouts import Layout, SlicePlacement, enumerate_layouts, geometry
from tessera.domain.mig_backends.agent import AgentBackend
from tessera.domain.mig_backends.backend import GeometryBackend
from tessera.domain.mig_backends.mig_manager import MigManagerBackend
from tessera.domain.mig_backends.static import StaticBackend
from tests.builders import A100
from tests.far_ends import Course, FarEnd
from world.mig_manager import MigManager as Manager

PROFILES = ("1g.10gb", "2g.20gb", "3g.40gb", "4g.40gb", "7g.80gb")
LAYOUTS = enumerate_layouts(gpu_models()["A100-80GB"], PROFILES)
SIDES = ("mig-manager", "mig-manager that knows pods", "agent")
Side = tuple[GeometryBackend, FarEnd]


def a_side(name: str, *layouts: Layout) -> Side:
    made = [[(spot.profile, spot.start) for spot in layout] for layout in layouts]
    silicon = Silicon(A100, len(layouts), layouts=made)
    if name == "agent":
        return AgentBackend(), FarEnd(silicon=silicon, tells=True, cuts=True)
    tells = name != "mig-manager"
    far = FarEnd(silicon=silicon, manager=Manager(), tells=tells)
    return MigManagerBackend(knows_pods=tells), far


def a_layout(text: str) -> Layout:
    """`3g@4 1g@0` of an A100."""
    names = {profile.partition(".")[0]: profile for profile in PROFILES}
    parts = (part.split("@") for part in text.split())
    return tuple(sorted(SlicePlacement(int(start), names[name]) for name, start in parts))


HALVES, SMALL, MIXED = a_layout("3g@0 3g@4"), a_layout("1g@0 1g@1 1g@2"), a_layout("4g@0 2g@4 1g@6")


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
    return [one.uuid for one in far.silicon.gpus[gpu].instances]


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
    used = far.silicon.gpus[0].instances[0]
    far.silicon.attach(used.uuid, "engine")
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
    used = far.silicon.gpus[0].instances[0]
    far.silicon.attach(used.uuid, "engine")
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
