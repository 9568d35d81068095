"""Tessera's own kinds: a row for each.

From the rows follow CRDs, rights, watches, what is parsed, conditions, Events and reference pages.
"""

import contextlib
from typing import Any

from pydantic import BaseModel, TypeAdapter, ValidationError

from tessera.api.accelerator_pool import AcceleratorPool
from tessera.api.api_resource import READ
from tessera.api.batch_inference import BatchInference
from tessera.api.inference_service import InferenceService
from tessera.api.model_provider import ModelProvider
from tessera.api.model_route import ModelRoute
from tessera.api.node_layout import NodeLayout
from tessera.api.price_list import PriceList
from tessera.api.quality_gate import QualityGate
from tessera.api.schema import CustomResource, PrinterColumn
from tessera.api.tenant_budget import (
    BudgetOverride,
    BudgetRaise,
    BudgetRaises,
    Tenant,
    TenantBudget,
)
from tessera.domain.kinds.kind import (
    Body,
    Kind,
    Process,
    accepted_columns,
    annotation,
    condition_path,
)
from tessera.domain.names import OVERRIDE_ANNOTATION, RAISES_ANNOTATION, UPDATE_ANNOTATION
from tessera.domain.observed.batches import Batch
from tessera.domain.observed.gates import ObservedGate
from tessera.domain.observed.node_layout import APPROVAL, DOWNTIME
from tessera.domain.observed.price_lists import ObservedPriceList
from tessera.domain.observed.providers import ObservedProvider
from tessera.domain.observed.routes import ObservedRoute
from tessera.domain.observed.snapshot import Budget, ObservedService, Pool

_ALL_WRITES = ("CREATE", "UPDATE", "DELETE")
_GATEWAY, _BOTH = frozenset({Process.GATEWAY}), frozenset(Process)
_ITL, _OUTPUT_RATE = ".status.speed.itlMs", ".status.speed.tokensPerSecond"

INFERENCE_SERVICES = Kind(
    model=InferenceService,
    observed=ObservedService,
    field="services",
    short_names=("tsvc",),
    completed_by_class=True,
    more=lambda body, *_: {
        "update": annotation(body, UPDATE_ANNOTATION),
        "allows_downtime": annotation(body, DOWNTIME) == "true",
        "deleting": "deletionTimestamp" in body["metadata"],
    },
    watched_by=_BOTH,
    columns=(
        PrinterColumn(name="Ready", path=condition_path("Ready", "status")),
        PrinterColumn(name="Reason", path=condition_path("Ready", "reason")),
        PrinterColumn(name="Replicas", type="integer", path=".status.readyReplicas"),
        PrinterColumn(name="Desired", type="integer", path=".status.scaling.desiredReplicas"),
        PrinterColumn(name="Instance", path=".status.instances"),
        PrinterColumn(name="$/h", path=".status.cost.perHour"),
        PrinterColumn(name="$/Mtok", path=".status.cost.perMillionTokens"),
        PrinterColumn(name="ITL-predicted", path=f"{_ITL}.predicted"),
        PrinterColumn(name="ITL", path=f"{_ITL}.measured"),
        PrinterColumn(name="SLO", path=".status.slo.attained"),
        PrinterColumn(name="Age", type="date", path=".metadata.creationTimestamp"),
        PrinterColumn(name="Tok/s-predicted", path=f"{_OUTPUT_RATE}.predicted", priority=1),
        PrinterColumn(name="Tok/s", path=f"{_OUTPUT_RATE}.measured", priority=1),
        PrinterColumn(name="Capacity", path=".status.capacity", priority=1),
        PrinterColumn(name="Budget", path=".status.tenant.reason", priority=1),
        PrinterColumn(name="Scaling", path=".status.scaling.reason", priority=1),
        PrinterColumn(name="Update", path=condition_path("UpdateAvailable", "status"), priority=1),
        PrinterColumn(name="Message", path=condition_path("Ready", "message"), priority=1),
    ),
    scale=(
        ("specReplicasPath", ".spec.replicas"),
        ("statusReplicasPath", ".status.replicas"),
        ("labelSelectorPath", ".status.selector"),
    ),
)

ACCELERATOR_POOLS = Kind(
    model=AcceleratorPool,
    observed=Pool,
    field="pools",
    short_names=("tpool",),
    namespaced=False,
    more=lambda body, *_: {"approved_plan": annotation(body, APPROVAL)},
    reviewed_on=_ALL_WRITES,
    watched_by=_BOTH,
    columns=(
        PrinterColumn(name="Accepted", path=condition_path("Accepted", "status")),
        PrinterColumn(name="Discovered", path=condition_path("Discovered", "status")),
        PrinterColumn(name="Product", path=".status.product"),
        PrinterColumn(name="Tier", path=".spec.tier"),
        PrinterColumn(name="Nodes", type="integer", path=".status.readyNodes"),
        PrinterColumn(name="Allocatable", path=".status.allocatable"),
        PrinterColumn(name="Layout", path=condition_path("LayoutReady", "reason")),
        PrinterColumn(name="$/GPU-h", path=".status.perGPUHour"),
        PrinterColumn(name="Age", type="date", path=".metadata.creationTimestamp"),
        PrinterColumn(name="Message", path=condition_path("Discovered", "message"), priority=1),
    ),
)

