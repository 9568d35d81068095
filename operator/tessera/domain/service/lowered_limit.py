"""The concurrent requests of a replica after preemptions at steady load lowered them."""

from dataclasses import replace

from tessera.api.inference_service import InferenceServiceSpec
from tessera.domain.observed.snapshot import ObservedService
from tessera.domain.placement.checks import shape_of
from tessera.domain.placement.placement import (
    HardwareChoice,
    PlacementDecision,
    fitting_choices,
    hardware_candidates,
)


def lowered_limit(
    service: ObservedService, spec: InferenceServiceSpec, choice: HardwareChoice
) -> int | None:
    """Return the limit that holds instead of the planned one; None without any.

    A limit that the spec sets is its owner's.
    """
    preemption = service.status.preemption
    if preemption is None or spec.engine.max_num_seqs is not None:
        return None
    measured = preemption.model, preemption.variant
    return preemption.max_num_seqs if measured == (spec.model.uri, choice.variant) else None


def with_lowered_limit(
    placement: PlacementDecision, service: ObservedService, spec: InferenceServiceSpec
) -> PlacementDecision:
    """Return the placement with the chosen hardware sized for the lowered limit."""
    choice, shape = placement.choice, shape_of(spec)
    if choice is None or shape is None:
        return placement
    limit = lowered_limit(service, spec, choice)
    if limit is None or limit >= choice.fit.limits.max_num_seqs:
        return placement
    engine = spec.engine.model_copy(update={"max_num_seqs": limit})
    lowered = spec.model_copy(update={"engine": engine})
    sized = fitting_choices(hardware_candidates(lowered, shape, (choice.offer,)))
    return replace(
        placement,
        choice=next((each for each in sized if each.fit.precision == choice.fit.precision), choice),
    )
