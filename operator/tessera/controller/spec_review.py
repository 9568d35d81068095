"""Review of gates, routes, providers and prices by what they name, however large the fleet is."""

from collections.abc import Container, Iterable, Iterator, Mapping
from typing import Any

from tessera.adapters.kube import object_parsing as wire
from tessera.api.api_resource import ApiResource
from tessera.api.inference_service import InferenceServiceSpec
from tessera.api.quality_gate import QualityGateSpec
from tessera.domain.budget.budgets import namespace_claims
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


def review_gate(body: Mapping[str, Any], store: Store) -> Review:
    """Return refusals and warnings for a QualityGate."""
    gate = wire.parse_own(QUALITY_GATES, _with_uid(body))
    if gate.spec is None:
        return [gate.problem or "spec: unreadable"], []
    return [], [*_missing_parts(gate.ref.namespace, gate.spec, store)]


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


def review_route(body: Mapping[str, Any], store: Store) -> Review:
    """Return refusals and warnings for a ModelRoute.

    Only what its own namespace has is looked for among services, so that no answer says what
    others have; a provider that the tenant may not use reads as one that does not exist.
    """
    route = wire.parse_own(MODEL_ROUTES, _with_uid(body))
    if route.spec is None:
        return [route.problem or "spec: unreadable"], []
    namespace, warnings = route.ref.namespace, list[str]()
    tenant = _tenant_of(namespace, store)
    for index, target in enumerate(route.spec.targets):
        field = f"spec.targets[{index}]"
        if target.service is not None:
            of_namespace, _, name = target.service.rpartition("/")
            if of_namespace in ("", namespace) and not _exists(
                store, INFERENCE_SERVICES, namespace, name
            ):
                warnings.append(
                    f"{field}.service: InferenceService/{name} not found in {namespace}"
                )
        elif target.provider is not None:
            name = target.provider.name
            observed = store.all(MODEL_PROVIDERS).get(ObjectKey(MODEL_PROVIDERS.plural, "", name))
            provider = observed.plan_input if observed is not None else None
            spec = provider.spec if isinstance(provider, ObservedProvider) else None
            if spec is None or tenant not in spec.tenants:
                warnings.append(
                    f"{field}.provider.name: no ModelProvider/{name} that lists the tenant of "
                    f"{namespace}"
                )
    return [], warnings


def review_provider(body: Mapping[str, Any], store: Store) -> Review:
    """Return refusals and warnings for a ModelProvider; its Secret is read by gateways alone."""
    provider = wire.parse_own(MODEL_PROVIDERS, _with_uid(body))
    if provider.spec is None:
        return [provider.problem or "spec: unreadable"], []
    return [], [*_missing_tenants("spec.tenants", provider.spec.tenants, _budgets(store))]


def review_prices(body: Mapping[str, Any], store: Store) -> Review:
    """Return refusals and warnings for a PriceList."""
    prices = wire.parse_own(PRICE_LISTS, body)
    if prices.spec is None:
        return [prices.problem or "spec: unreadable"], []
    budgets = _budgets(store)
    return [], [
        warning
        for index, entry in enumerate(prices.spec.entries)
        for warning in _missing_tenants(f"spec.entries[{index}].tenants", entry.tenants, budgets)
    ]


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


def _with_uid(body: Mapping[str, Any]) -> dict[str, Any]:
    """Return an object with a UID, which a new one does not have yet."""
    return {**body, "metadata": {"uid": "", **body["metadata"]}}
