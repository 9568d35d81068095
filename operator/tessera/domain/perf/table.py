"""The shipped table: what GPU families reach of their peaks, by published measurements."""

import json
from collections.abc import Mapping
from functools import cache
from importlib import resources

from tessera.api.meta import Wire
from tessera.domain.perf.roofline import Arithmetic, Shares

_SECONDS_TO_MICRO = 1e-6
_BYTES_TO_GIGA = 1e9


class Host(Wire):
    """What steps cost beside reading and computing, in microseconds."""

    step_micros: float
    layer_micros: float
    reduction_micros: float
    sequence_micros: float


class Layers(Wire):
    """Shares of the peaks with one kind of arithmetic."""

    weights: float
    compute: float
    unhidden: float


class Family(Wire):
    """GPUs of one architecture, whatever their memory."""

    family: str
    """What the names of its products begin with."""
    cache: float
    attention: float
    link_gbs: float
    """1e9 bytes per second between tensor-parallel devices."""
    arithmetic: Mapping[Arithmetic, Layers]


class Errors(Wire):
    """How far off on rows that were not fitted, in percent."""

    decode_mape: float
    prefill_mape: float


class Table(Wire):
    """All that was fitted, and how."""

    source: str
    seed: int
    fitted_rows: int
    held_out_rows: int
    errors: Errors
    host: Host
    usual: Family
    """The geometric means, for hardware without measurements."""
    families: tuple[Family, ...]


@cache
def table() -> Table:
    """The shipped one."""
    text = resources.files("tessera.domain").joinpath("data", "speed.json").read_text("utf-8")
    return Table.model_validate(json.loads(text))


def family_of(found: Table, product: str) -> Family | None:
    """The family of a GPU product, where it was measured."""
    return next((one for one in found.families if product.startswith(one.family)), None)


def shares(host: Host, family: Family, layers: Layers) -> Shares:
    """The same in the units of a step's time."""
    return Shares(
        weights=layers.weights,
        cache=family.cache,
        compute=layers.compute,
        attention=family.attention,
        unhidden=layers.unhidden,
        link=family.link_gbs * _BYTES_TO_GIGA,
        layer_seconds=host.layer_micros * _SECONDS_TO_MICRO,
        reduction_seconds=host.reduction_micros * _SECONDS_TO_MICRO,
        sequence_seconds=host.sequence_micros * _SECONDS_TO_MICRO,
        step_seconds=host.step_micros * _SECONDS_TO_MICRO,
    )
