"""Admission: checks one object against the rules and against the existing pools."""

from collections.abc import Callable, Iterable, Iterator, Mapping, MutableSequence, Sequence
from datetime import datetime
from functools import partial
from heapq import nsmallest
from operator import attrgetter
from typing import Any, TypeAlias

import kopf

from tessera.adapters.kube import object_parsing as wire
from tessera.api.accelerator_pool import NodeTemplate, Tier
from tessera.api.api_resource import ApiResource
from tessera.api.budget_reasons import BudgetAccepted, LimitAction
from tessera.api.inference_service import InferenceServiceSpec
from tessera.api.meta import find_condition
from tessera.api.pool_reasons import Discovered
from tessera.api.reasons import Accepted
from tessera.api.service_class import BUILT_IN_CLASSES, ServiceClasses
from tessera.api.text import counted, one_line
from tessera.controller.batch_review import review_batch
from tessera.controller.spec_review import gate_warnings, review_spec
from tessera.domain.budget.budgets import (
    currency_fault,
    grants_in_force,
    namespace_claims,
    zone_fault,
    zone_warnings,
)
from tessera.domain.gateway.name_conflicts import (
    all_names,
    find_name_conflicts,
    lists_any,
    name_verdicts,
)
from tessera.domain.gateway.name_rights import name_rights
from tessera.domain.hardware.gpu_layouts import geometry_problem
from tessera.domain.hardware.gpu_models import gpu_models
from tessera.domain.hardware.pools import admits, discover
from tessera.domain.kinds import kinds
from tessera.domain.kinds.kinds import ACCELERATOR_POOLS, INFERENCE_SERVICES, TENANT_BUDGETS
from tessera.domain.observed.snapshot import Budget, ObservedService, Pool, Snapshot
from tessera.domain.placement.checks import (
    check,
    engine_verdict,
    split_running,
    tolerated_message,
    unknown_model_denial,
)
from tessera.domain.placement.pod_template import unlisted_metadata
from tessera.domain.placement.spec_warnings import spec_warnings
from tessera.ports import Clock
from tessera.reconcile.observe import Observations, observe, plan_inputs
from tessera.reconcile.store import Store

# Characters of a refusal or a warning; the longest of honest ones have some thousands.
MOST_TEXT = 32_768

# Services with a name of the one under review that the review looks at.
MOST_NAMESAKES = 64

# Returns refusals and warnings of an object, given the one before an edit, and the operation.
Reviewer: TypeAlias = Callable[
    [Mapping[str, Any], Mapping[str, Any] | None, str | None], tuple[list[str], list[str]]
]


def review_service(
    body: Mapping[str, Any],
    store: Store,
    classes: ServiceClasses = BUILT_IN_CLASSES,
    *,
    old: Mapping[str, Any] | None = None,
    gateways: bool = False,
) -> tuple[list[str], list[str]]:
    """Return the refusals and the warnings for an InferenceService, with field paths.

    An edit of an `old` one that leaves its flags or its pod keys alone is not refused for them.
    What only needs another object (a pool that does not exist yet) is a warning: the condition
    reports the same, and it resolves without an edit.
    """
    service = wire.parse_own(INFERENCE_SERVICES, body, classes)
    if service is None:
        return [], []
    if service.spec is None:
        return [service.problem or "spec: unreadable"], []
    pools: dict[str, Tier | None] = {
        key.name: observed.plan_input.spec.tier
        if isinstance(observed.plan_input, Pool) and observed.plan_input.spec
        else None
        for key, observed in store.all(kinds.ACCELERATOR_POOLS).items()
    }
    denials, warnings = check(service.spec, pools), list[str]()
    if old is None and (refusal := _new_service_refusal(service.ref.namespace, store)):
        return [refusal], []
    if old is not None:
        running, denials = split_running(
            denials,
            flags=_extra_args(old) == _extra_args(body),
            keys=_unlisted_metadata(body) <= _unlisted_metadata(old),
        )
        warnings += [tolerated_message(running)] if running else []
    refusals = [denial.sentence for denial in denials if not denial.transient]
    warnings += [denial.sentence for denial in denials if denial.transient]
    if (unknown := unknown_model_denial(service.spec)) is not None:
        warnings.append(f"{unknown.sentence}, or wait until a Job has read it")
    if (verdict := engine_verdict(service.spec)).reason is not Accepted.VALID:
        warnings.append(verdict.message)
    warnings += _pool_warnings(
        service.ref.namespace,
        service.spec,
        plan_inputs(store, kinds.ACCELERATOR_POOLS, Pool),
    )
    warnings += gate_warnings(service.ref.namespace, service.spec, store)
    if gateways:
        warnings += _name_warnings(service, service.spec, store)
    # Advice waits until the manifest is valid.
    return refusals, [*warnings, *(() if refusals else spec_warnings(service.spec))]


