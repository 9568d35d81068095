import pytest

from fakegpu.gpu_driver import Code, GpuDriver, RefusedError
from tessera.domain.hardware.gpu_layouts import Layout, SlicePlacement
from tessera.domain.hardware.gpu_models import GpuModel, gpu_models
from tests.mig_oracles import enumerate_layouts

A100 = "NVIDIA-A100-SXM4-80GB"
H100 = "NVIDIA-H100-80GB-HBM3"
A30 = "NVIDIA-A30"


def layout(driver: GpuDriver, gpu: int = 0) -> Layout:
    return tuple(
        SlicePlacement(instance.start, instance.profile) for instance in driver.gpus[gpu].instances
    )


def next_layouts(
    driver: GpuDriver, gpu_model: GpuModel, profiles: list[str], state: Layout
) -> set[Layout]:
    """Every state that one more instance leads to; all places are tried, legal or not."""
    driver.clear(0)
    for placement in state:
        driver.create(0, placement.profile, placement.start)
    layouts = set()
    for profile in profiles:
        for start in range(gpu_model.memory_slices):
            try:
                driver.create(0, profile, start)
            except RefusedError:
                continue
            layouts.add(layout(driver))
            driver.destroy(0, start)
    return layouts


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
    gpu_model = next(
        gpu_model for gpu_model in gpu_models().values() if product in gpu_model.products
    )
    profiles = [c.name for c in gpu_model.profiles if constants is None or c.constant in constants]
    driver = GpuDriver(product, 1)
    layouts: set[Layout] = {()}
    edge: set[Layout] = {()}
    while edge:
        edge = {
            new for state in edge for new in next_layouts(driver, gpu_model, profiles, state)
        } - layouts
        layouts |= edge
    assert len(layouts) == states
    assert tuple(sorted(layouts)) == enumerate_layouts(gpu_model, profiles)


def test_all_gpu_models_have_the_placements_of_the_table() -> None:
    for gpu_model in gpu_models().values():
        for product in gpu_model.products:
            model = GpuDriver(product, 1).model
            got = {kind.name: tuple(model.starts(kind)) for kind in model.profiles}
            assert got == {profile.name: profile.starts for profile in gpu_model.profiles}


def test_without_a_start_the_driver_begins_on_the_right() -> None:
    driver = GpuDriver(A100, 2)
    assert [driver.create(0, "1g.10gb").start for _ in range(3)] == [6, 5, 4]
    assert [driver.create(1, "3g.40gb").start for _ in range(2)] == [4, 0]


def test_small_instances_first_leave_no_room_for_a_large_instance() -> None:
    driver = GpuDriver(A100, 1)
    for profile in ("1g.10gb", "1g.10gb", "2g.20gb"):
        driver.create(0, profile)
    with pytest.raises(RefusedError, match="INSUFFICIENT_RESOURCES"):
        driver.create(0, "3g.40gb")


def test_a_recreated_instance_has_another_uuid() -> None:
    driver = GpuDriver(A100, 1)
    first = driver.create(0, "3g.40gb", 4).uuid
    driver.destroy(0, first)
    assert driver.create(0, "3g.40gb", 4).uuid != first


def test_an_instance_in_use_stays_while_its_neighbor_is_destroyed() -> None:
    driver = GpuDriver(A100, 1, layouts=[[("3g.40gb", 0), ("3g.40gb", 4)]])
    driver.attach(driver.gpus[0].instances[0].uuid, 4711)
    driver.destroy(0, 4)
    with pytest.raises(RefusedError, match="IN_USE"):
        driver.destroy(0, 0)
    with pytest.raises(RefusedError, match="IN_USE"):
        driver.clear(0)
    assert layout(driver) == (SlicePlacement(0, "3g.40gb"),)


def test_a_gpu_instance_that_still_has_a_compute_instance_is_in_use() -> None:
    driver = GpuDriver(A100, 1, layouts=[[("1g.10gb", 2)]])
    with pytest.raises(RefusedError, match="IN_USE"):
        driver.destroy_gpu_instance(0, driver.gpus[0].instances[0].id)