# The agents create one for each node, and the operator writes only its spec.
NODE_LAYOUTS = CustomResource(
    model=NodeLayout,
    namespaced=False,
    columns=(
        PrinterColumn(name="Partitioning", type="boolean", path=".status.partitioningEnabled"),
        PrinterColumn(name="Driver", path=".status.driverVersion"),
        PrinterColumn(name="Problem", path=".status.problem"),
        PrinterColumn(name="Age", type="date", path=".metadata.creationTimestamp"),
    ),
)

_RAISES = TypeAdapter[tuple[BudgetRaise, ...]](BudgetRaises)


def _of_budget(body: Body, spec: BaseModel | None, status: BaseModel | None) -> dict[str, Any]:
    """Return its annotations, what an invalid spec names, and whether its record is lost."""
    fields: dict[str, Any] = {"record_lost": status is None}
    with contextlib.suppress(ValidationError):
        text = annotation(body, OVERRIDE_ANNOTATION) or ""
        fields["override"] = BudgetOverride.model_validate_json(text)
    with contextlib.suppress(ValidationError):
        fields["raises"] = _RAISES.validate_json(annotation(body, RAISES_ANNOTATION) or "[]")
    if spec is None:
        with contextlib.suppress(ValidationError):
            named = body.get("spec", {}).get("tenant")
            tenant = Tenant.model_validate(named, extra="ignore")
            fields["named_namespaces"] = tenant.namespaces
    return fields


TENANT_BUDGETS = Kind(
    model=TenantBudget,
    observed=Budget,
    field="budgets",
    short_names=("tbudget",),
    namespaced=False,
    status_in_parts=False,
    more=_of_budget,
    reviewed_on=_ALL_WRITES,
    watched_by=_BOTH,
    columns=(
        PrinterColumn(name="WithinBudget", path=condition_path("WithinBudget", "status")),
        PrinterColumn(name="Reason", path=condition_path("WithinBudget", "reason")),
        PrinterColumn(name="Spent", path=".status.summary"),
        PrinterColumn(name="$/h", path=".status.perHour"),
        PrinterColumn(name="Services", type="integer", path=".status.services"),
        PrinterColumn(name="Owner", path=".spec.owner"),
        PrinterColumn(name="Age", type="date", path=".metadata.creationTimestamp"),
        PrinterColumn(name="Accepted", path=condition_path("Accepted", "reason"), priority=1),
        PrinterColumn(name="Message", path=condition_path("WithinBudget", "message"), priority=1),
    ),
)

BATCH_INFERENCES = Kind(
    model=BatchInference,
    observed=Batch,
    field="batches",
    short_names=("tbatch",),
    verbs=(*READ, "delete"),
    status_in_parts=False,
    more=lambda body, *_: {"deleting": "deletionTimestamp" in body["metadata"]},
    columns=(
        PrinterColumn(name="State", path=".status.state"),
        PrinterColumn(name="Completions", path=".status.done"),
        PrinterColumn(name="Instance", path=".status.attempt.variant"),
        PrinterColumn(name="Deadline", path=".status.deadline"),
        PrinterColumn(name="Reason", path=".status.reason"),
        PrinterColumn(name="Age", type="date", path=".metadata.creationTimestamp"),
        PrinterColumn(name="Attempt", type="integer", path=".status.attempt.number", priority=1),
        PrinterColumn(name="Tier", path=".status.attempt.tier", priority=1),
        PrinterColumn(name="Message", path=".status.message", priority=1),
    ),
)

QUALITY_GATES = Kind(
    model=QualityGate,
    observed=ObservedGate,
    field="gates",
    short_names=("tgate",),
    columns=accepted_columns(
        PrinterColumn(name="Service", path=".status.verdicts[0].service"),
        PrinterColumn(name="Verdict", path=".status.verdicts[0].reason"),
        PrinterColumn(name="Decided", type="date", path=".status.verdicts[0].decidedAt"),
    ),
)

MODEL_ROUTES = Kind(
    model=ModelRoute,
    observed=ObservedRoute,
    short_names=("troute",),
    watched_by=_BOTH,
    columns=accepted_columns(
        PrinterColumn(name="Targets", path=".status.summary"),
    ),
)

MODEL_PROVIDERS = Kind(
    model=ModelProvider,
    observed=ObservedProvider,
    field="providers",
    short_names=("tprovider",),
    namespaced=False,
    watched_by=_BOTH,
    columns=accepted_columns(
        PrinterColumn(name="Region", path=".spec.region"),
        PrinterColumn(name="Models", path=".spec.models[*].name"),
    ),
)

PRICE_LISTS = Kind(
    model=PriceList,
    observed=ObservedPriceList,
    namespaced=False,
    watched_by=_GATEWAY,
    # The operator lists them once a day to write prices by cost, with rights of its own.
    subresources=(),
    columns=(
        PrinterColumn(name="Currency", path=".spec.currency"),
        PrinterColumn(name="From", path=".spec.entries[*].from"),
        PrinterColumn(name="Models", path=".spec.entries[*].models"),
        PrinterColumn(name="Age", type="date", path=".metadata.creationTimestamp"),
    ),
)

# Kinds with a spec that users write.
USER_KINDS: tuple[Kind[Any], ...] = (
    INFERENCE_SERVICES,
    BATCH_INFERENCES,
    ACCELERATOR_POOLS,
    TENANT_BUDGETS,
    QUALITY_GATES,
    MODEL_ROUTES,
    MODEL_PROVIDERS,
    PRICE_LISTS,
)
KINDS: tuple[CustomResource, ...] = (*USER_KINDS, NODE_LAYOUTS)