def _new_service_refusal(namespace: str, store: Store) -> str | None:
    """Return why the budget of a namespace admits no new service; None if it does."""
    for claim in namespace_claims(plan_inputs(store, kinds.TENANT_BUDGETS, Budget)):
        for limit in claim.budget.status.limits if namespace in claim.namespaces else ():
            if LimitAction.NO_NEW_SERVICES in limit.actions:
                name = claim.budget.name
                return (
                    f"metadata.namespace: TenantBudget/{name} has spent {limit.reached} % of "
                    f"{limit.name} until {limit.end:%Y-%m-%dT%H:%MZ}, so {namespace} gets no new "
                    "InferenceService. Wait for the next window, or raise it: kubectl tessera "
                    f"budget raise {name} {limit.name}"
                )
    return None


def _extra_args(body: Mapping[str, Any]) -> object:
    return body.get("spec", {}).get("engine", {}).get("extraArgs")


def _unlisted_metadata(body: Mapping[str, Any]) -> frozenset[tuple[str, str, str]]:
    template = body.get("spec", {}).get("podTemplate") or {}
    return unlisted_metadata(template.get("labels") or {}, template.get("annotations") or {})


def _pool_warnings(
    namespace: str, spec: InferenceServiceSpec, pools: Iterable[Pool]
) -> Iterator[str]:
    """Yield warnings of pools that take no replica although the service may use them."""
    placement, by_name = spec.placement, {pool.name: pool for pool in pools}
    for index, name in enumerate(placement.pools):
        pool = by_name.get(name)
        if pool is None:
            continue
        accepted = find_condition(pool.status.conditions, "Accepted")
        if accepted is not None and accepted.status == "False":
            yield (
                f"spec.placement.pools[{index}]: AcceleratorPool/{name} is not accepted "
                f"({accepted.reason}): {accepted.cause}"
            )
        elif pool.spec is not None and pool.spec.tier not in placement.tiers:
            yield (
                f"spec.placement.pools[{index}]: AcceleratorPool/{name} is of tier "
                f"{pool.spec.tier}, which spec.placement.tiers does not list, so it takes no "
                "replica; add the tier, or remove the pool"
            )
    currencies = {
        pool.spec.prices[0].currency
        for name, pool in by_name.items()
        if pool.spec is not None
        and (name in placement.pools or not placement.pools)
        and pool.spec.tier in placement.tiers
        and admits(pool.spec, namespace)
    }
    if len(currencies) > 1:
        yield (
            f"spec.placement.pools: the pools that may be used have prices in "
            f"{', '.join(sorted(currencies))}, which cannot be compared, so nothing is placed; "
            "name pools of one currency"
        )


def _name_warnings(
    service: ObservedService, spec: InferenceServiceSpec, store: Store
) -> Sequence[str]:
    """Return warnings for names by which tenants do not get the service."""
    existing = plan_inputs(store, kinds.INFERENCE_SERVICES, ObservedService)
    names = frozenset(all_names(service.ref.name, spec))
    # Only those matter that have one of its names, and of many the oldest, which get requests.
    others = nsmallest(
        MOST_NAMESAKES,
        (
            other
            for other in existing
            if other.ref != service.ref
            and other.spec is not None
            and not other.deleting
            and lists_any(names, other.ref.name, other.spec)
        ),
        key=attrgetter("created", "ref"),
    )
    claims = namespace_claims(plan_inputs(store, kinds.TENANT_BUDGETS, Budget))
    tenants = {claim.budget.name: claim.namespaces for claim in claims if claim.spec is not None}
    rights = name_rights(grants_in_force(claims))
    conflicts = find_name_conflicts([*others, service], tenants, rights, service.ref)
    return [verdict.message for verdict in name_verdicts(service.ref, spec, conflicts)]


