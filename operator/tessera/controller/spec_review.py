"""Review of gates, routes, providers and prices by what they name, however large the fleet is."""

from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from typing import Any

from tessera.adapters.kube import object_parsing as wire
from tessera.api.api_resource import ApiResource
from tessera.api.inference_service import InferenceServiceSpec
from tessera.api.model_provider import ModelProviderSpec
from tessera.api.model_route import ModelRouteSpec
from tessera.api.price_list import PriceListSpec
from tessera.api.quality_gate import QualityGateSpec
from tessera.domain.budget.budgets import namespace_claims
from tessera.domain.kinds.kind import Kind
from tessera.domain.kinds.kinds import (
    INFERENCE_SERVICES,
    MODEL_PROVIDERS,
    MODEL_ROUTES,
    PRICE_LISTS,
    QUALITY_GATES,
    TENANT_BUDGETS,
)
from tessera.domain.observed.providers import ObservedProvider
from tessera.domain.observed.snapshot import Budget
from tessera.reconcile.observe import plan_inputs
from tessera.reconcile.store import Store
from tessera.resources.api_resources import CLAIMS
from tessera.resources.manifest import ObjectKey

Review = tuple[list[str], list[str]]


def gate_warnings(namespace: str, spec: InferenceServiceSpec, store: Store) -> Iterator[str]:
    """Yield that the gate of a service does not exist."""
    gate = spec.rollout.gate_ref
    if gate is not None and not _exists(store, QUALITY_GATES, namespace, gate):
        yield f"spec.rollout.gateRef: QualityGate/{gate} not found in {namespace}"


def review_spec(
    kind: Kind[Any],
    store: Store,
    body: Mapping[str, Any],
    _: Mapping[str, Any] | None,
    operation: str | None,
) -> Review:
    """Return refusals and warnings for an object of a kind of which only its spec is reviewed."""
    if operation == "DELETE":
        return [], []
    observed = wire.parse_own(kind, body)
    if observed.spec is None:
        return [observed.problem or "spec: unreadable"], []
    warn = _WARNINGS.get(kind)
    return [], [] if warn is None else [*warn(observed.ref.namespace, observed.spec, store)]


def _missing_parts(namespace: str, spec: QualityGateSpec, store: Store) -> Iterator[str]:
    """Yield which claim or judge does not exist; ConfigMaps are read by Jobs alone."""
    claim, judge = spec.suite.claim, spec.judge
    if claim is not None and not _exists(store, CLAIMS, namespace, claim.claim_name):
        yield (
            f"spec.suite.claim.claimName: PersistentVolumeClaim/{claim.claim_name} not found in "
            f"{namespace}"
        )
    if judge is not None and not _exists(store, INFERENCE_SERVICES, namespace, judge.service):
        yield f"spec.judge.service: InferenceService/{judge.service} not found in {namespace}"


def _missing_targets(namespace: str, spec: ModelRouteSpec, store: Store) -> Iterator[str]:
    """Yield which targets do not exist.

    Only what its own namespace has is looked for among services, so that no answer says what
    others have; a provider that the tenant may not use reads as one that does not exist.
    """
    tenant = _tenant_of(namespace, store)
    for index, target in enumerate(spec.targets):
        field = f"spec.targets[{index}]"
        if target.service is not None:
            of_namespace, _, name = target.service.rpartition("/")
            if of_namespace in ("", namespace) and not _exists(
                store, INFERENCE_SERVICES, namespace, name
            ):
                yield f"{field}.service: InferenceService/{name} not found in {namespace}"
        elif target.provider is not None:
            name = target.provider.name
            observed = store.all(MODEL_PROVIDERS).get(ObjectKey(MODEL_PROVIDERS.plural, "", name))
            provider = observed.plan_input if observed is not None else None
            offered = provider.spec if isinstance(provider, ObservedProvider) else None
            if offered is None or tenant not in offered.tenants:
                yield (
                    f"{field}.provider.name: no ModelProvider/{name} that lists the tenant of "
                    f"{namespace}"
                )


def _unknown_tenants(_: str, spec: ModelProviderSpec, store: Store) -> Iterator[str]:
    """Yield which tenants do not exist; its Secret is read by gateways alone."""
    yield from _missing_tenants("spec.tenants", spec.tenants, _budgets(store))


def _unknown_payers(_: str, spec: PriceListSpec, store: Store) -> Iterator[str]:
    budgets = _budgets(store)
    for index, entry in enumerate(spec.entries):
        yield from _missing_tenants(f"spec.entries[{index}].tenants", entry.tenants, budgets)


_WARNINGS: Mapping[ApiResource, Callable[[str, Any, Store], Iterator[str]]] = {
    QUALITY_GATES: _missing_parts,
    MODEL_ROUTES: _missing_targets,
    MODEL_PROVIDERS: _unknown_tenants,
    PRICE_LISTS: _unknown_payers,
}


def _budgets(store: Store) -> Container[str]:
    """Return the names of all budgets: a price list may name thousands of tenants."""
    return {key.name for key in store.all(TENANT_BUDGETS)}


def _missing_tenants(field: str, tenants: Iterable[str], budgets: Container[str]) -> Iterator[str]:
    for index, name in enumerate(tenants):
        if name != "*" and name not in budgets:
            yield f"{field}[{index}]: TenantBudget/{name} not found"


def _exists(store: Store, kind: ApiResource, namespace: str, name: str) -> bool:
    return ObjectKey(kind.plural, namespace, name) in store.all(kind)


def _tenant_of(namespace: str, store: Store) -> str | None:
    for claim in namespace_claims(plan_inputs(store, TENANT_BUDGETS, Budget)):
        if namespace in claim.namespaces:
            return claim.budget.name
    return None
