"""Admission: checks one object against the rules and against the existing pools."""

from collections.abc import Callable, Mapping, MutableSequence, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any, TypeAlias

import kopf

from tessera.adapters import object_parsing as wire
from tessera.api.accelerator_pool import Tier
from tessera.api.batch_reasons import BatchAccepted
from tessera.api.reasons import Accepted
from tessera.api.text import counted
from tessera.domain.batch.batches import situation_of
from tessera.domain.batch.spec import accept_spec
from tessera.domain.budget.budgets import zone_fault
from tessera.domain.observed.snapshot import Budget, Pool
from tessera.domain.placement.checks import check, engine_verdict, unknown_model_denial
from tessera.domain.placement.spec_warnings import spec_warnings
from tessera.ports import Clock
from tessera.reconcile.observe import Observations, observe
from tessera.reconcile.store import Store
from tessera.resources import api_resources

# Reasons that resolve without an edit, when another object is created.
_TRANSIENT = {
    BatchAccepted.SERVICE_NOT_FOUND,
    BatchAccepted.POOL_NOT_FOUND,
    BatchAccepted.CLAIM_NOT_FOUND,
}
Reviewer: TypeAlias = Callable[[Mapping[str, Any], object], tuple[list[str], list[str]]]


def review_service(body: Mapping[str, Any], store: Store) -> tuple[list[str], list[str]]:
    """Return the refusals and the warnings for an InferenceService, with field paths.

    What only needs another object (a pool that does not exist yet) is a warning: the condition
    reports the same, and it resolves without an edit.
    """
    service = wire.parse_service(body)
    if service is None:
        return [], []
    if service.spec is None:
        return [service.problem or "spec: unreadable"], []
    pools: dict[str, Tier | None] = {
        key.name: observed.plan_input.spec.tier
        if isinstance(observed.plan_input, Pool) and observed.plan_input.spec
        else None
        for key, observed in store.all(api_resources.ACCELERATOR_POOLS).items()
    }
    denials = check(service.spec, pools)
    refusals = [denial.sentence for denial in denials if not denial.transient]
    warnings = [denial.sentence for denial in denials if denial.transient]
    if (unknown := unknown_model_denial(service.spec)) is not None:
        warnings.append(f"{unknown.sentence}, or wait until a Job has read it")
    if (verdict := engine_verdict(service.spec)).reason is not Accepted.VALID:
        warnings.append(verdict.message)
    # Advice waits until the manifest is valid.
    return refusals, [*warnings, *(() if refusals else spec_warnings(service.spec))]


def review_budget(
    body: Mapping[str, Any], store: Store, *, deleted: bool = False
) -> tuple[list[str], list[str]]:
    """Return refusals and warnings for a TenantBudget; deleting one in use is a warning."""
    budget = wire.parse_budget(body)
    if deleted:
        return [], _deletion_warnings(budget, store)
    if budget.spec is None:
        return [budget.problem or "spec: unreadable"], []
    if (fault := zone_fault(budget.spec)) is not None:
        return [fault], []
    other_budgets = (
        observed.plan_input
        for observed in store.all(api_resources.TENANT_BUDGETS).values()
        if isinstance(observed.plan_input, Budget)
        and observed.plan_input.name != budget.name
        and observed.plan_input.spec
    )
    return [], [
        f"spec.tenant.namespaces[{index}]: {name} belongs to TenantBudget/{other.name} too; of 2 "
        "budgets the first by name applies"
        for other in sorted(other_budgets, key=lambda tenant_budget: tenant_budget.name)
        for index, name in enumerate(budget.spec.tenant.namespaces)
        if other.spec is not None and name in other.spec.tenant.namespaces
    ]


def review_batch(
    body: Mapping[str, Any], store: Store, at: datetime, *, created: bool = True
) -> tuple[list[str], list[str]]:
    """Return refusals and warnings for a BatchInference; waiting for an object is a warning.

    A file that another batch writes is refused for a `created` batch and a warning for a changed
    one, since its paths cannot change.
    """
    # A new object has neither time nor uid yet.
    metadata = {"creationTimestamp": at.isoformat(), "uid": ""} | dict(body["metadata"])
    batch = wire.parse_batch({**body, "metadata": metadata})
    if batch is None:
        return [], []
    snapshot = observe(store, Observations(), at)
    others = (other for other in snapshot.batches if other.ref != batch.ref)
    snapshot = replace(snapshot, batches=(*others, batch))
    verdict, _ = accept_spec(situation_of(snapshot, batch.ref))
    of_service = batch.spec is not None and batch.spec.service is not None
    model_pending = of_service and verdict.reason is BatchAccepted.UNKNOWN_MODEL
    conflicting = verdict.reason is BatchAccepted.OUTPUT_CONFLICT and not created
    if verdict.reason in _TRANSIENT or model_pending or conflicting:
        return [], [verdict.message]
    if not verdict.reason.is_true:
        return [verdict.message], []
    return [], [verdict.message] if verdict.reason is not BatchAccepted.VALID else []


def _deletion_warnings(budget: Budget, store: Store) -> list[str]:
    names = budget.spec.tenant.namespaces if budget.spec is not None else ()
    services, batches = (
        sum(key.namespace in names for key in store.all(kind))
        for kind in (api_resources.INFERENCE_SERVICES, api_resources.BATCH_INFERENCES)
    )
    if not services + batches:
        return []
    return [
        f"{counted(services, 'service')} and {counted(batches, 'batch', 'batches')} in "
        f"{', '.join(names)} lose their limit, and the record of their spend is deleted; "
        f"kubectl get tessera -n {names[0]} lists them"
    ]


def budget_validator(store: Store) -> Any:
    """Return the handler that kopf calls for TenantBudgets."""

    def review(body: Mapping[str, Any], operation: object) -> tuple[list[str], list[str]]:
        return review_budget(body, store, deleted=operation == "DELETE")

    return _validator(review)


def batch_validator(store: Store, clock: Clock, namespaces: Sequence[str] = ()) -> Any:
    """Return the handler that kopf calls for BatchInferences."""

    def review(body: Mapping[str, Any], operation: object) -> tuple[list[str], list[str]]:
        return review_batch(body, store, clock(), created=operation == "CREATE")

    return _validator(_only_watched(namespaces, review))


def service_validator(store: Store, namespaces: Sequence[str] = ()) -> Any:
    """Return the handler that kopf calls for InferenceServices."""
    return _validator(_only_watched(namespaces, lambda body, _: review_service(body, store)))


def _only_watched(namespaces: Sequence[str], review: Reviewer) -> Reviewer:
    """Review objects in the watched namespaces; warn about all others."""

    def review_watched(body: Mapping[str, Any], operation: object) -> tuple[list[str], list[str]]:
        namespace = body["metadata"].get("namespace", "")
        if not namespaces or namespace in namespaces:
            return review(body, operation)
        return [], [
            f"metadata.namespace: Tessera does not watch {namespace}; it watches "
            f"{counted(len(namespaces), 'namespace')}: {', '.join(sorted(namespaces))}"
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
