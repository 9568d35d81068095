"""The shipped speed table: shares of their peaks that GPU families reach in measurements."""

import json
from collections.abc import Mapping
from importlib import resources
from typing import Literal

from tessera.api.meta import Wire
from tessera.api.model_files import ModelShape
from tessera.api.variant_status import SpeedSource
from tessera.domain.hardware.gpu_catalog import products
from tessera.domain.incremental import constant
from tessera.domain.perf import footprint
from tessera.domain.perf.roofline import (
    Arithmetic,
    ExpertKernel,
    ExpertPeakShares,
    PeakShares,
    takes_machete,
)
from tessera.domain.perf.step import PredictionError

# Kinds of models whose steps have parts of their own; a model may be of several. `Other` is in no
# measurement: layers that keep states or latent vectors, and encoders.
ModelKind = Literal["Dense", "Windows", "Experts", "Int4", "Other"]

# Of the vLLM whose steps the errors are of.
MEASURED_VERSION = "0.26.0"

_SECONDS_PER_MICRO = 1e-6
_SECONDS_PER_NANO = 1e-9
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


class Int4Kernel(Wire):
    """A kernel that multiplies dense weights of 4 bits with values of 16, with its shares."""

    name: str
    capability: str
    """CUDA compute capability of the GPUs that it runs on."""
    fitted_rows: int
    """Measured steps that the shares were fitted on."""
    shares: ArithmeticShares


class GpuFamily(Wire):
    """GPUs of one architecture, whatever their memory."""

    family: str
    """Prefix of the names of its products."""
    cache: float
    attention: float
    link_gbs: float
    """1e9 bytes per second between tensor-parallel devices."""
    arithmetic: Mapping[Arithmetic, ArithmeticShares]


class ExpertShares(ArithmeticShares):
    """Shares of the peaks with one kernel of experts."""

    layer_micros: float
    """Microseconds of each layer beside reading and computing."""


class ExpertFamily(Wire):
    """Kernels of experts on GPUs of one architecture."""

    family: str
    """Prefix of the names of its products."""
    engine: str
    """Version of vLLM whose kernels were measured."""
    kernels: Mapping[ExpertKernel, ExpertShares]


class PromptFloor(Wire):
    """The least that the experts take for a prompt, as measured on one GPU."""

    family: str
    """Prefix of the names of the products that it applies to."""
    row_nanos: float
    """Nanoseconds of one token in one expert of one layer."""
    tokens_per_expert: float
    """Tokens of each expert up to which it applies."""
    experts: int
    """Experts of a layer up to which it applies: as many as were measured."""


class ExpertTable(Wire):
    """Shares of the kernels of experts."""

    source: str
    prompts: PromptFloor
    usual: Mapping[ExpertKernel, ExpertShares]
    """Geometric means of the families, for hardware without measurements."""
    families: tuple[ExpertFamily, ...]


class FitErrors(Wire):
    """Mean absolute errors on rows that were not fitted, in percent."""

    decode_mape: float
    prefill_mape: float


class KindError(Wire):
    """Root mean squares of relative errors of one kind of model, with step times of one source."""

    kind: ModelKind
    source: SpeedSource
    family: str = ""
    """Prefix of the GPUs whose steps were compared; empty of all others."""
    decode: float
    prompts: float
    rows: int
    """Measured steps that were compared."""


class SpeedTable(Wire):
    """The result of a fit with its inputs and errors."""

    source: str
    seed: int
    fitted_rows: int
    held_out_rows: int
    fit_errors: FitErrors
    errors: tuple[KindError, ...]
    """Errors by kind and source, those of a family first; `Roofline` has at least `Dense`."""
    host: HostOverhead
    int4: tuple[Int4Kernel, ...] = ()
    """Measured kernels of 4-bit weights; the others have the shares of 16 bits, as `Roofline`."""
    usual: GpuFamily
    """Geometric means of the families, for hardware without measurements."""
    families: tuple[GpuFamily, ...]
    experts: ExpertTable

    def kind_error(self, kind: ModelKind, source: SpeedSource, product: str) -> KindError:
        """Return the error of one kind of model on a GPU product, else that of `Roofline`."""
        options: tuple[tuple[ModelKind, SpeedSource], ...] = (
            (kind, source),
            (kind, "Roofline"),
            ("Dense", "Roofline"),
        )
        for known, origin in options:
            for error in self.errors:
                matches = error.kind == known and error.source == origin
                if matches and product.startswith(error.family):
                    return error
        raise ValueError("the table of speeds has no error of dense models by Roofline")


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


def int4_shares(
    speed_table: SpeedTable, shape: ModelShape, precision: str | None, product: str
) -> ArithmeticShares | None:
    """Return the shares of the kernel that multiplies a model's 4-bit weights on a GPU.

    Returns None of others, and where the kernel was not measured.
    """
    if not takes_machete(shape, precision) or (known := products().get(product)) is None:
        return None
    return next(
        (kernel.shares for kernel in speed_table.int4 if kernel.capability == known.capability),
        None,
    )


def measured_experts(
    experts: ExpertTable, product: str, kernel: ExpertKernel
) -> ExpertShares | None:
    """Return the shares of a kernel of experts on a GPU product; None when it was not measured."""
    return next(
        (
            family.kernels.get(kernel)
            for family in experts.families
            if product.startswith(family.family)
        ),
        None,
    )


def peak_shares(host: HostOverhead, family: GpuFamily, layers: ArithmeticShares) -> PeakShares:
    """Return the shares and overheads in the units of `StepTime`, without those of experts."""
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


def expert_peak_shares(
    experts: ExpertTable, shares: ExpertShares, product: str
) -> ExpertPeakShares:
    """Return the shares of a kernel of experts on a GPU product in the units of `StepTime`."""
    prompts = experts.prompts
    row_nanos = prompts.row_nanos if product.startswith(prompts.family) else 0.0
    return ExpertPeakShares(
        weights=shares.weights,
        compute=shares.compute,
        unoverlapped=shares.unhidden,
        layer_seconds=shares.layer_micros * _SECONDS_PER_MICRO,
        prompt_row_seconds=row_nanos * _SECONDS_PER_NANO,
        prompt_tokens=prompts.tokens_per_expert,
        prompt_experts=prompts.experts,
    )


def prediction_error(
    speed_table: SpeedTable,
    shape: ModelShape,
    precision: str | None,
    source: SpeedSource,
    product: str,
) -> PredictionError:
    """Return the error of a model's predicted steps on a GPU product.

    A model of several kinds has the largest error of them, and one of a kind that was not measured
    that of `Roofline`. Both are errors of other models, so they have 0 rows.
    """
    errors = [
        speed_table.kind_error(kind, source, product) for kind in model_kinds(shape, precision)
    ]
    return PredictionError(
        decode=max([error.decode for error in errors]),
        prompts=max([error.prompts for error in errors]),
        rows=errors[0].rows if len(errors) == 1 and errors[0].source == source else 0,
    )


def model_kinds(shape: ModelShape, precision: str | None) -> tuple[ModelKind, ...]:
    """Return the kinds that a model is of, `Dense` if no other."""
    kinds: list[ModelKind] = []
    if shape.sliding_window and shape.sliding_layers:
        kinds.append("Windows")
    if shape.active_parameters is not None:
        kinds.append("Experts")
    if footprint.weight_bits(shape, precision) == 4:
        kinds.append("Int4")
    if shape.state_layers or shape.latent_dim or shape.encoder_only:
        kinds.append("Other")
    return tuple(kinds) or ("Dense",)