def review_budget(
    body: Mapping[str, Any], store: Store, *, deleted: bool = False
) -> tuple[list[str], list[str]]:
    """Return refusals and warnings for a TenantBudget; deleting one in use is a warning."""
    budget = wire.parse_own(TENANT_BUDGETS, body)
    if deleted:
        return [], _deletion_warnings(budget, store)
    if budget.spec is None:
        return [budget.problem or "spec: unreadable"], []
    existing = plan_inputs(store, kinds.TENANT_BUDGETS, Budget)
    others = [other for other in existing if other.name != budget.name]
    fault = zone_fault(budget.spec) or currency_fault(budget) or _name_fault(budget, others)
    if fault is not None:
        return [fault], []
    warnings = [
        f"spec.tenant.namespaces[{index}]: {name} belongs to TenantBudget/{other.name}, which "
        "keeps it: this spec is not accepted until one of the two gives the namespace up"
        for other in others
        if (other_spec := other.status.accepted_spec or other.spec) is not None
        for index, name in enumerate(budget.spec.tenant.namespaces)
        if name in other_spec.tenant.namespaces
    ]
    currencies = {
        pool.spec.prices[0].currency
        for pool in plan_inputs(store, kinds.ACCELERATOR_POOLS, Pool)
        if pool.spec is not None
    }
    if currencies and budget.spec.currency not in currencies:
        warnings.append(
            f"spec.currency: no AcceleratorPool is priced in {budget.spec.currency} but in "
            f"{', '.join(sorted(currencies))}, so nothing is added in the namespaces"
        )
    return [], [*warnings, *zone_warnings(budget)]


def review_pool(
    body: Mapping[str, Any], store: Store, at: datetime, *, deleted: bool = False
) -> tuple[list[str], list[str]]:
    """Return refusals and warnings for an AcceleratorPool; deleting one in use is a warning."""
    pool, snapshot = wire.parse_own(ACCELERATOR_POOLS, body), observe(store, Observations(), at)
    if deleted:
        return [], _pool_deletion_warnings(pool.name, snapshot)
    spec = pool.spec
    if spec is None:
        return [pool.problem or "spec: unreadable"], []
    pools = (*(other for other in snapshot.pools if other.name != pool.name), pool)
    views = {view.pool.name: view for view in discover(pools, snapshot.nodes, at.date())}
    view = views[pool.name]
    warnings = []
    if not view.accepted.reason.is_true:
        warnings.append(view.accepted.message)
    elif view.discovered.reason is Discovered.NODES_SET_ASIDE:
        warnings.append(view.discovered.message)
    for before in discover(snapshot.pools, snapshot.nodes, at.date()):
        after = views[before.pool.name]
        taken = (before.node_names & (view.node_names | view.odd_nodes)) - after.node_names
        if taken:
            warnings.append(
                f"spec.nodeSelector: takes {counted(len(taken), 'node')} from AcceleratorPool/"
                f"{before.pool.name}, which is newer, first {min(taken)}"
            )
    warnings += [
        f"spec.prices[{index}].perGPUHour: {price.per_gpu_hour} makes what runs there free, and no "
        "budget limits it"
        for index, price in enumerate(spec.prices)
        if not price.per_gpu_hour
    ]
    warnings += _currency_warnings(spec.prices[0].currency, pool.name, snapshot)
    if spec.node_template is not None:
        warnings += _late_labels(spec.node_selector, spec.node_template)
    if (
        spec.mig is not None
        and view.product is None
        and all(geometry_problem(model, spec.mig.layout) for model in gpu_models().values())
    ):
        slices = ", ".join(f"{count}x {name}" for name, count in sorted(spec.mig.layout.items()))
        warnings.append(f"spec.mig.layout: {slices} do not fit on 1 GPU of any known product")
    return [], warnings


def _currency_warnings(currency: str, name: str, snapshot: Snapshot) -> Iterator[str]:
    """Yield warnings of budgets and other pools in another currency."""
    budgets = {budget.spec.currency for budget in snapshot.budgets if budget.spec is not None}
    if budgets and currency not in budgets:
        yield (
            f"spec.prices: no TenantBudget is in {currency} but in {', '.join(sorted(budgets))}, "
            "so none of their tenants gets anything new here"
        )
    others = {
        pool.spec.prices[0].currency
        for pool in snapshot.pools
        if pool.spec is not None and pool.name != name
    }
    if others and currency not in others:
        yield (
            f"spec.prices: other AcceleratorPools are priced in {', '.join(sorted(others))}, and "
            "prices in several currencies cannot be compared: services without "
            "spec.placement.pools are not placed while they may use both"
        )


