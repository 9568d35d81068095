"""Precisions that a model may run in besides that of its files."""

from typing import Annotated, Literal

from pydantic import Field

from tessera.api.meta import Wire


class PrecisionVariant(Wire):
    """Precision in which the answers are acceptable."""

    precision: Literal["fp8"]
    """`fp8`: the engine quantizes the weights while loading (native on Hopper, weight-only on
    Ampere)."""


class Precision(Wire):
    """Precisions that the model may run in, besides that of its files."""

    variants: Annotated[tuple[PrecisionVariant, ...], Field(max_length=8)] = ()
    """Precisions allowed besides that of the checkpoint; the cheapest that fits is used. No
    precision that changes answers is used unless it is listed here."""
