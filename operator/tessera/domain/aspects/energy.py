"""The energy of a service in the last hour, beside its tokens: status.energy."""

from collections.abc import Iterator
from datetime import datetime
from decimal import Decimal

from tessera.api.reasons import EnergyKnown, StatusVerdict
from tessera.api.service_status import EnergyStatus
from tessera.api.text import counted
from tessera.domain.aspects.aspect import (
    Aspect,
    Explanation,
    Measurements,
    PlacedService,
    Reported,
    energy_of,
)
from tessera.domain.incremental import Until
from tessera.domain.observed.energy import ServiceEnergy
from tessera.domain.observed.snapshot import Readings, Snapshot
from tessera.domain.reporting.series import Sample, Series

# A figure that is off by less stays, so that the status is not written for it.
_TOLERANCE = 0.1
_MESSAGES = {
    EnergyKnown.MEASURED: "by the counters of its GPUs",
    EnergyKnown.POWER: "by samples of the power of its GPUs, which have no counter",
    EnergyKnown.MODEL: "by the watts of its GPU product and the activity of its engines",
}


def joules_per_token(energy: ServiceEnergy) -> float | None:
    """Return the joules of an output token; None without any."""
    return energy.joules / energy.output_tokens if energy.output_tokens >= 1 else None


def watt_hours_per_request(energy: ServiceEnergy) -> float | None:
    """Return the watt-hours of a finished request; None without any."""
    return energy.joules / 3600 / energy.requests if energy.requests >= 1 else None


def _following(
    _placed: PlacedService,
    measurements: Measurements,
    current: EnergyStatus | None,
    _at: datetime,
) -> Until[EnergyStatus | None]:
    energy = measurements.energy
    if energy is None:
        return Until(current)
    measured = EnergyStatus(
        source=energy.source.value,
        joules_per_token=_amount(joules_per_token(energy)),
        watt_hours_per_request=_amount(watt_hours_per_request(energy)),
    )
    return Until(current if current is not None and _is_close(current, measured) else measured)


def _is_close(current: EnergyStatus, measured: EnergyStatus) -> bool:
    pairs = (
        (current.joules_per_token, measured.joules_per_token),
        (current.watt_hours_per_request, measured.watt_hours_per_request),
    )
    return current.source == measured.source and all(
        new is None or (old is not None and abs(new - old) <= Decimal(_TOLERANCE) * old)
        for old, new in pairs
    )


def _amount(value: float | None) -> Decimal | None:
    return None if value is None else Decimal(f"{min(value, 1e9):.6f}")


def _verdict(_placed: PlacedService, status: EnergyStatus | None) -> StatusVerdict[EnergyKnown]:
    if status is None:
        return StatusVerdict(EnergyKnown.NOT_METERED, "no GPU of it was read for a whole window")
    reason = EnergyKnown(status.source)
    return StatusVerdict(reason, _MESSAGES[reason])


def _explain(placed: PlacedService, snapshot: Snapshot, _reported: Reported) -> Explanation | None:
    energy = energy_of(placed.service.ref, snapshot.readings)
    return None if energy is None else Explanation(tuple(_numbers(energy)), ())


def _numbers(energy: ServiceEnergy) -> Iterator[tuple[str, str]]:
    yield "last hour", f"{energy.joules / 3.6e6:.3f} kWh, {energy.joules / 3600:.0f} W on average"
    if (per_token := joules_per_token(energy)) is not None:
        tokens = counted(round(energy.output_tokens), "output token")
        yield "joules per output token", f"{per_token:.3g} over {tokens}"
    if (per_request := watt_hours_per_request(energy)) is not None:
        requests = counted(round(energy.requests), "request")
        yield "Wh per request", f"{per_request:.3g} over {requests}"


_LABELS = ("namespace", "service", "source")
_PER_TOKEN = Series(
    "tessera_service_joules_per_output_token",
    "Joules of the last hour divided by its output tokens; `source`: Measured, Power or Model.",
    *_LABELS,
)
_PER_REQUEST = Series(
    "tessera_service_watt_hours_per_request",
    "Watt-hours of the last hour divided by its finished requests.",
    *_LABELS,
)


def _samples(
    placed: PlacedService, readings: Readings | None, _status: EnergyStatus | None
) -> Iterator[Sample]:
    ref = placed.service.ref
    energy = energy_of(ref, readings)
    if energy is None:
        return
    labels = ref.namespace, ref.name, energy.source
    if (per_token := joules_per_token(energy)) is not None:
        yield _PER_TOKEN, labels, per_token
    if (per_request := watt_hours_per_request(energy)) is not None:
        yield _PER_REQUEST, labels, per_request


ENERGY: Aspect[EnergyStatus | None] = Aspect(
    name="energy",
    measured_by="energy",
    following=_following,
    verdict=_verdict,
    explain=_explain,
    series=(_PER_TOKEN, _PER_REQUEST),
    samples=_samples,
)
