"""Objects as the API server sends them -> the small values of the domain."""

import contextlib
import hashlib
import json
import logging
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime
from functools import lru_cache
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from tessera.api.accelerator_pool import AcceleratorPoolSpec, AcceleratorPoolStatus
from tessera.api.batch_inference import BatchInferenceSpec, BatchInferenceStatus
from tessera.api.inference_service import InferenceServiceSpec, InferenceServiceStatus
from tessera.api.node_layout import NodeLayoutSpec, NodeLayoutStatus
from tessera.api.tenant_budget import TenantBudgetSpec, TenantBudgetStatus
from tessera.domain.batch.facts import Batch, BatchJob, VolumeClaim
from tessera.domain.batch.names import (
    ATTEMPT_LABEL,
    BATCH_LABEL,
    BATCH_UID_LABEL,
    CHECK,
    RUNNER,
    attempt_of,
)
from tessera.domain.model.facts import ModelJobRun, ObservedModelJob
from tessera.domain.model.names import MODEL_JOB_LABEL, MODEL_JOB_SERVICE_LABEL
from tessera.domain.names import (
    COST_ANNOTATION,
    DRAINING,
    FIELD_MANAGER,
    SERVICE_LABEL,
    SERVING_GATE,
    UPDATE_ANNOTATION,
    VARIANT_LABEL,
)
from tessera.domain.repartition.facts import APPROVAL, DOWNTIME, NodeLayout
from tessera.domain.snapshot import (
    BatchRun,
    Budget,
    ContainerExit,
    Node,
    ObservedService,
    Pod,
    Pool,
    Ref,
    ServiceEndpoint,
    Workload,
)
from tessera.ports import ClusterObject, ObjectValue
from tessera.resources.kinds import (
    ACCELERATOR_POOLS,
    BATCH_INFERENCES,
    CHILDREN,
    CLAIMS,
    DEPLOYMENTS,
    INFERENCE_SERVICES,
    JOBS,
    NODE_LAYOUTS,
    NODES,
    PODS,
    SERVICES,
    TENANT_BUDGETS,
    Kind,
)
from tessera.resources.manifest import Key

log = logging.getLogger("tessera")

Wire = Mapping[str, Any]
Model = TypeVar("Model", bound=BaseModel)

_GPU_VENDOR = "nvidia.com/"
_OVER = ("Failed", "Succeeded")
"""Phases after which a pod does not run again."""


def service(body: Wire) -> ObservedService | None:
    """An InferenceService; one that this version cannot read has a problem instead of a spec.

    None for one that is being deleted: what it owned is the garbage collector's.
    """
    meta = body["metadata"]
    if "deletionTimestamp" in meta:
        return None
    spec, problem = _service_spec(json.dumps(body.get("spec", {})))
    return ObservedService(
        ref=_ref(meta),
        uid=meta["uid"],
        generation=meta.get("generation", 0),
        spec=spec,
        problem=problem,
        update=meta.get("annotations", {}).get(UPDATE_ANNOTATION),
        allows_downtime=meta.get("annotations", {}).get(DOWNTIME) == "true",
        status=_readable(InferenceServiceStatus, body.get("status", {})),
    )


def pool(body: Wire) -> Pool:
    """An AcceleratorPool, likewise."""
    meta = body["metadata"]
    spec, problem = _parsed(AcceleratorPoolSpec, "acceleratorpool", body.get("spec", {}))
    return Pool(
        name=meta["name"],
        uid=meta.get("uid", ""),
        generation=meta.get("generation", 0),
        spec=spec,
        problem=problem,
        approved_plan=meta.get("annotations", {}).get(APPROVAL),
        status=_readable(AcceleratorPoolStatus, body.get("status", {})),
    )


def budget(body: Wire) -> Budget:
    """A TenantBudget, likewise."""
    meta = body["metadata"]
    spec, problem = _parsed(TenantBudgetSpec, "tenantbudget", body.get("spec", {}))
    status, _ = _parsed(TenantBudgetStatus, "tenantbudget", body.get("status", {}))
    return Budget(
        name=meta["name"],
        generation=meta.get("generation", 0),
        spec=spec,
        problem=problem,
        status=status or TenantBudgetStatus(),
        record_lost=status is None,
    )