def _late_labels(node_selector: Mapping[str, str], template: NodeTemplate) -> list[str]:
    """Return a warning of labels that nodes get only after they started."""
    late = sorted(
        key
        for key in node_selector
        if key.startswith(("nvidia.com/", "feature.node.kubernetes.io/"))
        and key not in template.labels
    )
    if not late:
        return []
    return [
        f"spec.nodeSelector: nodes get {', '.join(late)} after they started, so an autoscaler may "
        "start none for pods that select by it; give the autoscaler's nodes the label, and list it "
        "in spec.nodeTemplate.labels"
    ]


def _pool_deletion_warnings(name: str, snapshot: Snapshot) -> list[str]:
    attempts = [batch.status.attempt for batch in snapshot.batches if batch.unfinished]
    services = sum(name in service.status.pools for service in snapshot.services)
    batches = sum(attempt is not None and attempt.pool == name for attempt in attempts)
    if not services + batches:
        return []
    return [
        f"{counted(services, 'service')} and {counted(batches, 'batch', 'batches')} run in "
        f"AcceleratorPool/{name}: they move to other pools or stay as they are, and what they cost "
        "there is not counted any more"
    ]


def _name_fault(budget: Budget, others: Sequence[Budget]) -> str | None:
    """Return which name in spec.publishing belongs to another budget; None if none does."""
    for claim in namespace_claims([*others, budget]):
        is_refused = claim.accepted.reason is BudgetAccepted.NAME_CONFLICT
        if claim.budget is budget and is_refused:
            return claim.accepted.message
    return None


def _deletion_warnings(budget: Budget, store: Store) -> list[str]:
    existing = plan_inputs(store, kinds.TENANT_BUDGETS, Budget)
    claims = {claim.budget.name: claim.namespaces for claim in namespace_claims(existing)}
    names = claims.get(budget.name, ())
    services, batches = (
        sum(key.namespace in names for key in store.all(kind))
        for kind in (kinds.INFERENCE_SERVICES, kinds.BATCH_INFERENCES)
    )
    if not services + batches:
        return []
    return [
        f"{counted(services, 'service')} and {counted(batches, 'batch', 'batches')} in "
        f"{', '.join(names)} lose their limit, and keys of the tenant end; a budget of the same "
        f"name goes on from what is spent; kubectl get tessera -n {names[0]} lists them"
    ]


def validators(
    store: Store,
    clock: Clock,
    namespaces: Sequence[str] = (),
    classes: ServiceClasses = BUILT_IN_CLASSES,
    *,
    gateways: bool = False,
) -> dict[str, Any]:
    """Return the handlers that kopf calls, by the plural of their kind.

    With `namespaces`, objects in others are not reviewed: a warning says that they are not watched.
    """
    reviews: dict[ApiResource, Reviewer] = {
        kinds.INFERENCE_SERVICES: lambda body, old, _: review_service(
            body,
            store,
            classes,
            old=old,
            gateways=gateways,
        ),
        kinds.BATCH_INFERENCES: lambda body, _, operation: review_batch(
            body, store, clock(), created=operation == "CREATE"
        ),
        kinds.TENANT_BUDGETS: lambda body, _, operation: review_budget(
            body, store, deleted=operation == "DELETE"
        ),
        kinds.ACCELERATOR_POOLS: lambda body, _, operation: review_pool(
            body, store, clock(), deleted=operation == "DELETE"
        ),
    }
    return {
        kind.plural: _validator(
            reviews.get(kind, partial(review_spec, kind, store)),
            namespaces if kind.namespaced else (),
        )
        for kind in kinds.USER_KINDS
    }


def _validator(review: Reviewer, namespaces: Sequence[str]) -> Any:
    async def validate(
        body: Mapping[str, Any],
        warnings: MutableSequence[str],
        old: Mapping[str, Any] | None = None,
        operation: str | None = None,
        **_: object,
    ) -> None:
        if namespaces and (namespace := body["metadata"].get("namespace", "")) not in namespaces:
            warnings.append(
                f"metadata.namespace: Tessera does not watch {namespace}; it watches "
                f"{counted(len(namespaces), 'namespace')}: {', '.join(sorted(namespaces))}"
            )
            return
        refusals, new_warnings = review(body, old, operation)
        # Parts of both are words of others: keys, names and flags.
        warnings.extend(one_line(each, MOST_TEXT) for each in new_warnings)
        if refusals:
            raise kopf.AdmissionError(one_line("; ".join(refusals), MOST_TEXT), code=422)

    return validate
