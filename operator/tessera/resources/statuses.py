"""Statuses as they are applied."""

from typing import Any

from pydantic import BaseModel

from tessera.api.accelerator_pool import AcceleratorPoolStatus
from tessera.api.batch_inference import BatchInferenceStatus
from tessera.api.inference_service import InferenceServiceStatus
from tessera.api.tenant_budget import TenantBudgetStatus
from tessera.domain.batch.facts import Batch
from tessera.domain.snapshot import Budget, ObservedService, Pool
from tessera.resources.kinds import (
    ACCELERATOR_POOLS,
    BATCH_INFERENCES,
    INFERENCE_SERVICES,
    TENANT_BUDGETS,
    Kind,
)
from tessera.resources.manifest import Manifest


def of_service(service: ObservedService, status: InferenceServiceStatus) -> Manifest:
    """The status of one service."""
    metadata = {"name": service.ref.name, "namespace": service.ref.namespace}
    return _status(INFERENCE_SERVICES, metadata, status)


def of_batch(batch: Batch, status: BatchInferenceStatus) -> Manifest:
    """The status of one batch; a namesake of a batch that is gone does not get it."""
    metadata = {"name": batch.ref.name, "namespace": batch.ref.namespace, "uid": batch.uid}
    return _status(BATCH_INFERENCES, metadata, status)


def of_pool(pool: Pool, status: AcceleratorPoolStatus) -> Manifest:
    """The status of one pool; pools have no namespace."""
    return _status(ACCELERATOR_POOLS, {"name": pool.name}, status)


def of_budget(budget: Budget, status: TenantBudgetStatus) -> Manifest:
    """The status of one budget; budgets have no namespace."""
    return _status(TENANT_BUDGETS, {"name": budget.name}, status)


def _status(kind: Kind, metadata: dict[str, Any], status: BaseModel) -> Manifest:
    body = {
        "apiVersion": kind.api_version,
        "kind": kind.kind,
        "metadata": metadata,
        "status": status.model_dump(by_alias=True, exclude_none=True, mode="json"),
    }
    return Manifest(
        kind=kind, namespace=metadata.get("namespace", ""), name=metadata["name"], body=body
    )
