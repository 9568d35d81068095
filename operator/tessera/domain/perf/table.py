"""The shipped speed table: shares of their peaks that GPU families reach in measurements."""

import json
from collections.abc import Mapping
from importlib import resources

from tessera.api.meta import Wire
from tessera.domain.incremental import constant
from tessera.domain.perf.roofline import Arithmetic, PeakShares

_SECONDS_PER_MICRO = 1e-6
_BYTES_PER_GIGABYTE = 1e9


class HostOverhead(Wire):
    """Overhead of a step beside reading and computing, in microseconds."""

    step_micros: float
    layer_micros: float
    reduction_micros: float
    sequence_micros: float


class ArithmeticShares(Wire):
    """Shares of the peaks with one kind of arithmetic."""

    weights: float
    compute: float
    unhidden: float


class GpuFamily(Wire):
    """GPUs of one architecture, whatever their memory."""

    family: str
    """Prefix of the names of its products."""
    cache: float
    attention: float
    link_gbs: float
    """1e9 bytes per second between tensor-parallel devices."""
    arithmetic: Mapping[Arithmetic, ArithmeticShares]


class FitErrors(Wire):
    """Mean absolute errors on rows that were not fitted, in percent."""

    decode_mape: float
    prefill_mape: float


class SpeedTable(Wire):
    """The result of a fit with its inputs and errors."""

    source: str
    seed: int
    fitted_rows: int
    held_out_rows: int
    errors: FitErrors
    host: HostOverhead
    usual: GpuFamily
    """Geometric means of the families, for hardware without measurements."""
    families: tuple[GpuFamily, ...]


@constant
def shipped_speed_table() -> SpeedTable:
    """Return the table that is shipped with the package."""
    text = resources.files("tessera.domain").joinpath("data", "speed.json").read_text("utf-8")
    return SpeedTable.model_validate(json.loads(text))


def family_of(speed_table: SpeedTable, product: str) -> GpuFamily | None:
    """Return the family of a GPU product; None when it was not measured."""
    return next(
        (family for family in speed_table.families if product.startswith(family.family)), None
    )


def peak_shares(host: HostOverhead, family: GpuFamily, layers: ArithmeticShares) -> PeakShares:
    """Return the shares and overheads in the units of `StepTime`."""
    return PeakShares(
        weights=layers.weights,
        cache=family.cache,
        compute=layers.compute,
        attention=family.attention,
        unoverlapped=layers.unhidden,
        link=family.link_gbs * _BYTES_PER_GIGABYTE,
        layer_seconds=host.layer_micros * _SECONDS_PER_MICRO,
        reduction_seconds=host.reduction_micros * _SECONDS_PER_MICRO,
        sequence_seconds=host.sequence_micros * _SECONDS_PER_MICRO,
        step_seconds=host.step_micros * _SECONDS_PER_MICRO,
    )
