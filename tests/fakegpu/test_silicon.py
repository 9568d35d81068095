import pytest

from fakegpu.silicon import Code, RefusedError, Silicon
from tessera.domain.mig.gpu_models import GpuModel, gpu_models
from tessera.domain.mig.layouts import Layout, SlicePlacement
from tests.mig_oracles import enumerate_layouts

A100 = "NVIDIA-A100-SXM4-80GB"
H100 = "NVIDIA-H100-80GB-HBM3"
A30 = "NVIDIA-A30"


def layout(silicon: Silicon, gpu: int = 0) -> Layout:
    return tuple(SlicePlacement(one.start, one.profile) for one in silicon.gpus[gpu].instances)


def grown(silicon: Silicon, board: GpuModel, profiles: list[str], state: Layout) -> set[Layout]:
    """Every state that one more instance leads to; all places are tried, legal or not."""
    silicon.clear(0)
    for spot in state:
        silicon.create(0, spot.profile, spot.start)
    found = set()
    for profile in profiles:
        for start in range(board.memory_slices):
            try:
                silicon.create(0, profile, start)
            except RefusedError:
                continue
            found.add(layout(silicon))
            silicon.destroy(0, start)
    return found


@pytest.mark.parametrize(
    ("product", "constants", "states"),
    [
        (A100, ["1_SLICE", "2_SLICE", "3_SLICE", "4_SLICE", "7_SLICE"], 298),
        (A100, ["1_SLICE", "2_SLICE", "3_SLICE", "4_SLICE", "7_SLICE", "1_SLICE_REV2"], 723),
        (A100, None, 2319),
        (A30, ["1_SLICE", "2_SLICE", "4_SLICE"], 26),
        (A30, None, 76),
    ],
)
def test_the_driver_allows_exactly_the_states_that_the_planner_counts(
    product: str, constants: list[str] | None, states: int
) -> None:
    board = next(board for board in gpu_models().values() if product in board.products)
    profiles = [c.name for c in board.profiles if constants is None or c.constant in constants]
    silicon = Silicon(product, 1)
    found: set[Layout] = {()}
    edge: set[Layout] = {()}
    while edge:
        edge = {new for state in edge for new in grown(silicon, board, profiles, state)} - found
        found |= edge
    assert len(found) == states
    assert tuple(sorted(found)) == enumerate_layouts(board, profiles)


def test_all_boards_have_the_places_of_the_table() -> None:
    for board in gpu_models().values():
        for product in board.products:
            model = Silicon(product, 1).model
            got = {kind.name: tuple(model.starts(kind)) for kind in model.profiles}
            assert got == {cut.name: cut.starts for cut in board.profiles}


def test_without_a_start_the_driver_begins_on_the_right() -> None:
    silicon = Silicon(A100, 2)
    assert [silicon.create(0, "1g.10gb").start for _ in range(3)] == [6, 5, 4]
    assert [silicon.create(1, "3g.40gb").start for _ in range(2)] == [4, 0]


def test_small_ones_first_leave_no_room_for_a_big_one() -> None:
    silicon = Silicon(A100, 1)
    for profile in ("1g.10gb", "1g.10gb", "2g.20gb"):
        silicon.create(0, profile)
    with pytest.raises(RefusedError, match="INSUFFICIENT_RESOURCES"):
        silicon.create(0, "3g.40gb")


def test_what_is_made_again_has_another_uuid() -> None:
    silicon = Silicon(A100, 1)
    first = silicon.create(0, "3g.40gb", 4).uuid
    silicon.destroy(0, first)
    assert silicon.create(0, "3g.40gb", 4).uuid != first


def test_what_is_in_use_stays_and_its_neighbours_go() -> None:
    silicon = Silicon(A100, 1, layouts=[[("3g.40gb", 0), ("3g.40gb", 4)]])
    silicon.attach(silicon.gpus[0].instances[0].uuid, 4711)
    silicon.destroy(0, 4)
    with pytest.raises(RefusedError, match="IN_USE"):
        silicon.destroy(0, 0)
    with pytest.raises(RefusedError, match="IN_USE"):
        silicon.clear(0)
    assert layout(silicon) == (SlicePlacement(0, "3g.40gb"),)


