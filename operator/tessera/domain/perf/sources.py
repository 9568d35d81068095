"""Which speed is believed: measured in this cluster, else the shipped table, else the roofline."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from tessera.api.inference_service import ModelShape
from tessera.domain.hardware.device import Hardware
from tessera.domain.perf import footprint
from tessera.domain.perf.roofline import arithmetic, roofline
from tessera.domain.perf.step import StepTime
from tessera.domain.perf.table import SpeedTable, family_of, peak_shares, shipped_speed_table

# Slowest loading of weights that still counts as starting.
MIN_LOAD_MIB_PER_SECOND = 100
# Fewer say nothing about a model's speed.
MIN_REQUESTS = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasurementKey:
    """What a measured speed holds for, and nothing else."""

    shape: ModelShape
    precision: str | None
    product: str
    profile: str | None
    devices: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SpeedMeasurement:
    """What this cluster saw of one case."""

    ratio: float
    """Measured to predicted time of a step, as `step_time` predicts without it."""
    requests: int
    """How many requests stand behind it."""


def measurement_key(shape: ModelShape, precision: str | None, hardware: Hardware) -> MeasurementKey:
    """The case of a model on one replica's hardware."""
    return MeasurementKey(
        shape=shape,
        precision=precision,
        product=hardware.product,
        profile=hardware.profile,
        devices=hardware.devices,
    )


def step_time(
    shape: ModelShape,
    precision: str | None,
    hardware: Hardware,
    measured: Mapping[MeasurementKey, SpeedMeasurement] = MappingProxyType({}),
) -> StepTime:
    """The steps of a model on one replica's hardware; `source` says how they are known."""
    predicted = predict_step_time(shipped_speed_table(), shape, precision, hardware)
    measurement = measured.get(measurement_key(shape, precision, hardware))
    if measurement is None or measurement.requests < MIN_REQUESTS or measurement.ratio <= 0:
        return predicted
    return predicted.scaled(measurement.ratio, "measured")


def predict_step_time(
    speed_table: SpeedTable, shape: ModelShape, precision: str | None, hardware: Hardware
) -> StepTime:
    """By a table's shares, of a slice as of a whole GPU: the slice has its own bandwidth and
    multiprocessors already. Weights that only lie narrow were not measured anywhere.
    """
    kind = arithmetic(shape, precision, hardware)
    family = family_of(speed_table, hardware.product)
    is_measured = family is not None and kind in family.arithmetic
    used_family = family if family is not None and is_measured else speed_table.usual
    as_measured = footprint.weight_bits(shape, precision) == (8 if kind == "fp8" else 16)
    return roofline(
        shape,
        precision,
        hardware,
        peak_shares(speed_table.host, used_family, used_family.arithmetic[kind]),
        "table" if is_measured and as_measured else "roofline",
    )
