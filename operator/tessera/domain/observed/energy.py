"""Energy of GPUs as exporters count it: facts of one query."""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import NamedTuple

from tessera.api.ref import Ref


class EnergySource(StrEnum):
    """How energy is known, the best first; a sum is known as its worst part is."""

    MEASURED = "Measured"
    """The GPU's own counter."""
    POWER = "Power"
    """Samples of the GPU's power, times their distance."""
    MODEL = "Model"
    """Watts of the product by the activity of its engines."""


def worst_source(sources: Iterable[EnergySource]) -> EnergySource:
    """Return how a sum of such parts is known; Measured without a part."""
    return max(sources, key=list(EnergySource).index, default=EnergySource.MEASURED)


class DeviceReading(NamedTuple):
    """A GPU, or one MIG instance of it."""

    instance: str
    """`GPU_I_ID`; empty for a whole GPU."""
    profile: str
    """MIG profile; empty for a whole GPU."""
    pod: Ref | None = None
    """Who holds it."""
    activity: float | None = None
    """Share of the last minute in which its engines worked, from 0 to 1; None is not known."""
    is_held: bool = True
    """Whether the pod had it at the newest sample too, not only within the minute of activity."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GPUReading:
    """One GPU as one exporter says it."""

    uuid: str
    """That of the whole GPU, also of MIG instances."""
    node: str
    gpu: str
    """Its index on the node."""
    exporter: str
    """The scrape target."""
    at: datetime
    """When the counter or the power was scraped."""
    millijoules: int | None = None
    """The counter of the whole GPU since its driver was loaded; None where it has none."""
    watts: float | None = None
    """Power of the whole GPU."""
    devices: tuple[DeviceReading, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class EnergyReadings:
    """What one query said of all GPUs."""

    at: datetime
    gpus: tuple[GPUReading, ...] = ()
    """One for each GPU and exporter, so several where two exporters scrape one node."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceEnergy:
    """The energy of a service in the last hour, and what it did with it."""

    joules: float
    source: EnergySource
    output_tokens: float = 0.0
    requests: float = 0.0
