"""The contract of `Gpus`: over simulated GPUs, and over the driver of this machine."""

import contextlib
from collections.abc import Iterator
from types import ModuleType

import pynvml
import pytest

from fakegpu.gpu_driver import Code, GpuDriver
from fakegpu.nvml import nvml
from tessera.adapters.nvml.gpus import NvmlGpus
from tessera.domain.hardware.gpu_layouts import SlicePlacement, layout_error
from tessera.domain.hardware.gpu_models import find_gpu_model, gpu_models
from tessera.ports import GpuError, Gpus

A100 = "NVIDIA-A100-SXM4-80GB"


def driver() -> ModuleType:
    """Return the NVML of this machine; skip the test where there is none."""
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        pytest.skip(f"no driver here: {error}")
    pynvml.nvmlShutdown()
    module: ModuleType = pynvml
    return module


@pytest.fixture(params=["silicon", "silicon without mig mode", "driver"])
def gpus(request: pytest.FixtureRequest) -> Iterator[Gpus]:
    if request.param == "driver":
        yield NvmlGpus(driver())
    else:
        mig = request.param == "silicon"
        layouts = [[("3g.40gb", 4), ("1g.10gb", 0)]] if mig else []
        yield NvmlGpus(nvml(GpuDriver(A100, 2, mig=mig, layouts=layouts)))


async def test_what_is_read_is_whole_and_read_again_the_same(gpus: Gpus) -> None:
    inventory = await gpus.read()
    assert inventory.driver
    assert [gpu.index for gpu in inventory.gpus] == list(range(len(inventory.gpus)))
    for gpu in inventory.gpus:
        assert gpu.uuid.startswith("GPU-")
        assert " " not in gpu.product
        assert gpu.memory_mib > 1024
        if gpu.mode == "Enabled":
            assert gpu.gpu_model is not None
            assert (
                layout_error(gpu.gpu_model, [instance.placement for instance in gpu.instances])
                is None
            )
        else:
            assert gpu.instances == ()
    assert await gpus.read() == inventory


async def test_one_gpu_is_read_by_its_uuid(gpus: Gpus) -> None:
    for gpu in (await gpus.read()).gpus:
        assert (await gpus.read(gpu.uuid)).gpus == (gpu,)
    with pytest.raises(GpuError):
        await gpus.read("GPU-00000000-0000-0000-0000-000000000000")


async def test_creating_and_destroying_an_instance_twice_is_no_error() -> None:
    gpu_driver = GpuDriver(A100, 1)
    gpus: Gpus = NvmlGpus(nvml(gpu_driver))
    uuid, placement = gpu_driver.gpus[0].uuid, SlicePlacement(4, "3g.40gb")
    for _ in range(2):
        await gpus.create(uuid, placement)
        (instance,) = (await gpus.read()).gpus[0].instances
        assert (instance.placement, instance.uuid) == (
            placement,
            gpu_driver.gpus[0].instances[0].uuid,
        )
    for _ in range(2):
        await gpus.destroy(uuid, placement)
        assert (await gpus.read()).gpus[0].instances == ()


async def test_an_instance_in_use_is_not_destroyed() -> None:
    gpu_driver = GpuDriver(A100, 1, layouts=[[("3g.40gb", 4)]])
    gpus: Gpus = NvmlGpus(nvml(gpu_driver))
    gpu_driver.attach(gpu_driver.gpus[0].instances[0].uuid, 4711)
    with pytest.raises(GpuError, match=r"3g\.40gb@4 is in use by 1 process") as refused:
        await gpus.destroy(gpu_driver.gpus[0].uuid, SlicePlacement(4, "3g.40gb"))
    assert refused.value.fault == "InUse"
    assert gpu_driver.gpus[0].instances[0].computes


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
async def test_every_refusal_has_its_fault_and_the_next_attempt_is_a_new_session(
    code: Code, fault: str
) -> None:
    gpu_driver = GpuDriver(A100, 1)
    gpus: Gpus = NvmlGpus(nvml(gpu_driver))
    gpu_driver.fail("nvmlDeviceCreateGpuInstanceWithPlacement", code)
    placement = SlicePlacement(4, "3g.40gb")
    with pytest.raises(GpuError, match=f"create 3g.40gb@4: NVML error {code.name}") as error:
        await gpus.create(gpu_driver.gpus[0].uuid, placement)
    assert error.value.fault == fault
    gpu_driver.invalidate_handles()
    with contextlib.suppress(GpuError):
        await gpus.read()
    await gpus.create(gpu_driver.gpus[0].uuid, placement)


@pytest.mark.parametrize("model_name", gpu_models())
async def test_the_driver_reports_of_a_gpu_model_what_the_table_says(model_name: str) -> None:
    for product in gpu_models()[model_name].products:
        gpu_model = (await NvmlGpus(nvml(GpuDriver(product, 1))).read()).gpus[0].gpu_model
        assert gpu_model is not None
        table = gpu_models()[model_name]
        assert {
            profile.name: (profile.starts, profile.memory_slices, profile.has_media_engines)
            for profile in gpu_model.profiles
        } == {
            profile.name: (profile.starts, profile.memory_slices, profile.has_media_engines)
            for profile in table.profiles
        }
        assert (gpu_model.compute_slices, gpu_model.memory_slices) == (
            table.compute_slices,
            table.memory_slices,
        )
        for spelling, _ in table.aliases:
            assert gpu_model.find_profile(spelling) is not None


async def test_a_profile_is_found_by_any_of_its_names() -> None:
    gpu_driver = GpuDriver(A100, 1)
    gpus: Gpus = NvmlGpus(nvml(gpu_driver))
    await gpus.create(gpu_driver.gpus[0].uuid, SlicePlacement(4, "3g.39gb"))
    assert (await gpus.read()).gpus[0].instances[0].placement == SlicePlacement(4, "3g.40gb")
    with pytest.raises(GpuError, match=r"has no profile 3g\.50gb") as error:
        await gpus.create(gpu_driver.gpus[0].uuid, SlicePlacement(0, "3g.50gb"))
    assert error.value.fault == "UnknownProfile"


@pytest.mark.parametrize("model_name", sorted(gpu_models()))
async def test_names_that_an_old_driver_does_not_report_are_derived(model_name: str) -> None:
    """The driver lacks the newer call, and no table has its product."""
    for product in gpu_models()[model_name].products[:1]:
        gpu_driver = GpuDriver(product, 1)
        module = nvml(gpu_driver)
        library = vars(module)["nvmlLib"]
        del library.nvmlDeviceGetGpuInstanceProfileInfoV
        vars(module)["nvmlDeviceGetName"] = lambda _handle: "NVIDIA Unheard Of"
        gpu_model = (await NvmlGpus(module).read()).gpus[0].gpu_model
        assert gpu_model is not None
        assert find_gpu_model(gpu_model.name) is None
        table = gpu_models()[model_name]
        known = {profile.name for profile in table.profiles} | {name for name, _ in table.aliases}
        assert {profile.name for profile in gpu_model.profiles} <= known, product