def batch(body: Wire) -> Batch | None:
    """A BatchInference, likewise; None for one that is being deleted."""
    meta = body["metadata"]
    if "deletionTimestamp" in meta:
        return None
    spec, problem = _parsed(BatchInferenceSpec, "batchinference", body.get("spec", {}))
    status, _ = _parsed(BatchInferenceStatus, "batchinference", body.get("status", {}))
    return Batch(
        ref=_ref(meta),
        uid=meta["uid"],
        generation=meta.get("generation", 0),
        created=_moment(meta["creationTimestamp"]),
        spec=spec,
        problem=problem,
        status=status or BatchInferenceStatus(),
    )


def job(body: Wire) -> BatchJob | ObservedModelJob | None:
    """The Job of a batch, or of an errand; None for any other."""
    meta = body["metadata"]
    labels = meta.get("labels", {})
    if MODEL_JOB_LABEL in labels and "deletionTimestamp" not in meta:
        return ObservedModelJob(
            ref=_ref(meta),
            service=Ref(meta["namespace"], labels.get(MODEL_JOB_SERVICE_LABEL, "")),
            task=labels[MODEL_JOB_LABEL],
            uid=meta["uid"],
            failed=_condition(body, "Failed").get("status") == "True",
        )
    if BATCH_LABEL not in labels or "deletionTimestamp" in meta:
        return None
    return BatchJob(
        ref=_ref(meta),
        batch=Ref(meta["namespace"], labels[BATCH_LABEL]),
        batch_uid=labels.get(BATCH_UID_LABEL, ""),
        attempt=attempt_of(labels.get(ATTEMPT_LABEL, "")),
        uid=meta["uid"],
        failed=_condition(body, "Failed").get("status") == "True",
    )


def claim(body: Wire) -> VolumeClaim:
    """A PersistentVolumeClaim."""
    spec = body.get("spec", {})
    modes = body.get("status", {}).get("accessModes") or spec.get("accessModes", ())
    return VolumeClaim(
        modes=tuple(modes),
        storage_class=spec.get("storageClassName"),
        uid=body["metadata"].get("uid", ""),
    )


def node(body: Wire) -> Node:
    """A node's labels, readiness and extended resources."""
    offered = body.get("status", {}).get("allocatable", {})
    ready = _condition(body, "Ready").get("status") == "True"
    return Node(
        name=body["metadata"]["name"],
        labels=body["metadata"].get("labels", {}),
        schedulable=ready and not body.get("spec", {}).get("unschedulable", False),
        kubelet_ready=ready,
        taints=frozenset(taint["key"] for taint in body.get("spec", {}).get("taints", ())),
        allocatable={
            name: _count(count) for name, count in offered.items() if name.startswith(_GPU_VENDOR)
        },
    )


def marked(body: Wire, labels: Mapping[str, str | None], taints: Mapping[str, bool]) -> Wire | None:
    """The merge patch that gives a node these labels and taints; None when it has them.

    Taints are one list: whoever changed it since makes the patch fail by the version.
    """
    meta = body["metadata"]
    live = meta.get("labels", {})
    different = {key: value for key, value in labels.items() if live.get(key) != value}
    before = body.get("spec", {}).get("taints", [])
    after = [taint for taint in before if taints.get(taint["key"], True)]
    there = {taint["key"] for taint in after}
    wanted = sorted(key for key, carried in taints.items() if carried and key not in there)
    after += [{"key": key, "effect": "NoSchedule"} for key in wanted]
    patch: dict[str, Any] = {"metadata": {"labels": different}} if different else {}
    if after != before:
        version = {"resourceVersion": meta["resourceVersion"]}
        patch = {"metadata": patch.get("metadata", {}) | version, "spec": {"taints": after}}
    return patch or None


