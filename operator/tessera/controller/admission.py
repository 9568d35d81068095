"""Admission: one object against what must hold, and against the pools there are."""

from collections.abc import Callable, Mapping, MutableSequence, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any, TypeAlias

import kopf

from tessera.adapters import object_parsing as wire
from tessera.api.accelerator_pool import Tier
from tessera.api.batch_reasons import BatchAccepted
from tessera.domain.batch.batches import situations
from tessera.domain.batch.spec import accept_spec
from tessera.domain.budget.budgets import zone_fault
from tessera.domain.observed.snapshot import Budget, Pool
from tessera.domain.placement.checks import check, unchecked_flags_warning, unknown_model_denial
from tessera.domain.placement.spec_warnings import spec_warnings
from tessera.ports import Clock
from tessera.reconcile.observe import Observations, observe
from tessera.reconcile.store import Store
from tessera.resources.api_resources import (
    ACCELERATOR_POOLS,
    BATCH_INFERENCES,
    INFERENCE_SERVICES,
    TENANT_BUDGETS,
)

# What passes by itself when another object comes.
_TRANSIENT = {
    BatchAccepted.SERVICE_NOT_FOUND,
    BatchAccepted.POOL_NOT_FOUND,
    BatchAccepted.CLAIM_NOT_FOUND,
}
Reviewer: TypeAlias = Callable[[Mapping[str, Any], object], tuple[list[str], list[str]]]


def review_service(body: Mapping[str, Any], store: Store) -> tuple[list[str], list[str]]:
    """The reasons to refuse an InferenceService, and the warnings, as sentences with field paths.

    What only needs another object (a pool that is still to come) is a warning: the turn says the
    same in the condition, and it passes by itself.
    """
    service = wire.parse_service(body)
    if service is None:
        return [], []
    if service.spec is None:
        return [service.problem or "spec: unreadable"], []
    pools: dict[str, Tier | None] = {
        key.name: observed.value.spec.tier
        if isinstance(observed.value, Pool) and observed.value.spec
        else None
        for key, observed in store.all(ACCELERATOR_POOLS).items()
    }
    denials = check(service.spec, pools)
    refusals = [denial.sentence for denial in denials if not denial.transient]
    warnings = [denial.sentence for denial in denials if denial.transient]
    if (unknown := unknown_model_denial(service.spec)) is not None:
        warnings.append(f"{unknown.sentence}, or wait until a Job has read it")
    if (warning := unchecked_flags_warning(service.spec)) is not None:
        warnings.append(warning)
    # Whoever has to edit the manifest anyway is not told of finer points yet.
    return refusals, [*warnings, *(() if refusals else spec_warnings(service.spec))]


def review_budget(
    body: Mapping[str, Any], store: Store, *, deleted: bool = False
) -> tuple[list[str], list[str]]:
    """The same for a TenantBudget; one that goes while it is used leaves with a warning."""
    budget = wire.parse_budget(body)
    if deleted:
        return [], _deletion_warnings(budget, store)
    if budget.spec is None:
        return [budget.problem or "spec: unreadable"], []
    if (fault := zone_fault(budget.spec)) is not None:
        return [fault], []
    other_budgets = (
        observed.value
        for observed in store.all(TENANT_BUDGETS).values()
        if isinstance(observed.value, Budget)
        and observed.value.name != budget.name
        and observed.value.spec
    )
    return [], [
        f"spec.tenant.namespaces[{index}]: {name} belongs to budget {other.name} too; of 2 budgets "
        "the later name gives way"
        for other in sorted(other_budgets, key=lambda tenant_budget: tenant_budget.name)
        for index, name in enumerate(budget.spec.tenant.namespaces)
        if other.spec is not None and name in other.spec.tenant.namespaces
    ]


def review_batch(
    body: Mapping[str, Any], store: Store, at: datetime
) -> tuple[list[str], list[str]]:
    """The same for a BatchInference; what waits for another object is a warning."""
    batch = wire.parse_batch({**body, "metadata": _with_defaults(body, at)})
    if batch is None:
        return [], []
    snapshot = replace(observe(store, Observations(), at), batches=(batch,))
    verdict, _ = accept_spec(situations(snapshot)[batch.ref])
    of_service = batch.spec is not None and batch.spec.service is not None
    model_pending = of_service and verdict.reason is BatchAccepted.UNKNOWN_MODEL
    if verdict.reason in _TRANSIENT or model_pending:
        return [], [verdict.message]
    return ([] if verdict.reason.is_true else [verdict.message]), []


def _with_defaults(body: Mapping[str, Any], at: datetime) -> Mapping[str, Any]:
    """An object that is only asked about has no time and uid yet."""
    return {"creationTimestamp": at.isoformat(), "uid": ""} | dict(body["metadata"])


def _deletion_warnings(budget: Budget, store: Store) -> list[str]:
    names = budget.spec.tenant.namespaces if budget.spec is not None else ()
    services, batches = (
        sum(key.namespace in names for key in store.all(kind))
        for kind in (INFERENCE_SERVICES, BATCH_INFERENCES)
    )
    if not services + batches:
        return []
    return [
        f"{services} services and {batches} batches in {', '.join(names)} have no limit from now "
        f"on, and what they spent is forgotten; kubectl get tessera -n {names[0]} shows them"
    ]


def budget_validator(store: Store) -> Any:
    """The handler that kopf calls for TenantBudgets."""

    def review(body: Mapping[str, Any], operation: object) -> tuple[list[str], list[str]]:
        return review_budget(body, store, deleted=operation == "DELETE")

    return _validator(review)


def batch_validator(store: Store, clock: Clock, namespaces: Sequence[str] = ()) -> Any:
    """The handler that kopf calls for BatchInferences."""
    return _validator(_only_watched(namespaces, lambda body, _: review_batch(body, store, clock())))


def service_validator(store: Store, namespaces: Sequence[str] = ()) -> Any:
    """The handler that kopf calls for InferenceServices."""
    return _validator(_only_watched(namespaces, lambda body, _: review_service(body, store)))


def _only_watched(namespaces: Sequence[str], review: Reviewer) -> Reviewer:
    """Judge only what somebody will act on; of the rest, say that nobody does."""

    def review_watched(body: Mapping[str, Any], operation: object) -> tuple[list[str], list[str]]:
        namespace = body["metadata"].get("namespace", "")
        if not namespaces or namespace in namespaces:
            return review(body, operation)
        return [], [
            f"metadata.namespace: this Tessera does not act in {namespace}; it watches "
            f"{len(namespaces)} namespaces: {', '.join(sorted(namespaces))}"
        ]

    return review_watched


def _validator(review: Reviewer) -> Any:
    async def validate(
        body: Mapping[str, Any],
        warnings: MutableSequence[str],
        operation: str | None = None,
        **_: object,
    ) -> None:
        refusals, new_warnings = review(body, operation)
        warnings.extend(new_warnings)
        if refusals:
            raise kopf.AdmissionError("; ".join(refusals), code=422)

    return validate
