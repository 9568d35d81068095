"""Statuses as manifests for server-side apply."""

from typing import Any

from pydantic import BaseModel

from tessera.api.accelerator_pool import AcceleratorPoolStatus
from tessera.api.batch_inference import BatchInferenceStatus
from tessera.api.inference_service import InferenceServiceStatus
from tessera.api.tenant_budget import TenantBudgetStatus
from tessera.domain.observed.batches import Batch
from tessera.domain.observed.snapshot import Budget, ObservedService, Pool
from tessera.resources import api_resources
from tessera.resources.manifest import ObjectManifest


def service_status_manifest(
    service: ObservedService, status: InferenceServiceStatus
) -> ObjectManifest:
    """Return the status of one service."""
    metadata = {"name": service.ref.name, "namespace": service.ref.namespace}
    return _status_manifest(api_resources.INFERENCE_SERVICES, metadata, status)


def batch_status_manifest(batch: Batch, status: BatchInferenceStatus) -> ObjectManifest:
    """Return the status of one batch; its uid keeps it off a new batch of the same name."""
    metadata = {"name": batch.ref.name, "namespace": batch.ref.namespace, "uid": batch.uid}
    return _status_manifest(api_resources.BATCH_INFERENCES, metadata, status)


def pool_status_manifest(pool: Pool, status: AcceleratorPoolStatus) -> ObjectManifest:
    """Return the status of one pool; pools are cluster-scoped."""
    return _status_manifest(api_resources.ACCELERATOR_POOLS, {"name": pool.name}, status)


def budget_status_manifest(budget: Budget, status: TenantBudgetStatus) -> ObjectManifest:
    """Return the status of one budget; budgets are cluster-scoped."""
    return _status_manifest(api_resources.TENANT_BUDGETS, {"name": budget.name}, status)


def _status_manifest(
    kind: api_resources.ApiResource, metadata: dict[str, Any], status: BaseModel
) -> ObjectManifest:
    body = {
        "apiVersion": kind.api_version,
        "kind": kind.kind,
        "metadata": metadata,
        "status": status.model_dump(by_alias=True, exclude_none=True, mode="json"),
    }
    return ObjectManifest(
        kind=kind, namespace=metadata.get("namespace", ""), name=metadata["name"], body=body
    )
