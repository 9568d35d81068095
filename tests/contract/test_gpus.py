"""What every `Gpus` must do: over the silicon of the tests, and over a driver that is here."""

import contextlib
from collections.abc import Iterator
from types import ModuleType

import pynvml
import pytest

from fakegpu.nvml import nvml
from fakegpu.silicon import Code, Silicon
from tessera.adapters.nvml import NvmlGpus
from tessera.domain.mig.gpu_models import find_gpu_model, gpu_models
from tessera.domain.mig.layouts import SlicePlacement, layout_error
from tessera.ports import GpuError, Gpus

A100 = "NVIDIA-A100-SXM4-80GB"


def driver() -> ModuleType:
    """The real one of this machine; skips where there is none."""
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        pytest.skip(f"no driver here: {error}")
    pynvml.nvmlShutdown()
    found: ModuleType = pynvml
    return found


@pytest.fixture(params=["silicon", "silicon without mig mode", "driver"])
def gpus(request: pytest.FixtureRequest) -> Iterator[Gpus]:
    if request.param == "driver":
        yield NvmlGpus(driver())
    else:
        mig = request.param == "silicon"
        layouts = [[("3g.40gb", 4), ("1g.10gb", 0)]] if mig else []
        yield NvmlGpus(nvml(Silicon(A100, 2, mig=mig, layouts=layouts)))


async def test_what_is_read_is_whole_and_read_again_the_same(gpus: Gpus) -> None:
    found = await gpus.read()
    assert found.driver
    assert [gpu.index for gpu in found.gpus] == list(range(len(found.gpus)))
    for gpu in found.gpus:
        assert gpu.uuid.startswith("GPU-")
        assert " " not in gpu.product
        assert gpu.memory_mib > 1024
        if gpu.mode == "Enabled":
            assert gpu.gpu_model is not None
            assert layout_error(gpu.gpu_model, [one.placement for one in gpu.instances]) is None
        else:
            assert gpu.instances == ()
    assert await gpus.read() == found


async def test_one_gpu_is_read_by_its_uuid(gpus: Gpus) -> None:
    for gpu in (await gpus.read()).gpus:
        assert (await gpus.read(gpu.uuid)).gpus == (gpu,)
    with pytest.raises(GpuError):
        await gpus.read("GPU-00000000-0000-0000-0000-000000000000")


async def test_instances_come_and_go_twice_told_or_not() -> None:
    silicon = Silicon(A100, 1)
    gpus: Gpus = NvmlGpus(nvml(silicon))
    uuid, spot = silicon.gpus[0].uuid, SlicePlacement(4, "3g.40gb")
    for _ in range(2):
        await gpus.create(uuid, spot)
        (made,) = (await gpus.read()).gpus[0].instances
        assert (made.placement, made.uuid) == (spot, silicon.gpus[0].instances[0].uuid)
    for _ in range(2):
        await gpus.destroy(uuid, spot)
        assert (await gpus.read()).gpus[0].instances == ()


async def test_what_computes_is_not_taken_away() -> None:
    silicon = Silicon(A100, 1, layouts=[[("3g.40gb", 4)]])
    gpus: Gpus = NvmlGpus(nvml(silicon))
    silicon.attach(silicon.gpus[0].instances[0].uuid, 4711)
    with pytest.raises(GpuError, match=r"3g\.40gb@4 is in use by 1 process") as refused:
        await gpus.destroy(silicon.gpus[0].uuid, SlicePlacement(4, "3g.40gb"))
    assert refused.value.fault == "InUse"
    assert silicon.gpus[0].instances[0].computes


@pytest.mark.parametrize(
    ("code", "fault"),
    [
        (Code.IN_USE, "InUse"),
        (Code.RESET_REQUIRED, "ResetRequired"),
        (Code.GPU_IS_LOST, "ResetRequired"),
        (Code.INSUFFICIENT_RESOURCES, "PartitionFailed"),
        (Code.NO_PERMISSION, "PartitionFailed"),
        (Code.TIMEOUT, "QueryFailed"),
    ],
)
async def test_every_refusal_has_its_word_and_the_next_attempt_is_a_new_session(
    code: Code, fault: str
) -> None:
    silicon = Silicon(A100, 1)
    gpus: Gpus = NvmlGpus(nvml(silicon))
    silicon.fail("nvmlDeviceCreateGpuInstanceWithPlacement", code)
    spot = SlicePlacement(4, "3g.40gb")
    with pytest.raises(GpuError, match=f"create 3g.40gb@4: NVML error {code.name}") as told:
        await gpus.create(silicon.gpus[0].uuid, spot)
    assert told.value.fault == fault
    silicon.stale()
    with contextlib.suppress(GpuError):
        await gpus.read()
    await gpus.create(silicon.gpus[0].uuid, spot)


@pytest.mark.parametrize("board", gpu_models())
async def test_what_the_driver_tells_of_a_board_is_what_the_table_says(board: str) -> None:
    for product in gpu_models()[board].products:
        found = (await NvmlGpus(nvml(Silicon(product, 1))).read()).gpus[0].gpu_model
        assert found is not None
        table = gpu_models()[board]
        assert {
            cut.name: (cut.starts, cut.memory_slices, cut.has_media_engines)
            for cut in found.profiles
        } == {
            cut.name: (cut.starts, cut.memory_slices, cut.has_media_engines)
            for cut in table.profiles
        }
        assert (found.compute_slices, found.memory_slices) == (
            table.compute_slices,
            table.memory_slices,
        )
        for spelling, _ in table.aliases:
            assert found.find_profile(spelling) is not None


async def test_a_profile_is_found_by_any_of_its_names() -> None:
    silicon = Silicon(A100, 1)
    gpus: Gpus = NvmlGpus(nvml(silicon))
    await gpus.create(silicon.gpus[0].uuid, SlicePlacement(4, "3g.39gb"))
    assert (await gpus.read()).gpus[0].instances[0].placement == SlicePlacement(4, "3g.40gb")
    with pytest.raises(GpuError, match=r"has no profile 3g\.50gb") as told:
        await gpus.create(silicon.gpus[0].uuid, SlicePlacement(0, "3g.50gb"))
    assert told.value.fault == "UnknownProfile"


@pytest.mark.parametrize("board", sorted(gpu_models()))
async def test_names_that_an_old_driver_does_not_tell_are_derived(board: str) -> None:
    """Without the newer call, and for a product that no table has."""
    for product in gpu_models()[board].products[:1]:
        silicon = Silicon(product, 1)
        module = nvml(silicon)
        library = vars(module)["nvmlLib"]
        del library.nvmlDeviceGetGpuInstanceProfileInfoV
        vars(module)["nvmlDeviceGetName"] = lambda _handle: "NVIDIA Unheard Of"
        found = (await NvmlGpus(module).read()).gpus[0].gpu_model
        assert found is not None
        assert find_gpu_model(found.name) is None
        table = gpu_models()[board]
        known = {cut.name for cut in table.profiles} | {name for name, _ in table.aliases}
        assert {cut.name for cut in found.profiles} <= known, product
