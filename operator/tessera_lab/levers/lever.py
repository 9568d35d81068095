"""The levers as data: what each is, what the sources promise of it, and what it asks for."""

import json
from collections.abc import Iterable, Mapping
from enum import StrEnum
from importlib import resources

from tessera.api.meta import Wire
from tessera.domain.incremental import constant


class LeverId(StrEnum):
    """The levers that can be computed, in the order of the ladder.

    Continuous batching and a paged KV cache are none: every vLLM has them.
    """

    RIGHT_SIZE = "right-size"
    QUANTIZATION = "quantization"
    INT4_FILES = "int4-files"
    SPECULATION = "speculation"
    PREFIX_CACHE = "prefix-cache"
    MIG = "mig"
    SCALING = "scaling"
    PRICE_MIX = "price-mix"
    SPOT_BATCH = "spot-batch"
    RESPONSE_CACHE = "response-cache"
    ROUTING = "routing"


class LeverLayer(StrEnum):
    """Where a lever works."""

    MODEL = "Model"
    RUNTIME = "Runtime"
    DEPLOYMENT = "Deployment"


class LeverLevel(StrEnum):
    """Effort or risk of a lever."""

    LOW = "Low"
    MEDIUM = "Medium"
    HIGH = "High"

    @property
    def weight(self) -> int:
        return [*LeverLevel].index(self) + 1


class SavingRange(Wire):
    """Shares of the cost that a lever saves."""

    low: float
    high: float
    source: str = ""
    note: str = ""


class Payback(Wire):
    """When a lever has paid for itself, as a source says."""

    after: str
    source: str


class Lever(Wire):
    """One way to spend less on the same answers."""

    id: str
    title: str
    layer: LeverLayer
    effort: LeverLevel
    risk: LeverLevel
    gate: bool
    """Whether answers change, so that a quality gate has to come first."""
    confidence: float
    """How sure the computed saving is, up to 1: low where it follows from an assumed share."""
    offered: bool
    """Whether Tessera has it today."""
    today: str
    """How it is had today, or what there is instead."""
    operation_hours: float = 0.0
    """Hours per month that its component takes to operate."""
    claimed: SavingRange | None = None
    """What the sources promise."""
    ours: SavingRange | None = None
    """What it saves alone, over the ladders in the documents."""
    payback: Payback | None = None
    blocked: str = ""
    """Why it cannot be computed; empty where it can."""


class LeverOrder(Wire):
    """An order in which a source applies levers."""

    id: str
    source: str
    levers: tuple[LeverId, ...]


class _LeverFile(Wire):
    note: str
    levers: tuple[Lever, ...]
    orders: tuple[LeverOrder, ...]


@constant
def _lever_file() -> _LeverFile:
    text = resources.files("tessera_lab.levers").joinpath("levers.json").read_text("utf-8")
    return _LeverFile.model_validate(json.loads(text))


@constant
def levers() -> Mapping[str, Lever]:
    """Return all levers by id, those of the ladder first and in its order."""
    return {lever.id: lever for lever in _lever_file().levers}


def source_orders() -> tuple[LeverOrder, ...]:
    """Return the orders of the sources."""
    return _lever_file().orders


def stacked_residual(savings: Iterable[float]) -> float:
    """Return what is left of the cost when savings multiply, which are shares of what is left."""
    residual = 1.0
    for saving in savings:
        residual *= 1 - saving
    return residual
