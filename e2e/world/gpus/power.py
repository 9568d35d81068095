"""What GPUs draw, and the energy that they have counted.

Power follows the empirical curve of Fan, Weber and Barroso, "Power Provisioning for a
Warehouse-sized Computer" (ISCA 2007), from idle to most: `2u - u ** 1.4`. It was fitted to servers;
here it stands for GPUs, and what it shares with them is that the first load costs the most.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from tessera.domain.hardware.gpu_catalog import products
from world.kubelet.devices import Device

EXPONENT = 1.4

# Idle and most, in watts: idle as nvidia-smi and dcgm-exporter print it in public on one machine
# each (A100: of A800s), most by NVIDIA's data sheets. Of any other product there is no reading, as
# in guests whose driver has none.
WATTS = {
    "NVIDIA-A100-SXM4-40GB": (51.0, 400.0),
    "NVIDIA-A100-SXM4-80GB": (56.0, 400.0),
    "NVIDIA-H100-80GB-HBM3": (73.0, 700.0),
    "NVIDIA-H200": (74.0, 700.0),
    "NVIDIA-L40S": (36.0, 350.0),
}


@dataclass(slots=True)
class EnergyCounter:
    """What one GPU draws, and has drawn since its driver was loaded."""

    watts: float
    joules: float = 0.0


@dataclass(slots=True)
class EnergyCounters:
    """Those of the GPUs of one node, by UUID; exporters come and go without them."""

    by_uuid: dict[str, EnergyCounter] = field(default_factory=dict)
    _at: float | None = None

    def advance(self, watts: Mapping[str, float], now: float) -> None:
        """Add what GPUs drew since the last time, on average so many watts each."""
        seconds = 0.0 if self._at is None else now - self._at
        self._at = now
        for uuid, average in watts.items():
            counter = self.by_uuid.setdefault(uuid, EnergyCounter(average))
            counter.watts = average
            counter.joules += average * seconds

    def reset(self) -> None:
        """The driver is loaded again: they begin at 0 when they are read next."""
        self.by_uuid.clear()
        self._at = None


def power(product: str, utilization: float) -> float:
    """The watts of a GPU that is busy to such a share."""
    idle, most = WATTS[product]
    return idle + (most - idle) * (2 * utilization - math.pow(utilization, EXPONENT))


def utilizations(busy_devices: Iterable[tuple[Device, float]]) -> dict[str, float]:
    """How busy GPUs are, by UUID: the activity of their devices by multiprocessors."""
    utilization: dict[str, float] = {}
    for device, activity in busy_devices:
        whole = products()[device.product].multiprocessors
        own = whole if device.placed is None else device.placed.slice.multiprocessors
        before = utilization.get(device.gpu_uuid, 0.0)
        utilization[device.gpu_uuid] = min(before + activity * own / whole, 1.0)
    return utilization
