"""Batches that a budget keeps on spot capacity, and those that pay for their rows."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from tessera.api.batch_reasons import BatchRunning
from tessera.api.budget_reasons import LimitAction
from tessera.api.reasons import StatusVerdict
from tessera.domain.batch.batch_plan import BatchPlan
from tessera.domain.budget.budgets import BudgetView
from tessera.domain.observed.batches import Batch
from tessera.domain.steps import Step


def on_spot_alone(batches: Sequence[Batch], budgets: Mapping[str, BudgetView]) -> tuple[Batch, ...]:
    """Return the batches; those of such a budget do not leave spot capacity for their deadline."""
    return tuple(_on_spot(batch, budgets) for batch in batches)


def _limited(batch: Batch, budgets: Mapping[str, BudgetView]) -> Batch:
    spec = batch.spec
    if spec is None or spec.spot.policy != "Preferred" or _sentence(batch, budgets) is None:
        return batch
    spot = spec.spot.model_copy(update={"policy": "Only"})
    return replace(batch, spec=spec.model_copy(update={"spot": spot}))


def _with_cause(plan: BatchPlan, batch: Batch, budgets: Mapping[str, BudgetView]) -> BatchPlan:
    """Return the plan of a batch, which says why it waits for spot capacity."""
    sentence = _sentence(batch, budgets)
    waits = plan.running.reason in (BatchRunning.WAITING_FOR_SPOT, BatchRunning.NO_POOL)
    if sentence is None or not waits or batch.spec is None or batch.spec.spot.policy == "Only":
        return plan
    message = f"waiting for spot capacity: {sentence}"
    return replace(plan, running=StatusVerdict(plan.running.reason, message))


def charged(plan: BatchPlan, budgets: Mapping[str, BudgetView]) -> BatchPlan:
    """Return the plan of a batch, whose attempt pays where its tenant has limits of charges."""
    view, request = budgets.get(plan.batch.ref.namespace), plan.create
    spec = None if view is None else view.spec
    if spec is None or not spec.charge_limits or request is None or request.attempt is None:
        return plan
    return replace(plan, create=replace(request, charged=True))


def _sentence(batch: Batch, budgets: Mapping[str, BudgetView]) -> str | None:
    view = budgets.get(batch.ref.namespace)
    return None if view is None else view.state.actions.get(LimitAction.BATCHES_ON_SPOT)


_on_spot = Step(_limited, lambda _error, batch, _budgets: batch)
with_cause = Step(_with_cause, lambda _error, plan, _batch, _budgets: plan)
