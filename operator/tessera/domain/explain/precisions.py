"""Explanation of the precision: the price of tokens in each listed one, and why it is not used."""

from collections.abc import Iterator, Sequence

from tessera.api.inference_service import InferenceServiceSpec
from tessera.api.text import counted
from tessera.domain.explain.alternatives import ServiceInFleet, misfit_message
from tessera.domain.model.precision_files import closed_precision, with_closed
from tessera.domain.observed.snapshot import Snapshot
from tessera.domain.placement.candidates import (
    HardwareCandidate,
    HardwareChoice,
    by_price,
    error_of_both,
    fitting_choices,
    hardware_candidates,
    is_surely_cheaper,
    running_at_best,
)
from tessera.domain.placement.checks import shape_of
from tessera.domain.planning.plan import Plan
from tessera.domain.planning.service_plan import ServicePlan
from tessera.domain.reporting.decision import Decision
from tessera.domain.service.preparation.precisions import PrecisionCheck
from tessera.domain.sizing.precision import UnsupportedPrecision, label
from tessera.domain.sizing.sizing import ReplicaFit, ReplicaMisfit


def explain_precision(
    snapshot: Snapshot, plan: Plan, service_plan: ServicePlan
) -> Iterator[Decision]:
    """Yield the decision about the precision; nothing without a choice among several."""
    chosen, spec = service_plan.choice, service_plan.service.spec
    shape = shape_of(spec) if spec is not None else None
    preparation = service_plan.preparation
    checks = (preparation.precisions or ()) if preparation is not None else ()
    if spec is None or shape is None or not (spec.precision.variants or checks):
        return
    placed = ServiceInFleet(snapshot=snapshot, plan=plan, service_plan=service_plan, spec=spec)
    candidates = hardware_candidates(
        _as_listed(spec, checks),
        shape,
        [
            offer
            for view in plan.pools
            for offer in view.offers
            if not placed.exclusion_reason(offer)
        ],
    )
    unusable: dict[str | None, PrecisionCheck] = {
        check.status.precision: check for check in checks if not check.is_usable
    }
    by_precision: dict[str | None, list[HardwareCandidate]] = {}
    running = {choice.variant for choice in service_plan.placement.choices}
    for candidate in candidates:
        of_precision = by_precision.setdefault(candidate.demand.precision, [])
        of_precision.append(running_at_best(candidate, running))
    rows = tuple(
        (label(shape, precision), _row(spec, of_precision, chosen, unusable.get(precision)))
        for precision, of_precision in by_precision.items()
    )
    name = label(shape, chosen.fit.precision) if chosen is not None else "none"
    tokens = "input tokens" if service_plan.is_pooling else "output tokens"
    yield Decision(
        topic="precision",
        reason="Chosen" if chosen is not None else "NotPlaced",
        message=(
            f"{name} of {counted(len(rows), 'precision')}; prices are of 1M {tokens} at full load, "
            "on the hardware with the cheapest replica"
        ),
        numbers=rows,
    )


def _as_listed(
    spec: InferenceServiceSpec, checks: Sequence[PrecisionCheck]
) -> InferenceServiceSpec:
    """Return the spec with the precisions too that no gate has tried, or whose files are not used,
    which are sized by the model."""
    unused = (check.variant for check in checks if not check.is_usable)
    variants = (*spec.precision.variants, *unused)
    precision = spec.precision.model_copy(update={"variants": variants})
    return with_closed(spec.model_copy(update={"precision": precision}), ())


def _row(
    spec: InferenceServiceSpec,
    candidates: Sequence[HardwareCandidate],
    chosen: HardwareChoice | None,
    unusable: PrecisionCheck | None,
) -> str:
    choices = by_price(fitting_choices(candidates))
    if not choices:
        price = _closest(spec, candidates)
    else:
        best = choices[0]
        if chosen is not None and chosen.fit.precision == best.fit.precision:
            best = next((each for each in choices if each.variant == chosen.variant), best)
        price = (
            f"{best.token_price.formatted(4)}, {best.offer.hardware.name} of {best.offer.pool} at "
            f"{best.hourly.formatted(4)} per hour"
        )
    if unusable is not None:
        return f"{price}; not used: {unusable.message}"
    closed = closed_precision(spec.precision, candidates[0].demand.precision)
    if closed is not None:
        return f"{price}; not used: {closed}"
    if choices and chosen is not None:
        return f"{price}; {_comparison(choices[0], chosen)}"
    return price


def _closest(spec: InferenceServiceSpec, candidates: Sequence[HardwareCandidate]) -> str:
    """Return why the precision runs on no hardware, by that which is nearest to it."""
    fits = [each.fit for each in candidates if not isinstance(each.fit, ReplicaFit)]
    misfits = [fit for fit in fits if isinstance(fit, ReplicaMisfit)]
    nearest: ReplicaMisfit | UnsupportedPrecision = (
        min(misfits, key=lambda fit: (fit.needed_mib, fit.inter_token_ms)) if misfits else fits[0]
    )
    hardware = nearest.hardware
    return f"runs nowhere; {hardware.name} of {hardware.product}: {misfit_message(spec, nearest)}"


def _comparison(best: HardwareChoice, chosen: HardwareChoice) -> str:
    if best.fit.precision == chosen.fit.precision:
        return "chosen"
    if best.offer.comparison_price.nanos > chosen.offer.comparison_price.nanos:
        return "a replica costs more"
    if chosen.offer.tier == "Reserved" != best.offer.tier:
        return "a replica costs more than what is paid anyway"
    if best.token_price.nanos >= chosen.token_price.nanos:
        return "its tokens cost no less"
    if not is_surely_cheaper(best, chosen):
        error = error_of_both(best, chosen)
        return f"cheaper, but within the error of both predictions ({error:.0%})"
    return "cheaper, and chosen once as many replicas have room beside those that run"