def test_a_gpu_instance_that_still_has_a_compute_instance_is_in_use() -> None:
    silicon = Silicon(A100, 1, layouts=[[("1g.10gb", 2)]])
    with pytest.raises(RefusedError, match="IN_USE"):
        silicon.destroy_gpu_instance(0, silicon.gpus[0].instances[0].id)


def test_a_half_made_instance_has_no_uuid_and_takes_its_place() -> None:
    silicon = Silicon(A100, 1)
    kind = silicon.model.named("3g.40gb")
    assert kind is not None
    half = silicon.create_gpu_instance(0, kind.id, 4)
    assert half.uuid == ""
    with pytest.raises(RefusedError, match="INSUFFICIENT_RESOURCES"):
        silicon.create(0, "1g.10gb", 5)


def test_create_leaves_nothing_half_made_behind() -> None:
    silicon = Silicon(A100, 1)
    silicon.fail("nvmlGpuInstanceCreateComputeInstance", Code.UNKNOWN)
    with pytest.raises(RefusedError, match="UNKNOWN"):
        silicon.create(0, "3g.40gb", 4)
    assert layout(silicon) == ()


def test_ampere_changes_its_mode_at_a_reset_and_hopper_when_idle() -> None:
    ampere = Silicon(A100, 1, mig=False)
    assert ampere.set_mode(0, enabled=True) == Code.RESET_REQUIRED
    assert (ampere.gpus[0].mig, ampere.gpus[0].pending) == (False, True)
    ampere.reset(0)
    assert ampere.gpus[0].mig

    hopper = Silicon(H100, 1, mig=False)
    hopper.attach(hopper.gpus[0].uuid, 4711)
    assert hopper.set_mode(0, enabled=True) == Code.IN_USE
    hopper.detach(hopper.gpus[0].uuid)
    assert hopper.set_mode(0, enabled=True) == 0
    assert hopper.gpus[0].mig


def test_a_reset_takes_instances_and_since_hopper_the_mode_too() -> None:
    for product, mode in ((A100, True), (H100, False)):
        silicon = Silicon(product, 1, layouts=[[("3g.40gb", 4)]])
        silicon.reset(0)
        assert (layout(silicon), silicon.gpus[0].mig) == ((), mode)


def test_nothing_is_cut_outside_mig_mode() -> None:
    with pytest.raises(RefusedError, match="NOT_SUPPORTED"):
        Silicon(A100, 1, mig=False).create(0, "1g.10gb")


def test_a_fault_comes_as_often_as_told_before_or_after_the_deed() -> None:
    silicon = Silicon(A100, 1, layouts=[[("1g.10gb", 0)]])
    silicon.fail("nvmlComputeInstanceDestroy", Code.IN_USE, times=2)
    for _ in range(2):
        with pytest.raises(RefusedError, match="IN_USE"):
            silicon.destroy(0, 0)
    silicon.fail("nvmlComputeInstanceDestroy", Code.TIMEOUT, moment="after")
    with pytest.raises(RefusedError, match="TIMEOUT"):
        silicon.destroy(0, 0)
    assert silicon.gpus[0].instances[0].uuid == ""


def test_a_shadow_is_there_until_it_is_destroyed_again() -> None:
    silicon = Silicon(A100, 1, layouts=[[("1g.10gb", 0)]])
    silicon.shadow(0, 0)
    silicon.destroy(0, 0)
    assert layout(silicon) == (SlicePlacement(0, "1g.10gb"),)
    silicon.destroy(0, 0)
    assert layout(silicon) == ()


def test_whoever_watches_hears_of_every_change() -> None:
    silicon = Silicon(A100, 1)
    heard: list[int] = []
    silicon.watch(lambda: heard.append(silicon.version))
    silicon.attach(silicon.create(0, "1g.10gb").uuid, "chat-0")
    assert heard == [1, 2, 3]


def test_a_crash_before_or_after_a_call_ends_the_caller_there() -> None:
    class Killed(BaseException):
        pass

    silicon = Silicon(A100, 1)

    def hook(number: int, name: str, moment: str) -> None:
        if (number, moment) == (2, "before"):
            raise Killed(name)

    silicon.on_call = hook
    with pytest.raises(Killed, match="CreateComputeInstance"):
        silicon.create(0, "3g.40gb", 4)
    assert [one.uuid for one in silicon.gpus[0].instances] == [""]
