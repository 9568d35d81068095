"""A model under a load, and the hardware that there is."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from tessera.api.model_files import ModelShape
from tessera.domain.hardware.device import Hardware
from tessera_lab.fleet.prices import GpuPrices
from tessera_lab.levers.assumptions import LeverAssumptions
from tessera_lab.levers.replica_rate import LatencyObjectives, LoadSample


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceCase:
    """One service and its month."""

    shape: ModelShape
    load: LoadSample
    objectives: LatencyObjectives
    demand: tuple[tuple[float, float], ...]
    """Spans in seconds with their requests per second; the month repeats them."""
    baseline: Hardware
    """Whole GPUs, before anything is sized."""
    slice: Hardware | None = None
    """The slice that the service runs on; None where one would have to be chosen."""
    precision: str | None = None
    """Of the baseline; None: as in the model's files."""
    prices: Mapping[str, GpuPrices]
    """Of a GPU and hour by product; other products are not considered."""
    draft: ModelShape | None = None
    """Draft model of speculation."""
    small: ModelShape | None = None
    """Model to which routing sends simple requests."""
    static_batches: bool = False
    """Whether engines are those before continuous batching and a paged KV cache."""
    max_model_len: int = 8192
    min_replicas: int = 1
    assumptions: LeverAssumptions = field(default_factory=LeverAssumptions)
