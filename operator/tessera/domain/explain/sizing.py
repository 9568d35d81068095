"""The arithmetic behind one replica: memory, limits, speed."""

from collections.abc import Iterator
from dataclasses import replace

from tessera.domain import footprint
from tessera.domain.allotment import ServicePlan
from tessera.domain.checks import shape_of
from tessera.domain.explain.decision import Decision, Numbers
from tessera.domain.limits import Demand, full_step
from tessera.domain.money import per_million_tokens
from tessera.domain.oversize import oversized
from tessera.domain.perf import Measured
from tessera.domain.placement import Choice, considered
from tessera.domain.sizing import GPU_MEMORY_UTILIZATION, Fit, size
from tessera.domain.speed.measured import rate

_SOURCES = {
    "measured": "measured in this cluster",
    "table": "computed from measurements of this GPU family",
    "roofline": "roofline, not measured",
}
_LOOSER = 2
"""The promise times this, to show what it costs."""


def explain_sizing(allotment: ServicePlan) -> Iterator[Decision]:
    """How the model goes onto the chosen hardware; nothing while there is none."""
    choice, spec = allotment.choice, allotment.service.spec
    shape = shape_of(spec) if spec is not None else None
    if choice is None or spec is None or shape is None:
        return
    demand = next(
        one.demand
        for one in considered(spec, shape, (choice.offer,))
        if one.demand.precision == choice.fit.precision
    )
    fit, found = choice.fit, allotment.measured_speed
    source = fit.step.source if found is None else "measured"
    yield Decision(
        topic="sizing",
        reason="Fits",
        message=(
            f"one replica works on {fit.limits.max_num_seqs} requests at a time and gives "
            f"{rate(fit.limits.tokens_per_second, found):.0f} output tokens a second "
            f"({_SOURCES[source]})"
        ),
        numbers=_numbers(choice, demand, found),
        would_change=tuple(_would_change(fit, demand, found)),
    )


def _numbers(choice: Choice, demand: Demand, found: Measured | None) -> Numbers:
    fit, shape = choice.fit, demand.shape
    memory, devices = fit.memory, fit.hardware.devices
    bits = footprint.bits_of(shape, fit.precision)
    limits = fit.limits
    full = full_step(demand, fit.step, limits.max_num_seqs, limits.max_num_batched_tokens)
    given = rate(limits.tokens_per_second, found)
    per_million = per_million_tokens(choice.hourly, given)
    return (
        (
            "weights",
            f"{shape.parameters} parameters x {bits} bits{_kept(demand)} over {devices} of its "
            f"devices = {memory.weights_mib} MiB each",
        ),
        ("reserve", f"{memory.reserve_mib} MiB for activations, workspaces and graphs"),
        (
            "memory",
            f"{fit.hardware.memory_mib} MiB x {GPU_MEMORY_UTILIZATION} = {memory.budget_mib} MiB",
        ),
        ("cache", f"{memory.cache_mib} MiB each, for {memory.kv_tokens} tokens"),
        ("longest request", f"{fit.max_model_len} tokens"),
        (
            "usual request",
            f"{demand.input_tokens} tokens in, {demand.output_tokens} out, {demand.resident} in "
            "the cache half way",
        ),
        ("requests at a time", str(limits.max_num_seqs)),
        (
            "full step",
            f"{limits.max_num_batched_tokens} tokens in {full * 1e3:.1f} ms, promised "
            f"{demand.inter_token.total_seconds() * 1e3:.0f} ms between tokens",
        ),
        ("tokens a second", f"{given:.0f}" + _by(found)),
        ("price of a million tokens", f"{per_million.rounded(4)} {per_million.currency}"),
    )


def _kept(demand: Demand) -> str:
    """What of quantised weights is not."""
    shape = demand.shape
    if footprint.bits_of(shape, demand.precision) >= 16 or not shape.unquantized_parameters:
        return ""
    return f", {shape.unquantized_parameters} of them 16, and their scales"


def _by(found: Measured | None) -> str:
    """The limits are those of the prediction all the same."""
    return "" if found is None else f", steps measured {found.ratio:.2f} times as long as predicted"


def _would_change(fit: Fit, demand: Demand, found: Measured | None) -> Iterator[str]:
    """What other promises and precisions would give on the same hardware."""
    now = fit.limits.tokens_per_second
    looser = size(replace(demand, inter_token=demand.inter_token * _LOOSER), fit.hardware)
    if isinstance(looser, Fit) and looser.limits.tokens_per_second > now:
        promised = demand.inter_token.total_seconds() * 1e3 * _LOOSER
        yield (
            f"spec.slo.interTokenP95 of {promised:.0f}ms would allow "
            f"{looser.limits.max_num_seqs} requests at a time and "
            f"{rate(looser.limits.tokens_per_second, found):.0f} tokens a second"
        )
    if (told := oversized(demand, fit)) is not None:
        yield f"OversizedAccelerator: {told}"
    if fit.precision is None and demand.shape.quantization is None:
        lighter = size(replace(demand, precision="fp8"), fit.hardware)
        if isinstance(lighter, Fit) and lighter.limits.tokens_per_second > now:
            yield (
                "fp8 in spec.precision.variants would give "
                f"{rate(lighter.limits.tokens_per_second, found):.0f} tokens a second on the same "
                "hardware"
            )
    yield (f"spec.context.maxModelLen above {fit.memory.kv_tokens} would not fit here any more")
