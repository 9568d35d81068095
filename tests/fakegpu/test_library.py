import asyncio
import os
import subprocess
import sys
from ctypes import byref, c_uint
from pathlib import Path
from types import ModuleType
from typing import Any

import pynvml
import pytest

from fakegpu import remote
from fakegpu.gpu_driver import GpuDriver
from fakegpu.library import Library
from fakegpu.nvml import nvml

A100 = "NVIDIA-A100-SXM4-80GB"
E2E = Path(remote.__file__).parents[1]


def open_device(driver: GpuDriver) -> tuple[ModuleType, Any]:
    module = nvml(driver)
    module.nvmlInit()
    return module, module.nvmlDeviceGetHandleByIndex(0)


def profile(module: ModuleType, device: Any, name: str) -> Any:
    return module.nvmlDeviceGetGpuInstanceProfileInfo(
        device, getattr(module, f"NVML_GPU_INSTANCE_PROFILE_{name}")
    )


def test_every_function_is_one_that_the_package_calls() -> None:
    text = Path(pynvml.__file__).read_text(encoding="utf-8")
    names = vars(Library(lambda _name: None))
    assert [name for name in names if f'GetFunctionPointer("{name}")' not in text] == []


def test_an_instance_is_created_used_and_destroyed_by_the_calls_of_the_package() -> None:
    driver = GpuDriver(A100, 1)
    module, device = open_device(driver)
    info = profile(module, device, "3_SLICE")
    assert (info.name, info.sliceCount, info.memorySizeMB) == ("MIG 3g.40gb", 3, 40192)
    place = module.c_nvmlGpuInstancePlacement_t(start=4, size=4)
    gi = module.nvmlDeviceCreateGpuInstanceWithPlacement(device, info.id, byref(place))
    ci = module.nvmlGpuInstanceCreateComputeInstance(gi, 2)
    mig = module.nvmlComputeInstanceGetInfo(ci).device
    assert module.nvmlDeviceGetUUID(mig) == driver.gpus[0].instances[0].uuid

    driver.attach(module.nvmlDeviceGetUUID(mig), 4711)
    assert [process.pid for process in module.nvmlDeviceGetComputeRunningProcesses(mig)] == [4711]
    with pytest.raises(module.NVMLError_InUse):
        module.nvmlComputeInstanceDestroy(ci)
    with pytest.raises(module.NVMLError_InUse):
        module.nvmlGpuInstanceDestroy(gi)

    driver.detach(module.nvmlDeviceGetUUID(mig))
    module.nvmlComputeInstanceDestroy(ci)
    module.nvmlGpuInstanceDestroy(gi)
    with pytest.raises(module.NVMLError_NotFound):
        module.nvmlGpuInstanceGetInfo(gi)


def test_instances_without_compute_instances_are_listed_though_no_mig_device_shows_them() -> None:
    driver = GpuDriver(A100, 1)
    module, device = open_device(driver)
    info = profile(module, device, "1_SLICE")
    module.nvmlDeviceCreateGpuInstance(device, info.id)
    handles, count = (module.c_nvmlGpuInstance_t * info.instanceCount)(), c_uint(0)
    module.nvmlDeviceGetGpuInstances(device, info.id, handles, byref(count))
    assert count.value == 1
    assert module.nvmlGpuInstanceGetInfo(handles[0]).placement.start == 6
    with pytest.raises(module.NVMLError_NotFound):
        module.nvmlDeviceGetMigDeviceHandleByIndex(device, 0)


def test_an_occupied_placement_and_an_invalid_one_have_different_codes() -> None:
    module, device = open_device(GpuDriver(A100, 1, layouts=[[("3g.40gb", 4)]]))
    info = profile(module, device, "3_SLICE")
    for start, error in (
        (4, module.NVMLError_InsufficientResources),
        (2, module.NVMLError_InvalidArgument),
    ):
        place = module.c_nvmlGpuInstancePlacement_t(start=start, size=4)
        with pytest.raises(error):
            module.nvmlDeviceCreateGpuInstanceWithPlacement(device, info.id, byref(place))


def test_earlier_handles_are_invalid_until_the_library_is_initialized_again() -> None:
    driver = GpuDriver(A100, 1)
    module, device = open_device(driver)
    driver.invalidate_handles()
    with pytest.raises(module.NVMLError_InvalidArgument):
        module.nvmlDeviceGetUUID(device)
    module.nvmlShutdown()
    module.nvmlInit()
    assert module.nvmlDeviceGetUUID(module.nvmlDeviceGetHandleByIndex(0)) == driver.gpus[0].uuid


def test_a_gpu_without_mig_says_so() -> None:
    module, device = open_device(GpuDriver("NVIDIA-L4", 1))
    with pytest.raises(module.NVMLError_NotSupported):
        module.nvmlDeviceGetMigMode(device)


async def test_another_process_reaches_the_gpus_by_importing_the_package(tmp_path: Path) -> None:
    driver = GpuDriver(A100, 2, layouts=[[], [("7g.80gb", 0)]])
    server = await remote.serve(driver, tmp_path / "nvml")
    script = (
        "import pynvml as n; n.nvmlInit(); d = n.nvmlDeviceGetHandleByIndex(1);"
        "m = n.nvmlDeviceGetMigDeviceHandleByIndex(d, 0); print(n.nvmlDeviceGetUUID(m));"
        "d = n.nvmlDeviceGetHandleByIndex(0); n.nvmlDeviceCreateGpuInstance(d, 9)\n"
        "try: n.nvmlDeviceCreateGpuInstance(d, 0)\n"
        "except n.NVMLError_InsufficientResources: print('full')"
    )
    path = os.pathsep.join([str(remote.SHIM), str(E2E), str(E2E.parent / "operator")])
    async with server:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-c",
            script,
            env={"PYTHONPATH": path, remote.SOCKET: str(tmp_path / "nvml")},
            stdout=subprocess.PIPE,
        )
        out, _ = await process.communicate()
    assert out.decode().split() == [driver.gpus[1].instances[0].uuid, "full"]
    assert [instance.start for instance in driver.gpus[0].instances] == [4]
