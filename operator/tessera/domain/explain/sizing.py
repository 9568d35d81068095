"""The arithmetic behind one replica: memory, limits, speed."""

from collections.abc import Iterator
from dataclasses import replace

from tessera.domain.explain.decision import Decision, Numbers
from tessera.domain.money import per_million_tokens
from tessera.domain.perf import SpeedMeasurement, footprint
from tessera.domain.placement.checks import shape_of
from tessera.domain.placement.placement import HardwareChoice, hardware_candidates
from tessera.domain.service_plan import ServicePlan
from tessera.domain.sizing.oversized import oversize_message
from tessera.domain.sizing.scheduler_limits import Demand, full_step_seconds
from tessera.domain.sizing.sizing import GPU_MEMORY_UTILIZATION, ReplicaFit, size
from tessera.domain.speed.measurements import corrected_rate

_SOURCES = {
    "measured": "measured in this cluster",
    "table": "computed from measurements of this GPU family",
    "roofline": "roofline, not measured",
}
# The promise times this, to show what it costs.
_SLO_FACTOR = 2


def explain_sizing(allotment: ServicePlan) -> Iterator[Decision]:
    """How the model goes onto the chosen hardware; nothing while there is none."""
    choice, spec = allotment.choice, allotment.service.spec
    shape = shape_of(spec) if spec is not None else None
    if choice is None or spec is None or shape is None:
        return
    demand = next(
        candidate.demand
        for candidate in hardware_candidates(spec, shape, (choice.offer,))
        if candidate.demand.precision == choice.fit.precision
    )
    fit, measurement = choice.fit, allotment.measured_speed
    source = fit.step.source if measurement is None else "measured"
    yield Decision(
        topic="sizing",
        reason="Fits",
        message=(
            f"one replica works on {fit.limits.max_num_seqs} requests at a time and gives "
            f"{corrected_rate(fit.limits.tokens_per_second, measurement):.0f} output tokens a "
            "second "
            f"({_SOURCES[source]})"
        ),
        numbers=_numbers(choice, demand, measurement),
        would_change=tuple(_would_change(fit, demand, measurement)),
    )


def _numbers(
    choice: HardwareChoice, demand: Demand, measurement: SpeedMeasurement | None
) -> Numbers:
    fit, shape = choice.fit, demand.shape
    memory, devices = fit.memory, fit.hardware.devices
    bits = footprint.weight_bits(shape, fit.precision)
    limits = fit.limits
    full = full_step_seconds(demand, fit.step, limits.max_num_seqs, limits.max_num_batched_tokens)
    tokens_per_second = corrected_rate(limits.tokens_per_second, measurement)
    per_million = per_million_tokens(choice.hourly, tokens_per_second)
    return (
        (
            "weights",
            f"{shape.parameters} parameters x {bits} bits{_unquantized_note(demand)} over "
            f"{devices} of its "
            f"devices = {memory.weights_mib} MiB each",
        ),
        ("reserve", f"{memory.reserve_mib} MiB for activations, workspaces and graphs"),
        (
            "memory",
            f"{fit.hardware.memory_mib} MiB x {GPU_MEMORY_UTILIZATION} = {memory.usable_mib} MiB",
        ),
        ("cache", f"{memory.cache_mib} MiB each, for {memory.kv_tokens} tokens"),
        ("longest request", f"{fit.max_model_len} tokens"),
        (
            "usual request",
            f"{demand.input_tokens} tokens in, {demand.output_tokens} out, "
            f"{demand.resident_tokens} in "
            "the cache half way",
        ),
        ("requests at a time", str(limits.max_num_seqs)),
        (
            "full step",
            f"{limits.max_num_batched_tokens} tokens in {full * 1e3:.1f} ms, promised "
            f"{demand.inter_token.total_seconds() * 1e3:.0f} ms between tokens",
        ),
        ("tokens a second", f"{tokens_per_second:.0f}" + _measurement_note(measurement)),
        ("price of a million tokens", f"{per_million.rounded(4)} {per_million.currency}"),
    )


def _unquantized_note(demand: Demand) -> str:
    """What of quantised weights is not."""
    shape = demand.shape
    if footprint.weight_bits(shape, demand.precision) >= 16 or not shape.unquantized_parameters:
        return ""
    return f", {shape.unquantized_parameters} of them 16, and their scales"


def _measurement_note(measurement: SpeedMeasurement | None) -> str:
    """The limits are those of the prediction all the same."""
    return (
        ""
        if measurement is None
        else f", steps measured {measurement.ratio:.2f} times as long as predicted"
    )


def _would_change(
    fit: ReplicaFit, demand: Demand, measurement: SpeedMeasurement | None
) -> Iterator[str]:
    """What other promises and precisions would give on the same hardware."""
    current_rate = fit.limits.tokens_per_second
    looser = size(replace(demand, inter_token=demand.inter_token * _SLO_FACTOR), fit.hardware)
    if isinstance(looser, ReplicaFit) and looser.limits.tokens_per_second > current_rate:
        promised = demand.inter_token.total_seconds() * 1e3 * _SLO_FACTOR
        yield (
            f"spec.slo.interTokenP95 of {promised:.0f}ms would allow "
            f"{looser.limits.max_num_seqs} requests at a time and "
            f"{corrected_rate(looser.limits.tokens_per_second, measurement):.0f} tokens a second"
        )
    if (oversize := oversize_message(demand, fit)) is not None:
        yield f"OversizedAccelerator: {oversize}"
    if fit.precision is None and demand.shape.quantization is None:
        lighter = size(replace(demand, precision="fp8"), fit.hardware)
        if isinstance(lighter, ReplicaFit) and lighter.limits.tokens_per_second > current_rate:
            yield (
                "fp8 in spec.precision.variants would give "
                f"{corrected_rate(lighter.limits.tokens_per_second, measurement):.0f} tokens a "
                "second on the same "
                "hardware"
            )
    yield (f"spec.context.maxModelLen above {fit.memory.kv_tokens} would not fit here any more")
