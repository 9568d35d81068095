"""Limits of `spec.engine` without which a model would fit."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from tessera.api.meta import format_duration
from tessera.api.text import counted
from tessera.domain.hardware.device import Hardware
from tessera.domain.perf.engine_terms import GPU_MEMORY_UTILIZATION
from tessera.domain.sizing.scheduler_limits import Demand, SchedulerLimits, full_step_seconds
from tessera.domain.sizing.sizing import ReplicaFit, ReplicaMisfit

# Sizes a demand on hardware.
Sizing = Callable[[Demand, Hardware], ReplicaFit | ReplicaMisfit]
_NO_SEQUENCES = {"max_num_seqs": None}
_NO_TOKENS = {"max_num_batched_tokens": None}
# What is left to sizing in turn, by the field that the message names.
_FREED: Mapping[str, Mapping[str, Any]] = {
    "maxNumSeqs": _NO_SEQUENCES,
    "maxNumBatchedTokens": _NO_TOKENS,
    "maxNumBatchedTokens with maxNumSeqs": _NO_SEQUENCES | _NO_TOKENS,
    "chunkedPrefill": _NO_SEQUENCES | _NO_TOKENS | {"chunked_prefill": True},
    "speculation": {"draft": None, "draft_tokens": 0},
}


class _FreedFit(NamedTuple):
    """A misfit that fits without a limit."""

    demand: Demand
    misfit: ReplicaMisfit
    fit: ReplicaFit


def unmet_limit(misfits: Sequence[tuple[Demand, ReplicaMisfit]], size: Sizing) -> str | None:
    """Return which limit no hardware keeps, and the limits that the fastest of it has without.

    Returns None where the model is too slow without any limit.
    """
    for field, change in _FREED.items():
        fits = [
            _FreedFit(demand, misfit, fit)
            for demand, misfit in misfits
            if (freed := replace(demand, engine=replace(demand.engine, **change))) != demand
            and isinstance(fit := size(freed, misfit.hardware), ReplicaFit)
        ]
        if fits:
            return _message(field, max(fits, key=lambda freed: freed.fit.limits.tokens_per_second))
    return None


def memory_remedies(demand: Demand, hardware: Hardware, size: Sizing) -> list[str]:
    """Return what may be left out of a spec so that its model has memory on this hardware."""
    engine = demand.engine
    share = max(engine.gpu_memory_utilization, GPU_MEMORY_UTILIZATION)
    freed: Mapping[str, Mapping[str, Any]] = {
        "no spec.engine.gpuMemoryUtilization": {"gpu_memory_utilization": share},
        "no spec.engine.maxNumSeqs": _NO_SEQUENCES,
        "no spec.engine.maxNumBatchedTokens": _NO_TOKENS,
        "no draft model in spec.engine.speculation": {"draft": None},
    }
    demands = {
        remedy: replace(demand, engine=replace(engine, **change))
        for remedy, change in freed.items()
    }
    demands["fewer spec.model.adapters"] = replace(demand, adapters_mib=0)
    return [
        remedy
        for remedy, each in demands.items()
        if each != demand and _has_memory(size(each, hardware))
    ]


def _has_memory(fit: ReplicaFit | ReplicaMisfit) -> bool:
    return isinstance(fit, ReplicaFit) or fit.needed_mib == 0


def _message(field: str, freed: _FreedFit) -> str:
    demand, fit = freed.demand, freed.fit
    on_hardware = f"on {fit.hardware.name} of {fit.hardware.product}"
    if field == "maxNumSeqs":
        limits: SchedulerLimits = freed.misfit.limits or fit.limits
        most = limits.max_num_seqs
        requested = counted(demand.engine.max_num_seqs or 1, "request")
        size, bounds = counted(demand.resident_tokens, "cached token"), "the KV cache and spec.slo"
        if demand.shape.encoder_only:
            size, bounds = counted(demand.input_tokens, "token"), "spec.slo.ttftP95"
        return (
            f"spec.engine.maxNumSeqs: {requested} of typically {size} do not fit at once into "
            f"{bounds}, {on_hardware} {most} do; set at most {most}, or remove it"
        )
    tokens = min(demand.step_tokens)
    step_ms = full_step_seconds(demand, fit.step, 1, tokens) * 1e3
    slo = (
        f"itlP95 of {format_duration(demand.inter_token)} with ttftP95 of "
        f"{format_duration(demand.ttft)}"
    )
    if field == "chunkedPrefill":
        return (
            f"spec.engine.chunkedPrefill: false makes steps of up to {counted(tokens, 'token')}, "
            f"which take {step_ms:.0f} ms {on_hardware} and miss {slo}; remove it, raise the "
            "objectives, or lower spec.context.maxModelLen"
        )
    if field == "speculation":
        return (
            f"spec.engine.speculation: steps that verify "
            f"{counted(demand.engine.draft_tokens, 'drafted token')} of each request miss {slo} "
            f"{on_hardware}; remove it, draft fewer, or raise the objectives"
        )
    return (
        f"spec.engine.{field}: full steps of {counted(tokens, 'token')} take {step_ms:.0f} ms "
        f"{on_hardware} and miss {slo}; set {counted(fit.limits.max_num_batched_tokens, 'token')} "
        f"with at most {counted(fit.limits.max_num_seqs, 'request')}, or remove it"
    )
