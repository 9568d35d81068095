"""A model under a load, the hardware that there is, and what is assumed of the load."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from tessera.api.inference_service import ModelShape
from tessera.domain.hardware.device import Hardware
from tessera_lab.fleet.prices import GpuPrices
from tessera_lab.levers.replica_rate import LatencyObjectives, LoadSample


@dataclass(frozen=True, slots=True, kw_only=True)
class LeverAssumptions:
    """What no measurement of a load says; each share is from 0 to below 1."""

    hit_share: float = 0.34
    """Requests that a response cache answers: `course` L9. 0.20 to 0.40 are quoted elsewhere."""
    small_share: float = 0.5
    """Requests that a small model answers: `engineering` L560; `management` L117 says 0.85."""
    batch_share: float = 0.1
    """Requests for which nobody waits. No source has a figure."""
    wasted: float = 0.1
    """Work on spot nodes that interruptions waste, as in `tessera mix`."""
    temperature: float = 0.7
    """Sampling temperature, by which drafted tokens are accepted."""
    engineer_hour: float = 100.0
    """Price of an hour of operation. No source has a figure."""


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
    max_model_len: int = 8192
    min_replicas: int = 1
    assumptions: LeverAssumptions = field(default_factory=LeverAssumptions)
