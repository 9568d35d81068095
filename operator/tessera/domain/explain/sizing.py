"""Explanation of the size of one replica: memory, scheduler limits and speed."""

from collections.abc import Iterator
from dataclasses import replace

from tessera.api.model_files import ModelShape
from tessera.api.text import counted
from tessera.domain.money import per_million_tokens
from tessera.domain.perf import footprint
from tessera.domain.perf.sources import SpeedMeasurement, as_measured
from tessera.domain.perf.table import MEASURED_VERSION
from tessera.domain.placement.candidates import HardwareChoice, hardware_candidates
from tessera.domain.placement.checks import shape_of
from tessera.domain.planning.service_plan import ServicePlan
from tessera.domain.reporting.decision import Decision, Numbers
from tessera.domain.service.measured_limits import has_cached_prompts
from tessera.domain.sizing import pooling
from tessera.domain.sizing.oversized import oversize_message
from tessera.domain.sizing.scheduler_limits import Demand, full_step_seconds
from tessera.domain.sizing.sizing import ReplicaFit, size
from tessera.domain.speed.measurements import corrected_rate
from tessera.domain.status.variants import speed_error, speed_source

_SOURCES = {
    "Measured": "measured in this cluster",
    "Table": "predicted from measurements of this GPU family",
    "Roofline": "predicted by a roofline, not measured",
}
# The ITL objective is relaxed by this factor to show what it costs.
_SLO_FACTOR = 2


def explain_sizing(service_plan: ServicePlan) -> Iterator[Decision]:
    """Yield the decision about how the model fits on its hardware; nothing while not placed."""
    choice, spec = service_plan.choice, service_plan.service.spec
    shape = shape_of(spec) if spec is not None else None
    if choice is None or spec is None or shape is None:
        return
    demand = next(
        candidate.demand
        for candidate in hardware_candidates(spec, shape, (choice.offer,))
        if candidate.demand.precision == choice.fit.precision
    )
    fit, measurement = choice.fit, service_plan.measured_speed
    source, error = speed_source(service_plan, choice), speed_error(service_plan, choice)
    rate = corrected_rate(fit.limits.tokens_per_second, measurement)
    load = (
        f"reads steps of {counted(fit.limits.max_num_batched_tokens, 'token')}"
        if demand.is_pooling
        else f"serves {counted(fit.limits.max_num_seqs, 'concurrent request')}"
    )
    of_variant = f" of {choice.variant}" if len(service_plan.variants) > 1 else ""
    if has_cached_prompts(service_plan.service.status):
        load += _uncached_clause(fit, demand)
    yield Decision(
        topic="sizing",
        reason="Fits",
        message=f"1 replica{of_variant} {load} at {rate:.0f} {_unit(demand)}"
        f"{'' if error is None else f' with an error of {error:.0%}'} ({_SOURCES[source]})",
        numbers=(
            *_numbers(choice, demand, measurement),
            *_error(fit, error, shape, spec.engine.version, measurement),
        ),
        would_change=tuple(_would_change(fit, demand, measurement)),
    )


def _uncached_clause(fit: ReplicaFit, demand: Demand) -> str:
    """Return how many requests the plan has where the limit was raised; empty for as many."""
    planned = size(demand, fit.hardware)
    if not isinstance(planned, ReplicaFit):
        return ""
    sequences = planned.limits.max_num_seqs
    return f" ({sequences} without cached input)" if sequences < fit.limits.max_num_seqs else ""


def _unit(demand: Demand) -> str:
    return "input tok/s" if demand.is_pooling else "output tok/s"


def _numbers(choice: HardwareChoice, demand: Demand, measured: SpeedMeasurement | None) -> Numbers:
    fit, shape = choice.fit, demand.shape
    memory, devices = fit.memory, fit.hardware.devices
    bits = footprint.weight_bits(shape, fit.precision)
    kv_bits = footprint.cache_bits(shape, demand.engine.kv_bits)
    limits = fit.limits
    tokens_per_second = corrected_rate(limits.tokens_per_second, measured)
    per_million = per_million_tokens(choice.hourly, tokens_per_second)
    note = ""
    if measured is not None:
        # The scheduler limits stay those of the prediction.
        note = f", measured steps take {measured.ratio:.2f} times as long as predicted"
    return (
        (
            "weights",
            f"{shape.parameters} parameters x {bits} bits{_unquantized_note(demand)} on "
            f"{counted(devices, 'device')} = {memory.weights_mib} MiB per device",
        ),
        ("reserve", f"{memory.reserve_mib} MiB for activations, workspaces and CUDA graphs"),
        (
            "memory",
            f"{fit.hardware.memory_mib} MiB x {demand.engine.gpu_memory_utilization} = "
            f"{memory.usable_mib} MiB",
        ),
        (
            "KV cache",
            "none: an encoder keeps nothing of a text"
            if shape.encoder_only
            else f"{memory.cache_mib} MiB per device, for {counted(memory.kv_tokens, 'token')}"
            + (f" of {kv_bits}-bit values" if kv_bits != 16 else ""),
        ),
        ("longest request", counted(fit.max_model_len, "token")),
        *(_pooling_load(fit, demand) if demand.is_pooling else _load(fit, demand)),
        (_unit(demand), f"{tokens_per_second:.0f}{note}"),
        (
            "price per 1M input tokens" if demand.is_pooling else "price per 1M tokens",
            per_million.formatted(4),
        ),
    )


