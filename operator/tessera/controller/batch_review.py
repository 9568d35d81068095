"""Review of a BatchInference by what it names, however large the fleet is."""

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from tessera.adapters.kube import object_parsing as wire
from tessera.api.api_resource import ApiResource
from tessera.api.batch_reasons import BatchAccepted
from tessera.domain.batch.batches import situation_of
from tessera.domain.batch.spec import accept_spec
from tessera.domain.kinds import kinds
from tessera.domain.kinds.kinds import BATCH_INFERENCES
from tessera.domain.observed.batches import Batch, VolumeClaim
from tessera.domain.observed.snapshot import ObservedService, Pool, Ref, Snapshot
from tessera.ports import ObjectValue
from tessera.reconcile.observe import plan_inputs
from tessera.reconcile.store import Store
from tessera.resources import api_resources
from tessera.resources.manifest import ObjectKey

# Reasons that resolve without an edit, when another object is created.
_TRANSIENT = {
    BatchAccepted.SERVICE_NOT_FOUND,
    BatchAccepted.POOL_NOT_FOUND,
    BatchAccepted.CLAIM_NOT_FOUND,
    BatchAccepted.CLAIM_TERMINATING,
    BatchAccepted.READING_MODEL,
    BatchAccepted.FAILED_CREATE,
}
_UNREAD_MODEL = (
    "spec.model.shape: neither the spec nor the catalog has the dimensions of this model, so a Job "
    "reads its config.json first"
)


def review_batch(
    body: Mapping[str, Any], store: Store, at: datetime, *, created: bool = True
) -> tuple[list[str], list[str]]:
    """Return refusals and warnings for a BatchInference; waiting for an object is a warning.

    A file that another batch writes is refused for a `created` batch and a warning for a changed
    one, since its paths cannot change.
    """
    # A new object has no time yet.
    metadata = {"creationTimestamp": at.isoformat()} | dict(body["metadata"])
    batch = wire.parse_own(BATCH_INFERENCES, {**body, "metadata": metadata})
    if batch.deleting:
        return [], []
    verdict, _ = accept_spec(situation_of(_neighbors(batch, store, at), batch.ref))
    of_service = batch.spec is not None and batch.spec.service is not None
    model_pending = of_service and verdict.reason is BatchAccepted.UNKNOWN_MODEL
    conflicting = verdict.reason is BatchAccepted.OUTPUT_CONFLICT and not created
    if verdict.reason is BatchAccepted.READING_MODEL:
        # The Job of a new batch has no name yet, and the model of an existing one cannot change.
        return [], [_UNREAD_MODEL]
    waits = verdict.reason in _TRANSIENT or model_pending or conflicting
    if not verdict.reason.is_true and not waits:
        return [verdict.message], []
    return [], [verdict.message] if verdict.reason is not BatchAccepted.VALID else []


def _neighbors(batch: Batch, store: Store, at: datetime) -> Snapshot:
    """Return what a batch is judged by: its service, its claim, who else writes there, the pools.

    A snapshot of the fleet would take longer the larger the fleet is, for anyone who asks.
    """
    namespace, spec = batch.ref.namespace, batch.spec
    service = claim = None
    if spec is not None:
        claim = _observed(store, api_resources.CLAIMS, namespace, spec.claim_name)
        service = _observed(store, kinds.INFERENCE_SERVICES, namespace, spec.service or "")
    others = [
        other
        for key, observed in store.all(kinds.BATCH_INFERENCES).items()
        if key.namespace == namespace
        and key.name != batch.ref.name
        and isinstance(other := observed.plan_input, Batch)
        and _shares_claim(other, batch)
    ]
    services = (service,) if isinstance(service, ObservedService) else ()
    return Snapshot(
        at=at,
        services=tuple(each for each in services if not each.deleting),
        pools=plan_inputs(store, kinds.ACCELERATOR_POOLS, Pool),
        batches=(batch, *others),
        claims={Ref(namespace, spec.claim_name): claim}
        if spec is not None and isinstance(claim, VolumeClaim)
        else {},
    )


def _observed(store: Store, kind: ApiResource, namespace: str, name: str) -> ObjectValue:
    observed = store.all(kind).get(ObjectKey(kind.plural, namespace, name))
    return None if observed is None else observed.plan_input


def _shares_claim(other: Batch, batch: Batch) -> bool:
    return (
        other.spec is not None
        and batch.spec is not None
        and other.spec.claim_name == batch.spec.claim_name
    )