def layout(body: Wire) -> NodeLayout:
    """What an agent tells of the GPUs of its node."""
    meta = body["metadata"]
    spec, _ = _parsed(NodeLayoutSpec, "nodelayout", body.get("spec", {}))
    status, _ = _parsed(NodeLayoutStatus, "nodelayout", body.get("status", {}))
    return NodeLayout(
        name=meta["name"],
        generation=meta.get("generation", 0),
        spec=spec or NodeLayoutSpec(),
        status=status if "status" in body else None,
    )


def pod(body: Wire) -> Pod:
    """One replica."""
    meta, status = body["metadata"], body.get("status", {})
    ready, gate = _condition(body, "Ready"), _condition(body, SERVING_GATE)
    scheduled = _condition(body, "PodScheduled")
    serving = {"True": True, "False": False}.get(gate.get("status", ""))
    containers = (*status.get("initContainerStatuses", ()), *status.get("containerStatuses", ()))
    trouble, last_words = _trouble(containers)
    labels = meta.get("labels", {})
    return Pod(
        ref=_ref(meta),
        uid=meta["uid"],
        service=Ref(meta["namespace"], labels.get(SERVICE_LABEL, "")),
        variant=labels.get(VARIANT_LABEL, ""),
        template=labels.get("pod-template-hash", ""),
        created=_moment(meta["creationTimestamp"]),
        node=body.get("spec", {}).get("nodeName"),
        devices=_devices(body.get("spec", {})),
        bound=_since(scheduled, "True"),
        ended=_ended(body),
        address=status.get("podIP"),
        ready_since=_since(ready, "True"),
        containers_ready=_condition(body, "ContainersReady").get("status") == "True",
        serving=serving,
        draining_since=_since(gate, "False") if gate.get("reason") == DRAINING else None,
        terminating="deletionTimestamp" in meta or status.get("phase") in _OVER,
        deletion_cost=int(meta.get("annotations", {}).get(COST_ANNOTATION, 0)),
        unschedulable=scheduled.get("message") if scheduled.get("status") == "False" else None,
        waiting_reason=trouble,
        container_message=last_words,
        last_exit=_exit(containers),
        batch_run=_run(meta, status) if BATCH_LABEL in labels else None,
        model_job_run=_errand(meta, status) if MODEL_JOB_LABEL in labels else None,
    )


def _errand(meta: Wire, status: Wire) -> ModelJobRun:
    states = [one.get("state", {}) for one in status.get("containerStatuses", ())]
    ended = next((state["terminated"] for state in states if "terminated" in state), None)
    owners = meta.get("ownerReferences", ())
    return ModelJobRun(
        service=Ref(meta["namespace"], meta["labels"].get(MODEL_JOB_SERVICE_LABEL, "")),
        job_uid=next((one["uid"] for one in owners if one.get("controller")), ""),
        exit_code=ended["exitCode"] if ended else None,
        report=str(ended.get("message", "")) if ended else "",
    )


def _run(meta: Wire, status: Wire) -> BatchRun:
    labels = meta["labels"]
    runner: Wire = next(
        (
            container.get("state", {})
            for container in status.get("containerStatuses", ())
            if container.get("name") in (RUNNER, CHECK)
        ),
        {},
    )
    ended, started = runner.get("terminated"), runner.get("running", {}).get("startedAt")
    owners = meta.get("ownerReferences", ())
    return BatchRun(
        batch=Ref(meta["namespace"], labels[BATCH_LABEL]),
        uid=labels.get(BATCH_UID_LABEL, ""),
        attempt=attempt_of(labels.get(ATTEMPT_LABEL, "")),
        since=_moment(started) if started else None,
        job_uid=next((one["uid"] for one in owners if one.get("controller")), ""),
        exit_code=ended["exitCode"] if ended else None,
        report=str(ended.get("message", "")) if ended else "",
        disrupted=any(
            one.get("type") == "DisruptionTarget" and one.get("status") == "True"
            for one in status.get("conditions", ())
        ),
    )


