"""Which speed is believed: measured in this cluster, else the shipped table, else the roofline."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from tessera.api.inference_service import ModelShape
from tessera.domain import footprint
from tessera.domain.hardware import Hardware
from tessera.domain.perf.roofline import arithmetic, roofline
from tessera.domain.perf.step import StepTime
from tessera.domain.perf.table import Table, family_of, shares, table

LOAD_MIB_PER_SECOND = 100
"""Slowest loading of weights that still counts as starting."""
ENOUGH_REQUESTS = 100
"""Fewer say nothing about a model's speed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """What a measured speed holds for, and nothing else."""

    shape: ModelShape
    precision: str | None
    product: str
    profile: str | None
    devices: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """What this cluster saw of one case."""

    ratio: float
    """Measured to predicted time of a step, as `step_time` predicts without it."""
    requests: int
    """How many requests stand behind it."""


def case_of(shape: ModelShape, precision: str | None, hardware: Hardware) -> Case:
    """The case of a model on one replica's hardware."""
    return Case(
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
    measured: Mapping[Case, Measured] = MappingProxyType({}),
) -> StepTime:
    """The steps of a model on one replica's hardware; `source` says how they are known."""
    predicted = predict(table(), shape, precision, hardware)
    seen = measured.get(case_of(shape, precision, hardware))
    if seen is None or seen.requests < ENOUGH_REQUESTS or seen.ratio <= 0:
        return predicted
    return predicted.times(seen.ratio, "measured")


def predict(found: Table, shape: ModelShape, precision: str | None, hardware: Hardware) -> StepTime:
    """By a table's shares, of a slice as of a whole GPU: the slice has its own bandwidth and
    multiprocessors already. Weights that only lie narrow were not measured anywhere.
    """
    kind = arithmetic(shape, precision, hardware)
    family = family_of(found, hardware.product)
    known = family is not None and kind in family.arithmetic
    used = family if family is not None and known else found.usual
    as_measured = footprint.bits_of(shape, precision) == (8 if kind == "fp8" else 16)
    return roofline(
        shape,
        precision,
        hardware,
        shares(found.host, used, used.arithmetic[kind]),
        "table" if known and as_measured else "roofline",
    )
