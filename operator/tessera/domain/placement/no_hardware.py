"""Why no hardware serves a service: what is missing, and what would have to change."""

from collections.abc import Collection, Sequence

from tessera.api.accelerator_pool import Tier
from tessera.api.inference_service import InferenceServiceSpec
from tessera.api.meta import format_duration
from tessera.api.reasons import PlacementReason, StatusVerdict
from tessera.api.text import counted
from tessera.domain.hardware.pools import HardwareOffer, PoolView
from tessera.domain.incremental import tabulated
from tessera.domain.perf.step_range import decoding_source, prompt_source
from tessera.domain.placement.candidates import HardwareCandidate, tabulated_size
from tessera.domain.placement.checks import shape_of
from tessera.domain.placement.engine_limits import memory_remedies, unmet_limit
from tessera.domain.sizing.scheduler_limits import Demand
from tessera.domain.sizing.sizing import ReplicaMisfit, attainable_objectives

# A shorter context than this is not suggested.
_MIN_OFFERED_CONTEXT = 512
_tabulated_objectives = tabulated(attainable_objectives, size=4096)


def no_offer(
    allowed: Sequence[PoolView], tiers: Collection[Tier]
) -> StatusVerdict[PlacementReason]:
    """Return why the pools that a service may use offer nothing."""
    command = "kubectl get acceleratorpools -o wide"
    excluded = {
        view.pool.name: offer.tier
        for view in allowed
        for offer in view.offers
        if offer.tier not in tiers
    }
    if not allowed:
        return StatusVerdict(
            PlacementReason.NO_POOL,
            f"spec.placement.pools: no AcceleratorPool exists ({command} lists 0); create one for "
            "the GPU nodes",
        )
    if excluded:
        pools = ", ".join(f"{name} ({tier})" for name, tier in excluded.items())
        return StatusVerdict(
            PlacementReason.NO_POOL,
            f"spec.placement.pools: {pools} may not be used, since spec.placement.tiers is "
            f"{', '.join(sorted(tiers))}; allow a pool of another tier (kubectl get "
            "acceleratorpools shows the tiers), or add the tier",
        )
    blockers = "; ".join(
        f"{view.pool.name}: {(view.discovered if view.price else view.accepted).message}"
        for view in allowed
    )
    return StatusVerdict(
        PlacementReason.NO_HARDWARE,
        f"spec.placement.pools: none of {counted(len(allowed), 'pool')} has usable devices "
        f"({blockers}); see {command}",
    )


def no_fit(
    spec: InferenceServiceSpec, candidates: Sequence[HardwareCandidate]
) -> StatusVerdict[PlacementReason]:
    """Return why a model fits on none of the candidates, and what would let it."""
    pairs = [
        (candidate.demand, candidate.fit)
        for candidate in candidates
        if isinstance(candidate.fit, ReplicaMisfit)
    ]
    misfits = [misfit for _, misfit in pairs]
    too_slow = [misfit for misfit in misfits if misfit.needed_mib == 0]
    if too_slow:
        if (message := unmet_limit(pairs, tabulated_size)) is not None:
            return StatusVerdict(PlacementReason.ENGINE_LIMITS_UNMET, message)
        fastest = min(too_slow, key=lambda misfit: (misfit.inter_token_ms, misfit.prefill_ms))
        demand = next(each.demand for each in candidates if each.fit is fastest)
        return StatusVerdict(PlacementReason.TOO_SLOW, _too_slow_message(spec, demand, fastest))
    best = max(
        misfits,
        key=lambda misfit: (misfit.kv_tokens, -misfit.needed_mib / misfit.hardware.memory_mib),
    )
    remedies = [f"devices of {best.needed_mib} MiB", "more whole GPUs in one node"]
    if best.kv_tokens >= _MIN_OFFERED_CONTEXT:
        remedies.insert(0, f"spec.context.maxModelLen of at most {best.kv_tokens}")
    shape = shape_of(spec)
    if not spec.precision.variants and (shape is None or shape.quantization is None):
        remedies.append("fp8 in spec.precision.variants, which halves 16-bit weights")
    demand = next(each.demand for each in candidates if each.fit is best)
    remedies += memory_remedies(demand, best.hardware, tabulated_size)
    return StatusVerdict(
        PlacementReason.TOO_LARGE,
        f"spec.model.uri: does not fit; the closest is {_describe(best)} with "
        f"{best.hardware.memory_mib} MiB per device. Choose {', or '.join(remedies)}",
    )


def no_group(
    spec: InferenceServiceSpec, offers: Sequence[HardwareOffer]
) -> StatusVerdict[PlacementReason]:
    """Return that no offer has as many devices as a replica has to have."""
    counts = sorted({offer.hardware.devices for offer in offers})
    return StatusVerdict(
        PlacementReason.NO_HARDWARE,
        f"spec.engine.tensorParallelSize: {spec.engine.tensor_parallel_size}, but the nodes of the "
        f"allowed pools offer a replica {', '.join(map(str, counts))}; choose one of "
        "these, or add a pool whose nodes have more",
    )


def _too_slow_message(spec: InferenceServiceSpec, demand: Demand, fastest: ReplicaMisfit) -> str:
    """Return which objective cannot be kept, and what the fastest hardware keeps at best."""
    gap, first = (span.total_seconds() * 1e3 for span in (spec.slo.itl_p95, spec.slo.ttft_p95))
    attainable = " or ".join(
        ("" if demand.is_pooling else f"itlP95 {format_duration(slo.inter_token)} with ")
        + f"ttftP95 {format_duration(slo.ttft)}"
        for slo in _tabulated_objectives(demand, fastest.hardware)
    )
    step = fastest.step
    if fastest.inter_token_ms > gap:
        return (
            f"spec.slo.itlP95: {gap:.0f} ms, but the fastest that fits, {_describe(fastest)}, has "
            f"an ITL of {fastest.inter_token_ms:.1f} ms ({decoding_source(step)}) and keeps at "
            f"best {attainable}; raise the objective or add a faster pool"
        )
    return (
        f"spec.slo.ttftP95: {first:.0f} ms, but the fastest that fits, {_describe(fastest)}, needs "
        f"{fastest.prefill_ms:.0f} ms ({prompt_source(step)}) for a prompt of "
        f"{counted(spec.context.typical_input_tokens, 'token')} and keeps at best {attainable}; "
        "raise the objective, lower spec.context.typicalInputTokens, or add a faster pool"
    )


def _describe(misfit: ReplicaMisfit) -> str:
    precision = f" in {misfit.precision}" if misfit.precision else ""
    return f"{misfit.hardware.name} of {misfit.hardware.product}{precision}"