def workload(body: Wire) -> Workload:
    """The Deployment of one variant."""
    meta, status = body["metadata"], body.get("status", {})
    labels = meta.get("labels", {})
    seen = status.get("observedGeneration", 0) >= meta.get("generation", 0)
    newest = status.get("updatedReplicas", 0) == status.get("replicas", 0)
    strategy = body.get("spec", {}).get("strategy", {})
    return Workload(
        ref=_ref(meta),
        service=Ref(meta["namespace"], labels.get(SERVICE_LABEL, "")),
        variant=labels.get(VARIANT_LABEL, ""),
        replicas=body.get("spec", {}).get("replicas", 0),
        rollout_complete=seen and newest,
        replica_failure=_refused(body),
        surge=strategy.get("rollingUpdate", {}).get("maxSurge") != 0,
    )


def front(body: Wire) -> ServiceEndpoint:
    """The Service over the replicas."""
    meta = body["metadata"]
    address = body.get("spec", {}).get("clusterIP")
    return ServiceEndpoint(
        Ref(meta["namespace"], meta.get("labels", {}).get(SERVICE_LABEL, "")),
        address if address != "None" else None,
    )


def owned(body: Wire) -> str | None:
    """Digest of the set of fields that the operator owns by apply; None when it owns nothing.

    A field that anybody else changes or removes leaves the set, so two equal digests mean that
    everything applied is still in place, whatever the server made of its spelling.
    """
    for entry in body["metadata"].get("managedFields", ()):
        ours = entry.get("manager") == FIELD_MANAGER and entry.get("operation") == "Apply"
        if ours and not entry.get("subresource"):
            text = json.dumps(entry.get("fieldsV1", {}), sort_keys=True)
            return hashlib.sha256(text.encode()).hexdigest()[:16]
    return None


@lru_cache(maxsize=4096)
def _service_spec(text: str) -> tuple[InferenceServiceSpec | None, str | None]:
    """Events seldom bring another spec, and many services have the same."""
    return _parsed(InferenceServiceSpec, "inferenceservice", json.loads(text))


def _parsed(model: type[Model], kind: str, wire: Wire) -> tuple[Model | None, str | None]:
    try:
        return model.model_validate(wire), None
    except ValidationError as error:
        faults = "; ".join(_fault(fault) for fault in error.errors()[:3])
        return None, f"{faults} (kubectl explain {kind}.spec shows what may stand there)"


def _readable(model: type[Model], wire: Wire) -> Model:
    """What can be read of a status that another version wrote: one part of it that cannot must not
    take the others along, or an upgrade would forget by what replicas were made, or which GPUs are
    being cut."""
    with contextlib.suppress(ValidationError):
        return model.model_validate(wire, extra="ignore")
    found = {}
    for part, value in wire.items():
        with contextlib.suppress(ValidationError):
            model.model_validate({part: value}, extra="ignore")
            found[part] = value
    return model.model_validate(found, extra="ignore")


def _fault(fault: Any) -> str:
    path = ".".join(str(part) for part in ("spec", *fault["loc"]))
    return f"{path}: {fault['msg']}"


def _ref(meta: Wire) -> Ref:
    return Ref(meta["namespace"], meta["name"])


def _moment(text: str) -> datetime:
    return datetime.fromisoformat(text)


def _condition(body: Wire, kind: str) -> Wire:
    found: Iterable[Wire] = body.get("status", {}).get("conditions", ())
    return next((one for one in found if one.get("type") == kind), {})


def _since(condition: Wire, status: str) -> datetime | None:
    if condition.get("status") != status or not condition.get("lastTransitionTime"):
        return None
    return _moment(condition["lastTransitionTime"])


def _devices(spec: Wire) -> Mapping[str, int]:
    """Extended resources of all containers; for these requests and limits are equal."""
    held: Counter[str] = Counter()
    for container in (*spec.get("initContainers", ()), *spec.get("containers", ())):
        for name, count in container.get("resources", {}).get("limits", {}).items():
            if name.startswith(_GPU_VENDOR):
                held[name] += _count(count)
    return dict(held)