def _error(
    fit: ReplicaFit,
    share: float | None,
    shape: ModelShape,
    version: str,
    measured: SpeedMeasurement | None,
) -> Numbers:
    """Return the error of the speed and the price, by what it was compared with."""
    step = fit.step
    if measured is not None:
        step = as_measured(step, measured.ratio, shape, fit.precision)
    if share is None or step.error is None:
        return ()
    error = step.error
    rows = f"seen in {counted(error.rows, 'step')} of vLLM {MEASURED_VERSION} or older, and this "
    rows += f"engine is {version}"
    if not error.rows:
        rows = "that of other models, since no step of such a model was measured"
    return (
        (
            "error of speed and price",
            f"{share:.0%} ({step.source}): decoding {error.decode:.1%}, prompts "
            f"{error.prompts:.1%}, {rows}",
        ),
    )


def _load(fit: ReplicaFit, demand: Demand) -> Numbers:
    """Return a typical request, and the step of a replica that is full of them."""
    limits = fit.limits
    full = full_step_seconds(demand, fit.step, limits.max_num_seqs, limits.max_num_batched_tokens)
    return (
        (
            "typical request",
            f"{counted(demand.input_tokens, 'token')} in, {demand.output_tokens} out, "
            f"{demand.resident_tokens} in the KV cache half way",
        ),
        ("concurrent requests", str(limits.max_num_seqs)),
        (
            "full step",
            f"{counted(limits.max_num_batched_tokens, 'token')} in {full * 1e3:.1f} ms, ITL SLO "
            f"{demand.inter_token.total_seconds() * 1e3:.0f} ms",
        ),
    )


def _pooling_load(fit: ReplicaFit, demand: Demand) -> Numbers:
    """Return a typical text, and the step of a replica that is full of them."""
    limits = fit.limits
    read = min(limits.max_num_batched_tokens, limits.max_num_seqs * demand.input_tokens)
    answer = pooling.longest_reading(limits, demand.input_tokens).total_seconds()
    return (
        ("typical text", counted(demand.input_tokens, "token")),
        (
            "full step",
            f"{counted(read, 'token')} in {answer / 2 * 1e3:.1f} ms, "
            f"2 of them until an answer, TTFT SLO {demand.ttft.total_seconds() * 1e3:.0f} ms",
        ),
    )


def _unquantized_note(demand: Demand) -> str:
    shape = demand.shape
    if footprint.weight_bits(shape, demand.precision) >= 16 or not shape.unquantized_parameters:
        return ""
    return f", {shape.unquantized_parameters} of them counted with 16 bits, and scales"


def _would_change(
    fit: ReplicaFit, demand: Demand, measurement: SpeedMeasurement | None
) -> Iterator[str]:
    """Yield what another ITL objective or precision would change on the same hardware."""
    current_rate = fit.limits.tokens_per_second
    relaxed_slo = (demand.ttft if demand.is_pooling else demand.inter_token) * _SLO_FACTOR
    relaxed_demand = (
        replace(demand, ttft=relaxed_slo)
        if demand.is_pooling
        else replace(demand, inter_token=relaxed_slo)
    )
    relaxed = size(relaxed_demand, fit.hardware)
    if isinstance(relaxed, ReplicaFit) and relaxed.limits.tokens_per_second > current_rate:
        rate = corrected_rate(relaxed.limits.tokens_per_second, measurement)
        field = "spec.slo.ttftP95" if demand.is_pooling else "spec.slo.itlP95"
        requests = f"{counted(relaxed.limits.max_num_seqs, 'concurrent request')} and "
        yield (
            f"{field} of {relaxed_slo.total_seconds() * 1e3:.0f}ms would allow "
            f"{'' if demand.is_pooling else requests}{rate:.0f} {_unit(demand)}"
        )
    if (oversize := oversize_message(demand, fit)) is not None:
        yield f"OversizedAccelerator: {oversize}"
    if fit.precision is None and demand.shape.quantization is None:
        quantized = size(replace(demand, precision="fp8"), fit.hardware)
        if isinstance(quantized, ReplicaFit) and quantized.limits.tokens_per_second > current_rate:
            rate = corrected_rate(quantized.limits.tokens_per_second, measurement)
            yield f"fp8 in spec.precision.variants would allow {rate:.0f} {_unit(demand)} here"
    if not demand.shape.encoder_only:
        yield f"spec.context.maxModelLen above {fit.memory.kv_tokens} would no longer fit here"
