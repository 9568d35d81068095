"""The concurrent requests of a replica where measurements allow more or fewer than the plan."""

from dataclasses import replace

from tessera.api.inference_service import InferenceServiceSpec
from tessera.api.service_status import InferenceServiceStatus
from tessera.domain.observed.snapshot import ObservedService
from tessera.domain.placement.candidates import (
    HardwareChoice,
    fitting_choices,
    hardware_candidates,
    sized,
)
from tessera.domain.placement.checks import pooling_task, shape_of
from tessera.domain.placement.placement import PlacementDecision
from tessera.domain.sizing.sizing import ReplicaFit

# Of the input. With less, the time that reading prompts leaves is for hardly more requests.
_MIN_CACHED_SHARE = 0.25


def with_measured_limits(
    placement: PlacementDecision, service: ObservedService, spec: InferenceServiceSpec
) -> PlacementDecision:
    """Return the placement with the chosen hardware sized for the limits that hold.

    A limit that the spec sets is its owner's, and a lowered one comes before a raised one.
    """
    if spec.engine.max_num_seqs is not None:
        return placement
    choices = (_with_measured_limit(choice, service, spec) for choice in placement.choices)
    return replace(placement, choices=tuple(choices))


def _with_measured_limit(
    choice: HardwareChoice, service: ObservedService, spec: InferenceServiceSpec
) -> HardwareChoice:
    # Other policies know no share, and plan replicas by half of the limit.
    by_capacity = spec.scaling.policy == "Capacity" and pooling_task(spec) is None
    if by_capacity and has_cached_prompts(service.status):
        choice = _for_cached_prompts(spec, choice)
    limit = lowered_limit(service, spec, choice)
    if limit is None or limit >= choice.fit.limits.max_num_seqs:
        return choice
    return _lowered(spec, choice, limit)


def has_cached_prompts(status: InferenceServiceStatus) -> bool:
    """Return whether prefix caches had enough of the input, as last written."""
    lengths = status.scaling.request_lengths if status.scaling is not None else None
    if lengths is None or lengths.cached_input_tokens is None:
        return False
    return lengths.cached_input_tokens >= _MIN_CACHED_SHARE * lengths.input_tokens


def lowered_limit(
    service: ObservedService, spec: InferenceServiceSpec, choice: HardwareChoice
) -> int | None:
    """Return the limit after preemptions at steady load; None without any."""
    preemption = service.status.preemption
    if preemption is None or spec.engine.max_num_seqs is not None:
        return None
    measured = preemption.model, preemption.variant
    return preemption.max_num_seqs if measured == (spec.model.uri, choice.variant) else None


def _for_cached_prompts(spec: InferenceServiceSpec, choice: HardwareChoice) -> HardwareChoice:
    """Return the hardware with as many requests at once as the SLO and the KV cache allow.

    The plan has no more of them than have their whole prompts read meanwhile. More of them change
    nothing while no prompt is cached, so the limit does not depend on how many are. Steps stay as
    large, and so does what a replica is planned to give out.
    """
    shape, limits = shape_of(spec), choice.fit.limits
    if shape is None:
        return choice
    (demand,) = (
        candidate.demand
        for candidate in hardware_candidates(spec, shape, (choice.offer,))
        if candidate.demand.precision == choice.fit.precision
    )
    tokens = limits.max_num_batched_tokens
    same_steps = replace(demand.engine, max_num_batched_tokens=tokens)
    cached = sized(replace(demand, engine=same_steps, computed_tokens=0), choice.offer.hardware)
    if not isinstance(cached, ReplicaFit) or cached.limits.max_num_seqs <= limits.max_num_seqs:
        return choice
    engine = replace(same_steps, max_num_seqs=cached.limits.max_num_seqs)
    raised = sized(replace(demand, engine=engine), choice.offer.hardware)
    return replace(choice, fit=raised) if isinstance(raised, ReplicaFit) else choice


def _lowered(spec: InferenceServiceSpec, choice: HardwareChoice, limit: int) -> HardwareChoice:
    shape = shape_of(spec)
    if shape is None:
        return choice
    engine = spec.engine.model_copy(update={"max_num_seqs": limit})
    lowered = spec.model_copy(update={"engine": engine})
    fits = fitting_choices(hardware_candidates(lowered, shape, (choice.offer,)))
    return next((each for each in fits if each.fit.precision == choice.fit.precision), choice)