def _count(quantity: str) -> int:
    """A whole number as the API server spells it: 3000 may stand there as 3k."""
    powers = {"k": 3, "M": 6, "G": 9, "T": 12, "P": 15, "E": 18}
    power: int = powers.get(quantity[-1], 0)
    return int(quantity.rstrip("kMGTPE")) * int(10**power)


def _ended(body: Wire) -> datetime | None:
    """When the last container of a pod that will not run again ended; one may never have run."""
    status = body.get("status", {})
    if status.get("phase") not in _OVER:
        return None
    ends = [
        container.get("state", {}).get("terminated", {}).get("finishedAt")
        for container in (
            *status.get("initContainerStatuses", ()),
            *status.get("containerStatuses", ()),
        )
    ]
    never_ran = (
        _condition(body, "PodScheduled").get("lastTransitionTime")
        or body["metadata"]["creationTimestamp"]
    )
    return max((_moment(end) for end in ends if end), default=_moment(never_ran))


def _trouble(containers: Iterable[Wire]) -> tuple[str | None, str]:
    """Why a container waits, and what its last run or the kubelet said."""
    for container in containers:
        waiting = container.get("state", {}).get("waiting", {})
        ended = container.get("lastState", {}).get("terminated", {})
        words = str(ended.get("message") or waiting.get("message") or "").strip()
        if waiting.get("reason") and waiting["reason"] not in (
            "ContainerCreating",
            "PodInitializing",
        ):
            return waiting["reason"], words
    return None, ""


def _exit(containers: Iterable[Wire]) -> ContainerExit | None:
    """How the first container that is not ready ended last."""
    for container in containers:
        states = (container.get("state", {}), container.get("lastState", {}))
        ended = next((one["terminated"] for one in states if one.get("terminated")), None)
        if ended is not None and not container.get("ready"):
            return ContainerExit(
                code=ended.get("exitCode", 0),
                reason=ended.get("reason", ""),
                log_tail=str(ended.get("message") or "").strip(),
            )
    return None


def _refused(deployment: Wire) -> str | None:
    """Quotas and admission refuse pods to the ReplicaSet; its Deployment repeats the message."""
    failure = _condition(deployment, "ReplicaFailure")
    return failure.get("message", "") if failure.get("status") == "True" else None


_READERS: Mapping[str, Callable[[Wire], ObjectValue | None]] = {
    INFERENCE_SERVICES.plural: service,
    ACCELERATOR_POOLS.plural: pool,
    TENANT_BUDGETS.plural: budget,
    BATCH_INFERENCES.plural: batch,
    JOBS.plural: job,
    CLAIMS.plural: claim,
    NODE_LAYOUTS.plural: layout,
    NODES.plural: node,
    PODS.plural: pod,
    DEPLOYMENTS.plural: workload,
    SERVICES.plural: front,
}


def planned(kind: Kind) -> bool:
    """Does a plan read objects of this kind?"""
    return kind.plural in _READERS


def _read(kind: Kind, body: Wire) -> ObjectValue | None:
    """The value; one object that nobody could foresee is left out, and the rest goes on."""
    if kind.plural not in _READERS:
        return None
    try:
        return _READERS[kind.plural](body)
    except (ValueError, TypeError, KeyError, AttributeError, ArithmeticError):
        log.exception("%s %s is left out", kind.plural, body["metadata"].get("name"))
        return None


def seen(kind: Kind, body: Wire) -> ClusterObject:
    """An object of any kind that the operator knows."""
    meta = body["metadata"]
    namespace = meta.get("namespace", "")
    name = meta.get("labels", {}).get(SERVICE_LABEL)
    return ClusterObject(
        key=Key(kind.plural, namespace, meta["name"]),
        value=_read(kind, body),
        service=Ref(namespace, name) if name else None,
        owned_fields_digest=owned(body) if kind in CHILDREN else None,
        version=int(meta.get("resourceVersion", 0)),
    )
