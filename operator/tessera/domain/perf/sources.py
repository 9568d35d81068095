"""The choice of a speed source: measured in this cluster, else the table, else the roofline."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

from tessera.api.model_files import ModelShape
from tessera.api.service_status import SpeculationStatus, SpeedStatus
from tessera.api.variant_status import SpeedSource
from tessera.domain.hardware.device import Hardware
from tessera.domain.perf import footprint
from tessera.domain.perf.engine_terms import DEFAULT_TERMS, EngineTerms
from tessera.domain.perf.roofline import arithmetic, expert_kernel, roofline
from tessera.domain.perf.speculation import expected_tokens
from tessera.domain.perf.step import Drafting, StepTime
from tessera.domain.perf.table import (
    SpeedTable,
    expert_peak_shares,
    family_of,
    int4_shares,
    measured_experts,
    peak_shares,
    prediction_error,
    shipped_speed_table,
)

# A replica that loads its weights more slowly counts as stalled.
MIN_LOAD_MIB_PER_SECOND = 100
# Fewer requests say nothing about a model's speed.
MIN_REQUESTS = 100
# The speed is not as predicted where the ITL differs by more than this share.
OFF_TOLERANCE = 0.15
# The further time of a layer whose kernels are launched one by one: 22.5 instead of 13 ms for the
# 28 layers of a 7B model on an A800 (vllm-project/vllm-omni#7960). A longer step hides some of it.
_LAUNCH_SECONDS = 0.34e-3
# No engine is further from its prediction; what shows more is no measurement.
_MIN_RATIO, _MAX_RATIO = 0.2, 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasurementKey:
    """The combination of model, precision and hardware that a measured speed applies to."""

    shape: ModelShape
    precision: str | None
    product: str
    profile: str | None
    devices: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SpeedMeasurement:
    """The measured speed of one `MeasurementKey` in this cluster."""

    ratio: float
    """Measured time of a step divided by the predicted one."""
    requests: int
    """Number of requests that were measured."""


def measurement_key(shape: ModelShape, precision: str | None, hardware: Hardware) -> MeasurementKey:
    """Return the key of a model on one replica's hardware."""
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
    engine: EngineTerms = DEFAULT_TERMS,
    measured: Mapping[MeasurementKey, SpeedMeasurement] = MappingProxyType({}),
) -> StepTime:
    """Return the step time of a model on one replica's hardware; `source` says how it is known."""
    predicted = predict_step_time(shipped_speed_table(), shape, precision, hardware)
    if (kv_bits := footprint.cache_bits(shape, engine.kv_bits)) != 16:
        # The prediction reads 16 bits.
        predicted = replace(
            predicted,
            kv_token=predicted.kv_token * kv_bits / 16,
            windowed_token=predicted.windowed_token * kv_bits / 16,
        )
    if engine.launches_layers:
        predicted = replace(predicted, fixed=predicted.fixed + shape.layers * _LAUNCH_SECONDS)
    if engine.draft_tokens:
        drafting = _drafting(replace(engine, kv_bits=kv_bits), hardware)
        predicted = replace(predicted, drafting=drafting)
    measurement = measured.get(measurement_key(shape, precision, hardware))
    if measurement is None or measurement.requests < MIN_REQUESTS or measurement.ratio <= 0:
        return predicted
    return as_measured(predicted, measurement.ratio, shape, precision)


def as_measured(
    predicted: StepTime, ratio: float, shape: ModelShape, precision: str | None
) -> StepTime:
    """Return the step time of a model times the ratio that this cluster measured.

    A ratio beyond what can be one counts as the bound, with the error of the roofline.
    """
    bounded = plausible_ratio(ratio)
    error_source: SpeedSource = "Measured" if _MIN_RATIO < bounded < _MAX_RATIO else "Roofline"
    error = prediction_error(shipped_speed_table(), shape, precision, error_source, "")
    return predicted.scaled(bounded, "Measured", error)


def _drafting(engine: EngineTerms, hardware: Hardware) -> Drafting:
    """Return what drafts add to a step; their model has the precision of its files."""
    draft_step = None
    if engine.draft is not None:
        terms = replace(engine, draft=None, draft_tokens=0)
        draft_step = step_time(engine.draft, None, hardware, terms)
    accepted = expected_tokens(engine.acceptance, engine.draft_tokens) - 1
    return Drafting(tokens=engine.draft_tokens, accepted=accepted, step=draft_step)


def plausible_ratio(ratio: float) -> float:
    """Return a measured ratio within the bounds of what can be one."""
    return min(max(ratio, _MIN_RATIO), _MAX_RATIO)


def measured_ratio(speed: SpeedStatus | None, model: str, variant: str | None) -> float | None:
    """Return the measured time of a step divided by the predicted one, from a service's status.

    Returns None where it is not of this model and variant, or of too few requests.
    """
    if speed is None or (speed.model, speed.variant) != (model, variant):
        return None
    return plausible_ratio(float(speed.ratio)) if speed.requests >= MIN_REQUESTS else None


def measured_tokens_per_step(speculation: SpeculationStatus | None) -> float | None:
    """Return the measured tokens that a step yields of each request, from a service's status."""
    measured = speculation.tokens_per_step if speculation is not None else None
    return None if measured is None else float(measured)


def predict_step_time(
    speed_table: SpeedTable, shape: ModelShape, precision: str | None, hardware: Hardware
) -> StepTime:
    """Return the step time by the shares of a table.

    The shares of a whole GPU hold for its slices too, whose peaks are smaller.
    """
    arithmetic_kind = arithmetic(shape, precision, hardware)
    family = family_of(speed_table, hardware.product)
    family_measured = family is not None and arithmetic_kind in family.arithmetic
    used_family = family if family is not None and family_measured else speed_table.usual
    # Narrow weights that are widened before computing are in no published measurement, but of one
    # kernel of 4 bits.
    int4 = int4_shares(speed_table, shape, precision, hardware.product)
    weights_as_measured = int4 is not None or footprint.weight_bits(shape, precision) == (
        8 if arithmetic_kind == "fp8" else 16
    )
    layers = int4 or used_family.arithmetic[arithmetic_kind]
    shares = peak_shares(speed_table.host, used_family, layers)
    from_table = family_measured and weights_as_measured
    if shape.active_parameters is not None:
        experts = speed_table.experts
        kernel = expert_kernel(shape, precision, fp8=arithmetic_kind == "fp8")
        measured = measured_experts(experts, hardware.product, kernel)
        from_table = from_table and measured is not None
        used = expert_peak_shares(experts, measured or experts.usual[kernel], hardware.product)
        shares = replace(shares, experts=used)
    source: SpeedSource = "Table" if from_table else "Roofline"
    error = prediction_error(speed_table, shape, precision, source, hardware.product)
    return roofline(shape, precision, hardware, shares, source, error)