def test_an_instance_without_compute_instance_has_no_uuid_and_occupies_its_placement() -> None:
    driver = GpuDriver(A100, 1)
    kind = driver.model.by_name("3g.40gb")
    assert kind is not None
    half = driver.create_gpu_instance(0, kind.id, 4)
    assert half.uuid == ""
    with pytest.raises(RefusedError, match="INSUFFICIENT_RESOURCES"):
        driver.create(0, "1g.10gb", 5)


def test_a_failed_create_leaves_no_instance_behind() -> None:
    driver = GpuDriver(A100, 1)
    driver.fail("nvmlGpuInstanceCreateComputeInstance", Code.UNKNOWN)
    with pytest.raises(RefusedError, match="UNKNOWN"):
        driver.create(0, "3g.40gb", 4)
    assert layout(driver) == ()


def test_ampere_changes_its_mode_at_a_reset_and_hopper_when_idle() -> None:
    ampere = GpuDriver(A100, 1, mig=False)
    assert ampere.set_mode(0, enabled=True) == Code.RESET_REQUIRED
    assert (ampere.gpus[0].mig, ampere.gpus[0].pending) == (False, True)
    ampere.reset(0)
    assert ampere.gpus[0].mig

    hopper = GpuDriver(H100, 1, mig=False)
    hopper.attach(hopper.gpus[0].uuid, 4711)
    assert hopper.set_mode(0, enabled=True) == Code.IN_USE
    hopper.detach(hopper.gpus[0].uuid)
    assert hopper.set_mode(0, enabled=True) == 0
    assert hopper.gpus[0].mig


def test_a_reset_removes_instances_and_since_hopper_the_mode_too() -> None:
    for product, mode in ((A100, True), (H100, False)):
        driver = GpuDriver(product, 1, layouts=[[("3g.40gb", 4)]])
        driver.reset(0)
        assert (layout(driver), driver.gpus[0].mig) == ((), mode)


def test_no_instance_is_created_outside_mig_mode() -> None:
    with pytest.raises(RefusedError, match="NOT_SUPPORTED"):
        GpuDriver(A100, 1, mig=False).create(0, "1g.10gb")


def test_a_fault_occurs_the_given_number_of_times_before_or_after_the_call() -> None:
    driver = GpuDriver(A100, 1, layouts=[[("1g.10gb", 0)]])
    driver.fail("nvmlComputeInstanceDestroy", Code.IN_USE, times=2)
    for _ in range(2):
        with pytest.raises(RefusedError, match="IN_USE"):
            driver.destroy(0, 0)
    driver.fail("nvmlComputeInstanceDestroy", Code.TIMEOUT, moment="after")
    with pytest.raises(RefusedError, match="TIMEOUT"):
        driver.destroy(0, 0)
    assert driver.gpus[0].instances[0].uuid == ""


def test_an_instance_whose_destruction_was_ignored_exists_until_destroyed_again() -> None:
    driver = GpuDriver(A100, 1, layouts=[[("1g.10gb", 0)]])
    driver.ignore_destroy(0, 0)
    driver.destroy(0, 0)
    assert layout(driver) == (SlicePlacement(0, "1g.10gb"),)
    driver.destroy(0, 0)
    assert layout(driver) == ()


def test_watchers_are_called_after_every_change() -> None:
    driver = GpuDriver(A100, 1)
    heard: list[int] = []
    driver.watch(lambda: heard.append(driver.version))
    driver.attach(driver.create(0, "1g.10gb").uuid, "chat-0")
    assert heard == [1, 2, 3]


def test_a_crash_before_or_after_a_call_ends_the_caller_there() -> None:
    class Killed(BaseException):
        pass

    driver = GpuDriver(A100, 1)

    def hook(number: int, name: str, moment: str) -> None:
        if (number, moment) == (2, "before"):
            raise Killed(name)

    driver.on_call = hook
    with pytest.raises(Killed, match="CreateComputeInstance"):
        driver.create(0, "3g.40gb", 4)
    assert [instance.uuid for instance in driver.gpus[0].instances] == [""]
