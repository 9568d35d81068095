"""The page that dcgm-exporter shows, by GPU and by MIG instance.

`UUID` is that of the GPU also for its instances. Power and energy are those of the whole GPU, which
each of its instances repeats; real pages have the very same energy on all of them, and powers that
differ by a fraction where they were read one after the other. The label of the node is `hostname`
since dcgm-exporter's pull request 655 (of April 2026); exporters before it print `Hostname`.
"""

from collections.abc import Iterator, Mapping, Sequence

from tessera.domain.hardware.gpu_catalog import products
from world.gpus.power import EnergyCounter
from world.kubelet.devices import Device, Holder
from world.labels import DRIVER
from world.product_names import product_names

# Modelled, not measured: the world knows when an engine is in a step, not what the step does. A
# decoding engine is bound by memory and leaves most of the tensor pipes idle.
TENSOR_SHARE = 0.25
MEMORY_SHARE = 0.65
# What vLLM takes of a device's memory at its start, and keeps: --gpu-memory-utilization.
GPU_MEMORY_UTILIZATION = 0.9

POWER = "DCGM_FI_DEV_POWER_USAGE"
ENERGY = "DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION"
HELP = {
    POWER: "Power draw (in W).",
    ENERGY: "Total energy consumption since boot (in mJ).",
    "DCGM_FI_DEV_GPU_UTIL": "GPU utilization (in %).",
    "DCGM_FI_DEV_FB_FREE": "Framebuffer memory free (in MiB).",
    "DCGM_FI_DEV_FB_USED": "Framebuffer memory used (in MiB).",
    "DCGM_FI_PROF_GR_ENGINE_ACTIVE": "Ratio of time the graphics engine is active.",
    "DCGM_FI_PROF_PIPE_TENSOR_ACTIVE": "Ratio of cycles the tensor (HMMA) pipe is active.",
    "DCGM_FI_PROF_DRAM_ACTIVE": (
        "Ratio of cycles the device memory interface is active sending or receiving data."
    ),
}

HeldDevices = Sequence[tuple[Device, Holder | None]]
Counters = Mapping[str, EnergyCounter]


def page(devices: HeldDevices, activity: Mapping[Holder, float], counters: Counters) -> str:
    """What the exporter of a node answers; the counters of its GPUs are by UUID."""
    return "".join(line for metric in HELP for line in _metric(metric, devices, activity, counters))


def _metric(
    metric: str, devices: HeldDevices, activity: Mapping[Holder, float], counters: Counters
) -> Iterator[str]:
    kind = "counter" if metric == ENERGY else "gauge"
    yield f"# HELP {metric} {HELP[metric]}\n# TYPE {metric} {kind}\n"
    for device, holder in devices:
        busy = 0.0 if holder is None else activity.get(holder, 0.0)
        if metric in (POWER, ENERGY):
            value = _whole_value(metric, counters.get(device.gpu_uuid))
        else:
            value = _value(metric, device, holder, busy)
        if value is not None:
            yield f"{metric}{{{_labels(device, holder)}}} {value}\n"


def _whole_value(metric: str, counter: EnergyCounter | None) -> str | None:
    if counter is None:
        return None
    return f"{counter.watts:.6f}" if metric == POWER else str(int(counter.joules * 1000))


def _value(metric: str, device: Device, holder: Holder | None, busy: float) -> str | None:
    used = 0 if holder is None else int(device.memory_mib * GPU_MEMORY_UTILIZATION)
    match metric:
        case "DCGM_FI_DEV_FB_USED":
            return str(used)
        case "DCGM_FI_DEV_FB_FREE":
            return str(device.memory_mib - used)
        case "DCGM_FI_DEV_GPU_UTIL":
            # The driver has none for MIG instances.
            return str(round(100 * busy)) if device.placed is None else None
        case "DCGM_FI_PROF_PIPE_TENSOR_ACTIVE":
            return f"{busy * TENSOR_SHARE:.6f}"
        case "DCGM_FI_PROF_DRAM_ACTIVE":
            return f"{busy * MEMORY_SHARE:.6f}"
        case _:
            return f"{busy:.6f}"


def _labels(device: Device, holder: Holder | None) -> str:
    labels = {
        "gpu": str(device.gpu),
        "UUID": device.gpu_uuid,
        "pci_bus_id": f"00000000:{0x10 + device.gpu:02X}:00.0",
        "device": f"nvidia{device.gpu}",
        "modelName": product_names(products()[device.product]).model,
    }
    if device.placed is not None:
        labels |= {
            "GPU_I_PROFILE": device.placed.profile,
            "GPU_I_ID": str(device.placed.instance),
        }
    labels |= {"hostname": device.node, "DCGM_FI_DRIVER_VERSION": DRIVER}
    if holder is not None:
        labels |= {
            "container": holder.container,
            "namespace": holder.namespace,
            "pod": holder.pod,
        }
    return ",".join(f'{name}="{value}"' for name, value in labels.items())
