"""What an aspect is, and what it knows: a placed service, and what was measured of it."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Generic, Literal, NamedTuple, TypeVar

from tessera.api.inference_service import InferenceServiceSpec
from tessera.api.reasons import LoadBalanced, StatusReason, StatusVerdict
from tessera.api.service_status import (
    EnergyStatus,
    InferenceServiceStatus,
    PreemptionStatus,
    SloStatus,
    SpeculationStatus,
    SpeedStatus,
)
from tessera.domain.incremental import Until
from tessera.domain.observed.energy import ServiceEnergy
from tessera.domain.observed.snapshot import ObservedService, Pod, Readings, Ref, Snapshot
from tessera.domain.placement.candidates import HardwareChoice
from tessera.domain.placement.checks import pooling_task
from tessera.domain.reporting.decision import Numbers
from tessera.domain.reporting.event_note import EventNote
from tessera.domain.reporting.series import Sample, Series
from tessera.domain.rollout.balance import BALANCED
from tessera.domain.scaling.load import ServiceReadings

D = TypeVar("D")


class Measurements(NamedTuple):
    """What Prometheus measured of one service, and when."""

    readings: ServiceReadings = ServiceReadings()
    speeds_at: datetime | None = None
    """When the speeds were measured; None without any reading."""
    latency_at: datetime | None = None
    """The same of the latency."""
    energy: ServiceEnergy | None = None
    """That of the last hour."""


def measured_at(readings: Readings | None) -> tuple[datetime | None, datetime | None]:
    """Return when the speeds and the latencies of all services were measured."""
    return (None, None) if readings is None else (readings.speeds_at, readings.latencies_at)


def energy_of(service: Ref, readings: Readings | None) -> ServiceEnergy | None:
    """Return the energy of a service in the last hour; None while it is not known."""
    return None if readings is None else readings.energies.get(service)


class Reported(NamedTuple):
    """What is reported of a service, a value of each aspect by its name; they change rarely."""

    speed: SpeedStatus | None = None
    speculation: SpeculationStatus | None = None
    slo: SloStatus | None = None
    balance: StatusVerdict[LoadBalanced] = BALANCED
    preemption: PreemptionStatus | None = None
    energy: EnergyStatus | None = None


NOT_MEASURED = Reported()


@dataclass(frozen=True, slots=True)
class PlacedService:
    """A service with its hardware and its replicas."""

    service: ObservedService
    choice: HardwareChoice | None
    """That of the variant it was placed on; None while it is not placed."""
    pods: tuple[Pod, ...]
    variants: tuple[HardwareChoice, ...]
    """Those of all variants."""

    @property
    def placement(self) -> tuple[InferenceServiceSpec, HardwareChoice] | None:
        """Return its spec and choice; None while it is not placed."""
        if self.service.spec is None or self.choice is None:
            return None
        return self.service.spec, self.choice

    @property
    def is_pooling(self) -> bool:
        """Return whether its engines generate no text."""
        return self.service.spec is not None and pooling_task(self.service.spec) is not None


def _none(*_: object) -> Iterator[Any]:
    return iter(())


class Explanation(NamedTuple):
    """The numbers of a decision, and what would change it."""

    numbers: Numbers
    would_change: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Aspect(Generic[D]):
    """What is measured of a placed service and reported, as functions of the reported value `D`.

    It decides nothing of this cycle: what acts of it acts by the status, a cycle later.
    """

    name: str
    """The field of the status and of `Reported`, whose value is all that it remembers, and the
    topic of its explanation."""
    measured_by: Literal["loads", "speeds", "latency", "energy"]
    """Which measurements it follows; its series are rendered again with these."""
    condition: str = ""
    """The type of its condition; without one its verdict is explained alone."""
    reported: Callable[[PlacedService], D] | None = None
    """What the status says; by default the value of its field."""
    following: Callable[[PlacedService, Measurements, D, datetime], Until[D]]
    """What follows from measurements; what is reported where these say nothing."""
    verdict: Callable[[PlacedService, D], StatusVerdict[StatusReason] | None] = lambda *_: None
    as_status: Callable[[PlacedService, D], D] | None = lambda _placed, reported: reported
    """The value with what is known without measuring; None where its condition says it all."""
    events: Callable[[InferenceServiceStatus, InferenceServiceStatus], Iterator[EventNote]] = _none
    """Those of a change of what is reported."""
    explain: Callable[[PlacedService, Snapshot, Reported], Explanation | None] = lambda *_: None
    """What is explained beside the verdict, with the numbers of now."""
    series: tuple[Series, ...] = ()
    samples: Callable[[PlacedService, Readings | None, D], Iterator[Sample]] = _none
