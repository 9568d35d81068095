"""Parsing of API server objects (JSON) into the values of the domain."""

import base64
import contextlib
import hashlib
import json
import logging
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from decimal import Decimal
from functools import lru_cache
from sys import intern
from typing import Any, TypeVar

from kubernetes.utils import parse_quantity
from pydantic import BaseModel, TypeAdapter, ValidationError

from tessera.adapters.kube.managed_fields import foreign_fields, owned_fields_digest
from tessera.adapters.kube.scheduler_message import missing_on_nodes
from tessera.api.accelerator_pool import MAX_WORDS
from tessera.api.api_resource import ApiResource
from tessera.api.key_record import KEYS_TYPE, TENANT_LABEL, KeyName, KeyRecord
from tessera.api.node_layout import NodeLayoutSpec, NodeLayoutStatus
from tessera.api.service_class import BUILT_IN_CLASSES, ServiceClasses
from tessera.api.service_status import ModelStatus, PrecisionStatus
from tessera.api.template_version import PodTemplateVersionStatus
from tessera.api.text import one_line
from tessera.domain import names
from tessera.domain.batch import names as batch_names
from tessera.domain.hardware.device import is_gpu_resource
from tessera.domain.hardware.spot_nodes import DISRUPTION_TAINTS
from tessera.domain.kinds import kinds
from tessera.domain.kinds.kind import Kind
from tessera.domain.model.names import MODEL_JOB_LABEL, MODEL_JOB_SERVICE_LABEL
from tessera.domain.observed.batches import BatchJob, VolumeClaim
from tessera.domain.observed.gates import GateJob, GateJobRun, ServiceRevision
from tessera.domain.observed.model_jobs import ModelJobRun, ObservedModelJob
from tessera.domain.observed.node_layout import TAINT, ObservedNodeLayout
from tessera.domain.observed.object import NOT_CREATED, ObservedT
from tessera.domain.observed.providers import ProviderSecret
from tessera.domain.observed.snapshot import (
    BatchPod,
    ContainerExit,
    Node,
    Pod,
    PodEvent,
    PodToleration,
    Ref,
    ServiceEndpoint,
    Taint,
    Workload,
)
from tessera.domain.observed.tenant_keys import TenantKeys
from tessera.domain.placement.pod_template import unlisted_metadata
from tessera.domain.quality import names as gate_names
from tessera.domain.quality.change import gated_digest
from tessera.ports import ClusterObject, ObjectValue
from tessera.resources import api_resources
from tessera.resources.manifest import ObjectKey

log = logging.getLogger("tessera")

JsonObject = Mapping[str, Any]
ModelT = TypeVar("ModelT", bound=BaseModel)

# Of one node; above it the count is no number of devices.
_MAX_DEVICES = 1024
_MAX_QUANTITY = Decimal(10**6)
_MAX_BYTES = Decimal(2**60)
_KEY_NAME = TypeAdapter[str](KeyName)
_PRECISIONS = TypeAdapter[tuple[PrecisionStatus, ...]](tuple[PrecisionStatus, ...])
# Events of a pod that are read, and characters of a reason, of which the API server allows more.
_MAX_EVENTS = 16
_MAX_REASON = 64
_NODE_CLAIM = re.compile(r"nodeclaim/([a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?)", re.ASCII)
# As fields are named, and shorter than any key.
_KEY_FIELD = re.compile(r"[A-Za-z][A-Za-z0-9_.]{0,31}", re.ASCII)
# What a header can have; longer keys are none.
_PROVIDER_KEY = re.compile(r"[!-~]{1,4096}", re.ASCII)
# Others than certificates, such as a private key beside them, are not read.
_CERTIFICATE = re.compile(rb"-----BEGIN CERTIFICATE-----[A-Za-z0-9+/=\s]+-----END CERTIFICATE-----")
_MAX_AUTHORITIES_BYTES = 2**18
_INT32 = re.compile(r"-?\d{1,9}", re.ASCII)
# Far from the ends of the calendar, so that any span may be added to a time.
_EARLIEST, _LATEST = datetime(1970, 1, 2, tzinfo=UTC), datetime(2200, 1, 1, tzinfo=UTC)
# The kubelet's own limit of a termination message.
_MAX_TEXT = 4096
# Several of these stand in a status, each beside what to do.
_MAX_REFUSAL = 600
_TEMPLATE_LABEL = "pod-template-hash"
# Phases after which a pod never runs again.
_TERMINAL_PHASES = ("Failed", "Succeeded")
# Of a spec as JSON; those that people write have about 1,000 characters.
_MAX_CACHED_LENGTH = 2048
# Of the spec in a revision, which no schema of the API server bounds.
_MAX_SPEC_LENGTH = 256 * 1024
# GPUs and profiles of a pod; those that people write have one or two.
_MAX_SHARED_DEVICES = 16
# Of an engine, what differs between replicas on different hardware, and changes no answer.
_CAPACITY_FLAGS = (
    "--gpu-memory-utilization=",
    "--max-model-len=",
    "--max-num-batched-tokens=",
    "--max-num-seqs=",
    "--shutdown-timeout=",
    "--tensor-parallel-size=",
)


def parse_own(
    kind: Kind[ObservedT], body: JsonObject, classes: ServiceClasses = BUILT_IN_CLASSES
) -> ObservedT:
    """Parse an object of a kind that users write; if its spec is invalid, `problem` says why.

    What a spec omits is that of its class in `classes`, where its kind has classes.
    """
    meta = body["metadata"]
    if kind.completed_by_class:
        spec, problem = _classed_spec(kind, json.dumps(body.get("spec", {})), classes)
    else:
        spec, problem = _validate(kind, body.get("spec", {}))
    status: BaseModel | None = None
    if kind.status_in_parts:
        status = _validate_lenient(kind.status, body.get("status", {}))
    else:
        with contextlib.suppress(ValidationError):
            status = kind.status.model_validate(body.get("status", {}), extra="ignore")
    return kind.observed(
        ref=Ref(meta.get("namespace", "") if kind.namespaced else "", meta["name"]),
        uid=meta.get("uid", ""),
        created=_creation_time(meta),
        generation=meta.get("generation", 0),
        spec=spec,
        problem=problem,
        status=status or kind.status(),
        **(kind.more(body, spec, status) if kind.more is not None else {}),
    )


def parse_revision(
    body: JsonObject, classes: ServiceClasses = BUILT_IN_CLASSES
) -> ServiceRevision | None:
    """Parse the version of a service; None if no InferenceService owns it.

    Raises `ValueError` for one whose spec cannot be read.
    """
    meta, data = body["metadata"], body.get("data") or {}
    owner, kind = _controller(meta), kinds.INFERENCE_SERVICES
    if (owner.get("apiVersion"), owner.get("kind")) != (kind.api_version, kind.kind):
        return None
    text = json.dumps(data.get("spec", {}))
    if len(text) > _MAX_SPEC_LENGTH:
        raise ValueError(f"data.spec has {len(text)} characters")
    spec, problem = _classed_spec(kinds.INFERENCE_SERVICES, text, classes)
    if spec is None:
        raise ValueError(problem)
    number, update, model = body.get("revision", 0), data.get("update"), data.get("model")
    if not isinstance(number, int) or number < 0 or not isinstance(update, str | None):
        raise ValueError("revision is no number of versions, or data.update no text")
    annotations = meta.get("annotations", {})
    tried = annotations.get(gate_names.PRECISIONS_ANNOTATION)
    readiness = annotations.get(gate_names.READINESS_ANNOTATION, "")
    return ServiceRevision(
        ref=_ref(meta),
        uid=meta["uid"],
        service=Ref(meta["namespace"], owner["name"]),
        service_uid=owner["uid"],
        number=number,
        # By the present rules: a Tessera that knows further fields does not take them for a change.
        digest=gated_digest(spec, update),
        spec=spec,
        update=update,
        model=ModelStatus.model_validate(model, extra="ignore") if model else None,
        precisions=_PRECISIONS.validate_python(data.get("precisions", ()), extra="ignore"),
        builder_version=int(data.get("builderVersion", 1)),
        tried=frozenset(tried.split(",")) if tried is not None else None,
        readiness=gate_names.READINESS.get(readiness, "Ready"),
        created=_creation_time(meta),
    )


def _gate_job(body: JsonObject) -> GateJob | None:
    """Return the Job of a gate; None for one with a role that no Job has."""
    meta, labels = body["metadata"], body["metadata"]["labels"]
    role = gate_names.ROLES.get(labels.get(gate_names.GATE_ROLE_LABEL, ""))
    if role is None:
        return None
    return GateJob(
        ref=_ref(meta),
        uid=meta["uid"],
        gate=Ref(meta["namespace"], labels[gate_names.GATE_LABEL]),
        service=Ref(meta["namespace"], labels.get(gate_names.GATE_SERVICE_LABEL, "")),
        role=role,
        digest=meta.get("annotations", {}).get(gate_names.GATE_DIGEST_ANNOTATION, ""),
        created=_creation_time(meta),
        failed=_condition(body, "Failed").get("status") == "True",
    )


def parse_job(body: JsonObject) -> BatchJob | ObservedModelJob | GateJob | None:
    """Return the Job of a batch, of a model or of a gate; None for any other."""
    meta = body["metadata"]
    labels = meta.get("labels", {})
    if gate_names.GATE_LABEL in labels and "deletionTimestamp" not in meta:
        return _gate_job(body)
    if MODEL_JOB_LABEL in labels and "deletionTimestamp" not in meta:
        return ObservedModelJob(
            ref=_ref(meta),
            service=Ref(meta["namespace"], labels.get(MODEL_JOB_SERVICE_LABEL, "")),
            task=labels[MODEL_JOB_LABEL],
            uid=meta["uid"],
            created=_creation_time(meta),
            failed=_condition(body, "Failed").get("status") == "True",
        )
    if batch_names.BATCH_LABEL not in labels or "deletionTimestamp" in meta:
        return None
    return BatchJob(
        ref=_ref(meta),
        batch=Ref(meta["namespace"], labels[batch_names.BATCH_LABEL]),
        batch_uid=labels.get(batch_names.BATCH_UID_LABEL, ""),
        attempt=batch_names.parse_attempt_label(labels.get(batch_names.ATTEMPT_LABEL, "")),
        uid=meta["uid"],
        created=_creation_time(meta),
        failed=_condition(body, "Failed").get("status") == "True",
    )


def last_event_message(events: Iterable[JsonObject]) -> str | None:
    """Return the message of the latest event; None without one."""
    latest = max(events, key=lambda event: str(event.get("lastTimestamp") or ""), default=None)
    return None if latest is None else _refusal(latest.get("message", ""))


def parse_pod_events(events: Iterable[JsonObject]) -> tuple[PodEvent, ...]:
    """Return what is said of a pod, the latest first."""
    latest = sorted(events, key=_event_time, reverse=True)[:_MAX_EVENTS]
    return tuple(
        PodEvent(_clean(event.get("reason"))[:_MAX_REASON], _clean(event.get("message")))
        for event in latest
    )


def nominated_node_claim(events: Iterable[JsonObject]) -> str | None:
    """Return the NodeClaim that Karpenter creates for a pod; None without one."""
    for event in sorted(events, key=_event_time, reverse=True):
        if event.get("reason") == "Nominated" and (
            match := _NODE_CLAIM.search(_bounded_text(event.get("message", "")))
        ):
            return match[1]
    return None


def _event_time(event: JsonObject) -> str:
    series = event.get("series") or {}
    times = (series.get("lastObservedTime"), event.get("lastTimestamp"), event.get("eventTime"))
    return str(next((each for each in times if each), ""))


def _clean(text: object) -> str:
    """Return text of others in one line, without control characters, and not long."""
    return one_line(_bounded_text(text or ""), MAX_WORDS)


def parse_claim(body: JsonObject) -> VolumeClaim:
    """Parse a PersistentVolumeClaim."""
    spec = body.get("spec", {})
    modes = body.get("status", {}).get("accessModes") or spec.get("accessModes", ())
    storage_class = spec.get("storageClassName")
    meta = body["metadata"]
    return VolumeClaim(
        access_modes=tuple(modes),
        storage_class=storage_class,
        uid=meta.get("uid", ""),
        terminating="deletionTimestamp" in meta,
        gib=_gib(spec.get("resources", {}).get("requests", {}).get("storage", "0")),
        owners=tuple(owner["uid"] for owner in meta.get("ownerReferences", ())),
    )


_BARRING_EFFECTS = ("NoSchedule", "NoExecute")


def parse_node(body: JsonObject) -> Node:
    """Parse a node's labels, readiness and extended resources."""
    allocatable = body.get("status", {}).get("allocatable", {})
    ready, spec = _condition(body, "Ready").get("status") == "True", body.get("spec", {})
    taints = frozenset(taint["key"] for taint in spec.get("taints", ()))
    is_leaving = spec.get("unschedulable", False) or bool(taints & DISRUPTION_TAINTS)
    return Node(
        name=body["metadata"]["name"],
        labels=body["metadata"].get("labels", {}),
        schedulable=ready and not is_leaving,
        created=_parse_time(created)
        if (created := body["metadata"].get("creationTimestamp"))
        else None,
        kubelet_ready=ready,
        guarded=names.GUARD_ANNOTATION in body["metadata"].get("annotations", {}),
        taints=taints,
        barring_taints=tuple(
            Taint(taint["key"], taint.get("value") or "", taint["effect"])
            for taint in spec.get("taints", ())
            if taint.get("effect") in _BARRING_EFFECTS and not _is_temporary(taint["key"])
        ),
        allocatable={
            name: count
            for name, quantity in allocatable.items()
            if is_gpu_resource(name) and (count := _device_count(quantity)) <= _MAX_DEVICES
        },
    )


def _is_temporary(taint: str) -> bool:
    """Return whether a taint of this key goes by itself, so that no toleration is needed."""
    return taint in DISRUPTION_TAINTS or taint == TAINT or taint.startswith("node.kubernetes.io/")


def _toleration(body: JsonObject) -> PodToleration:
    return PodToleration(*(body.get(name) or "" for name in PodToleration._fields))


def parse_layout(body: JsonObject) -> ObservedNodeLayout:
    """Parse a NodeLayout: what the agent reports about the GPUs of its node."""
    meta, spec, status = body["metadata"], NodeLayoutSpec(), None
    with contextlib.suppress(ValidationError):
        spec = NodeLayoutSpec.model_validate(body.get("spec", {}))
    with contextlib.suppress(ValidationError):
        status = NodeLayoutStatus.model_validate(body.get("status", {}))
    heartbeat = status.last_heartbeat_time if status else None
    if status and heartbeat:
        status = status.model_copy(update={"last_heartbeat_time": None})
    return ObservedNodeLayout(
        name=meta["name"],
        generation=meta.get("generation", 0),
        spec=spec,
        status=status if "status" in body else None,
        heartbeat=heartbeat,
    )


def parse_pod(body: JsonObject) -> Pod | None:
    """Parse a pod of Tessera, or of anybody with devices; None for all others.

    Who may write a pod may write its labels too, so it is a replica by its controller. That is a
    ReplicaSet, which releases a pod that lacks the labels of its selector and bears the names of
    both in its own. Of other people's pods only what their devices cost is kept, and which they
    wait for.
    """
    meta, spec, status = body["metadata"], body.get("spec", {}), body.get("status", {})
    labels, devices = meta.get("labels", {}), _devices(spec)
    controller = _controller(meta)
    of_job = controller.get("kind") == "Job"
    batch_run = _batch_run(body) if of_job and batch_names.BATCH_LABEL in labels else {}
    model_job_run = _model_job_run(meta, status) if of_job and MODEL_JOB_LABEL in labels else None
    gate_job_run = _gate_job_run(body) if of_job and gate_names.GATE_LABEL in labels else None
    of_tessera_job = batch_run or model_job_run or gate_job_run
    if not (devices or of_tessera_job):
        return None
    service, variant = labels.get(names.SERVICE_LABEL, ""), labels.get(names.VARIANT_LABEL, "")
    scheduled = _condition(body, "PodScheduled")
    unschedulable = None
    if scheduled.get("status") == "False" and scheduled.get("message"):
        unschedulable = _refusal(missing_on_nodes(scheduled["message"]))
    digest = labels.get(names.TEMPLATE_LABEL, "")
    deployment = names.deployment_name(service, variant)
    if digest:
        deployment = names.template_deployment_name(service, variant, digest)
    replica_set = f"{deployment}-{labels.get(_TEMPLATE_LABEL, '')}"
    is_replica = (controller.get("kind"), controller.get("name")) == ("ReplicaSet", replica_set)
    pod = (BatchPod if batch_run else Pod)(
        ref=Ref(intern(meta["namespace"]), meta["name"]),
        uid=meta["uid"],
        service=Ref(intern(meta["namespace"]), service if is_replica else ""),
        variant=variant if is_replica else "",
        template_digest=digest if is_replica else "",
        created=_parse_time(meta["creationTimestamp"]),
        node=intern(spec["nodeName"]) if spec.get("nodeName") else None,
        # As with specs: the cache keeps former pods, and one may name thousands of resources.
        devices=_shared_devices(tuple(sorted(devices.items())))
        if len(devices) <= _MAX_SHARED_DEVICES
        else dict(sorted(devices.items())),
        # Of a pod that names its node itself this is when the kubelet admitted it.
        bound=_transition_time(scheduled, "True"),
        node_selector=() if spec.get("nodeName") else tuple(spec.get("nodeSelector", {}).items()),
        unschedulable=unschedulable,
        tolerations=tuple(map(_toleration, spec.get("tolerations", ()))) if unschedulable else (),
        ended=_end_time(status, scheduled.get("lastTransitionTime") or meta["creationTimestamp"]),
        model_job_run=model_job_run,
        gate_job_run=gate_job_run,
        **batch_run,
    )
    return _with_state(pod, body) if is_replica or of_tessera_job else pod


def _with_state(pod: Pod, body: JsonObject) -> Pod:
    """Return a pod of Tessera with what is known of its readiness and of its containers."""
    meta, spec, status = body["metadata"], body.get("spec", {}), body.get("status", {})
    labels, containers = meta.get("labels", {}), _containers(status)
    ready, gate = _condition(body, "Ready"), _condition(body, names.SERVING_GATE)
    all_ready = _condition(body, "ContainersReady")
    trouble, last_words = _waiting_reason(containers)
    return replace(
        pod,
        template=labels.get(_TEMPLATE_LABEL, ""),
        address=status.get("podIP"),
        started=_first_start(status),
        ready_since=_transition_time(ready, "True"),
        containers_ready=all_ready.get("status") == "True",
        containers_unready_since=_transition_time(all_ready, "False"),
        serving={"True": True, "False": False}.get(gate.get("status", "")),
        draining_since=_transition_time(gate, "False")
        if gate.get("reason") == names.DRAINING
        else None,
        terminating="deletionTimestamp" in meta or status.get("phase") in _TERMINAL_PHASES,
        deletion_cost=_parse_int32(meta.get("annotations", {}).get(names.COST_ANNOTATION, "")),
        leaving=names.LEAVING_LABEL in labels,
        tried=labels.get(names.LEAVING_LABEL) == names.TRIED,
        max_num_seqs=_engine_limit(spec, "--max-num-seqs="),
        max_num_batched_tokens=_engine_limit(spec, "--max-num-batched-tokens="),
        max_model_len=_engine_limit(spec, "--max-model-len="),
        engine=_engine_digest(spec),
        waiting_reason=trouble,
        container_message=last_words,
        last_exit=_last_exit(containers),
    )


def parse_secret(body: JsonObject) -> TenantKeys | ProviderSecret | None:
    """Parse a Secret with keys of a tenant, which has its label, or with keys of providers."""
    meta = body["metadata"]
    if TENANT_LABEL in meta.get("labels", {}):
        return parse_tenant_keys(body)
    keys, authorities = {}, {}
    for field, encoded in (body.get("data") or {}).items():
        with contextlib.suppress(ValueError):
            value = base64.b64decode(encoded, validate=True)
            certificates = b"\n".join(_CERTIFICATE.findall(value[: _MAX_AUTHORITIES_BYTES + 1]))
            if certificates and len(value) <= _MAX_AUTHORITIES_BYTES:
                authorities[field] = certificates.decode("ascii")
            key = value.decode("ascii").strip()
            if _PROVIDER_KEY.fullmatch(key):
                keys[field] = key
    return ProviderSecret(name=meta["name"], keys=keys, authorities=authorities)


def parse_tenant_keys(body: JsonObject) -> TenantKeys | None:
    """Parse a Secret with keys; None for one of another type.

    Of a record that cannot be read only its name and a field are known, since it may hold a key by
    mistake.
    """
    meta = body["metadata"]
    tenant = meta.get("labels", {}).get(TENANT_LABEL, "")
    if body.get("type") != KEYS_TYPE or not tenant:
        return None
    records, malformed = {}, {}
    for name, encoded in sorted((body.get("data") or {}).items()):
        try:
            _KEY_NAME.validate_python(name)
            records[name] = KeyRecord.model_validate_json(base64.b64decode(encoded, validate=True))
        except ValueError as error:
            malformed[name] = _key_fault(error)
    return TenantKeys(secret=_ref(meta), tenant=tenant, records=records, malformed=malformed)


def _key_fault(error: ValueError) -> str:
    """Say what is wrong with the record of a key, without anything that could be one."""
    fault = error.errors()[0] if isinstance(error, ValidationError) else None
    if fault is None or fault["type"] == "json_invalid":
        return "no JSON"
    path = ".".join(map(str, fault["loc"]))
    if _KEY_FIELD.fullmatch(path) is None:
        return "no name of a key" if not path else "unknown field"
    return f"unknown field {path}" if fault["type"] == "extra_forbidden" else f"field {path}"


def is_unneeded(kind: ApiResource, observed: ClusterObject) -> bool:
    """Return whether the object is one of the many pods that the operator does not need."""
    return kind.plural == api_resources.PODS.plural and observed.plan_input is None


def scaled_deployment(autoscaler: JsonObject) -> str | None:
    """Return the Deployment that a HorizontalPodAutoscaler scales; None for any other target."""
    target, kind = autoscaler["spec"]["scaleTargetRef"], api_resources.DEPLOYMENTS
    group = str(target.get("apiVersion", "")).partition("/")[0]
    return str(target["name"]) if (group, target["kind"]) == (kind.group, kind.kind) else None


def _model_job_run(meta: JsonObject, status: JsonObject) -> ModelJobRun:
    exit_code, report = _container_end(status)
    return ModelJobRun(
        service=Ref(meta["namespace"], meta["labels"].get(MODEL_JOB_SERVICE_LABEL, "")),
        job_uid=_controller(meta).get("uid", ""),
        exit_code=exit_code,
        report=report,
    )


def _gate_job_run(body: JsonObject) -> GateJobRun:
    meta, status = body["metadata"], body.get("status", {})
    exit_code, report = _container_end(status)
    return GateJobRun(
        job_uid=_controller(meta).get("uid", ""),
        exit_code=exit_code,
        report=report,
        address=status.get("podIP") if exit_code is None else None,
    )


def _container_end(status: JsonObject) -> tuple[int | None, str]:
    """Return exit code and termination message of the first container that ended."""
    states = [container.get("state", {}) for container in status.get("containerStatuses", ())]
    terminated = next((state["terminated"] for state in states if "terminated" in state), None)
    if terminated is None:
        return None, ""
    return terminated["exitCode"], _bounded_text(terminated.get("message", ""))


def _batch_run(body: JsonObject) -> JsonObject:
    """Return the fields that only the pods of batches have."""
    meta, labels = body["metadata"], body["metadata"]["labels"]
    runner: JsonObject = {}
    for container in body.get("status", {}).get("containerStatuses", ()):
        if container.get("name") in (batch_names.RUNNER, batch_names.CHECK):
            runner = container.get("state", {})
            break
    terminated, started = runner.get("terminated"), runner.get("running", {}).get("startedAt")
    return {
        "batch": Ref(meta["namespace"], labels[batch_names.BATCH_LABEL]),
        "batch_uid": labels.get(batch_names.BATCH_UID_LABEL, ""),
        "attempt": batch_names.parse_attempt_label(labels.get(batch_names.ATTEMPT_LABEL, "")),
        "runner_since": _parse_time(started) if started else None,
        "owner": _controller(meta).get("uid", ""),
        "exit_code": terminated["exitCode"] if terminated else None,
        "report": _bounded_text(terminated.get("message", "")) if terminated else "",
        "disrupted": _condition(body, "DisruptionTarget").get("status") == "True",
    }


def parse_workload(body: JsonObject) -> Workload:
    """Parse the Deployment of one variant."""
    meta, spec, status = body["metadata"], body.get("spec", {}), body.get("status", {})
    # Unlike its labels, the selector never changes.
    labels = spec.get("selector", {}).get("matchLabels", {})
    owners, failure = meta.get("ownerReferences", ()), _condition(body, "ReplicaFailure")
    owner_kind = kinds.INFERENCE_SERVICES.kind
    observed = status.get("observedGeneration", 0) >= meta.get("generation", 0)
    updated = status.get("updatedReplicas", 0) == status.get("replicas", 0)
    template = spec.get("template", {})
    annotations, model, record = meta.get("annotations", {}), None, None
    with contextlib.suppress(ValidationError):
        text = annotations.get(names.REVISION_ANNOTATION, "")
        model = ModelStatus.model_validate_json(text)
    with contextlib.suppress(ValidationError):
        text = annotations.get(names.TEMPLATE_ANNOTATION, "")
        record = PodTemplateVersionStatus.model_validate_json(text)
    return Workload(
        ref=_ref(meta),
        service=Ref(meta["namespace"], labels.get(names.SERVICE_LABEL, "")),
        variant=labels.get(names.VARIANT_LABEL, ""),
        template_digest=labels.get(names.TEMPLATE_LABEL, ""),
        record=record,
        created=_parse_time(created) if (created := meta.get("creationTimestamp")) else None,
        replicas=spec.get("replicas", 0),
        generation=meta.get("generation", 0),
        foreign_fields=foreign_fields(body),
        rollout_complete=observed and updated,
        # The message with which a quota or admission refused the ReplicaSet's pods.
        replica_failure=_refusal(failure.get("message", ""))
        if failure.get("status") == "True"
        else None,
        owner_uid=next((owner["uid"] for owner in owners if owner["kind"] == owner_kind), None),
        model=model,
        arguments=_engine_arguments(template.get("spec", {})),
        unlisted_metadata=unlisted_metadata(
            template.get("metadata", {}).get("labels", {}),
            template.get("metadata", {}).get("annotations", {}),
        ),
    )


def parse_service_endpoint(body: JsonObject) -> ServiceEndpoint:
    """Parse the Service of the replicas."""
    meta = body["metadata"]
    address = body.get("spec", {}).get("clusterIP")
    service = Ref(meta["namespace"], meta.get("labels", {}).get(names.SERVICE_LABEL, ""))
    return ServiceEndpoint(service, address if address != "None" else None)


def _classed_spec(kind: Kind[Any], text: str, classes: ServiceClasses) -> tuple[Any, str | None]:
    """Parse a spec; a short one is cached, since many objects have the same."""
    # The cache keeps former versions, so long specs that are edited often would fill the memory.
    return (cached_spec if len(text) <= _MAX_CACHED_LENGTH else _parse_spec)(kind, text, classes)


def _parse_spec(kind: Kind[Any], text: str, classes: ServiceClasses) -> tuple[Any, str | None]:
    return _validate(kind, json.loads(text), {"classes": classes})


# Up to 45 KiB each.
cached_spec = lru_cache(maxsize=2048)(_parse_spec)


def _validate(
    kind: Kind[Any], wire: JsonObject, context: dict[str, Any] | None = None
) -> tuple[BaseModel | None, str | None]:
    """Return a spec, or None and why it cannot be read."""
    try:
        return kind.spec.model_validate(wire, context=context), None
    except ValidationError as error:
        faults = "; ".join(_format_error(fault) for fault in error.errors()[:3])
        return None, f"{faults} (kubectl explain {kind.short_name}.spec shows the fields)"


def _validate_lenient(model: type[ModelT], wire: JsonObject) -> ModelT:
    """Parse a status, and leave out the parts that this version cannot read."""
    # One unreadable part must not discard the others: after an upgrade the operator would not know
    # the template version of replicas, or which GPUs are being partitioned.
    with contextlib.suppress(ValidationError):
        return model.model_validate(wire, extra="ignore")
    valid_parts = {}
    for part, value in wire.items():
        with contextlib.suppress(ValidationError):
            model.model_validate({part: value}, extra="ignore")
            valid_parts[part] = value
    return model.model_validate(valid_parts, extra="ignore")


def _format_error(fault: Any) -> str:
    path = ".".join(str(part) for part in ("spec", *fault["loc"]))
    return f"{path}: {fault['msg'].removeprefix('Value error, ')}"


def _ref(meta: JsonObject) -> Ref:
    return Ref(meta["namespace"], meta["name"])


def _creation_time(meta: JsonObject) -> datetime:
    """Return when an object was created; one under admission may have no time yet."""
    created = meta.get("creationTimestamp")
    return _parse_time(created) if created else NOT_CREATED


def _parse_time(text: str) -> datetime:
    parsed = datetime.fromisoformat(text)
    aware = parsed if parsed.tzinfo else parsed.replace(tzinfo=UTC)
    return min(max(aware, _EARLIEST), _LATEST)


def _parse_int32(text: str) -> int:
    return int(text) if _INT32.fullmatch(text) else 0


def _refusal(text: object) -> str:
    """Return the words with which a pod is refused, in one line, and not long."""
    return one_line(_bounded_text(text), _MAX_REFUSAL)


def _bounded_text(text: object) -> str:
    return str(text)[:_MAX_TEXT]


def _condition(body: JsonObject, kind: str) -> JsonObject:
    conditions: Iterable[JsonObject] = body.get("status", {}).get("conditions", ())
    return next((condition for condition in conditions if condition.get("type") == kind), {})


def _transition_time(condition: JsonObject, status: str) -> datetime | None:
    if condition.get("status") != status or not condition.get("lastTransitionTime"):
        return None
    return _parse_time(condition["lastTransitionTime"])


def _controller(meta: JsonObject) -> JsonObject:
    owners: Iterable[JsonObject] = meta.get("ownerReferences", ())
    return next((owner for owner in owners if owner.get("controller")), {})


def _devices(spec: JsonObject) -> Mapping[str, int]:
    """Return the devices that a pod needs at most at a time, as the scheduler counts them."""
    running, peak = Counter[str](), Counter[str]()
    for container in spec.get("initContainers", ()):
        if container.get("restartPolicy") == "Always":
            running += _limits(container)
        else:
            # It ends before the next one starts, and only sidecars run beside it.
            peak |= running + _limits(container)
    for container in spec.get("containers", ()):
        running += _limits(container)
    return running | peak


def _limits(container: JsonObject) -> Counter[str]:
    """Return the devices of a container; requests and limits of extended resources are equal."""
    limits = container.get("resources", {}).get("limits", {})
    return Counter(
        {name: _device_count(count) for name, count in limits.items() if is_gpu_resource(name)}
    )


def _engine_limit(spec: JsonObject, flag: str) -> int | None:
    """Return a limit of the engine's command line."""
    for container in spec.get("containers", ()):
        for argument in container.get("args", ()):
            if argument.startswith(flag):
                return _parse_int32(argument.removeprefix(flag)) or None
    return None


def _engine_arguments(spec: JsonObject) -> tuple[str, ...]:
    """Return the engine's command line."""
    for container in spec.get("containers", ()):
        if container.get("name") == names.ENGINE:
            return tuple(map(intern, container.get("args", ())))
    return ()


def _engine_digest(spec: JsonObject) -> str:
    """Return what is equal for engines of one image that have the same model, set up alike.

    A model of the hub has its commit on the command line.
    """
    for container in spec.get("containers", ()):
        if container.get("name") == names.ENGINE:
            arguments = container.get("args", ())
            decisive = [each for each in arguments if not each.startswith(_CAPACITY_FLAGS)]
            text = json.dumps([container.get("image"), *decisive])
            return intern(hashlib.sha256(text.encode()).hexdigest()[:16])
    return ""


@lru_cache(maxsize=1024)
def _shared_devices(devices: tuple[tuple[str, int], ...]) -> Mapping[str, int]:
    """Return the mapping, one object for all pods that ask for the same."""
    return dict(devices)


def _device_count(quantity: str) -> int:
    """Parse a count of devices in any form that the API server accepts, such as 3k or 3e3."""
    count: Decimal = parse_quantity(quantity)  # type: ignore[no-untyped-call]  # partly typed package
    if not 0 <= count < Decimal("Infinity"):
        raise ValueError(f"{quantity[:20]!r} is not a count of devices")
    return int(min(count, _MAX_QUANTITY))


def _gib(quantity: str) -> int:
    """Return the whole GiB of a size, rounded up."""
    size: Decimal = parse_quantity(quantity)  # type: ignore[no-untyped-call]  # partly typed package
    return -int(-min(size, _MAX_BYTES) // 2**30)


def _containers(status: JsonObject) -> Sequence[JsonObject]:
    return (*status.get("initContainerStatuses", ()), *status.get("containerStatuses", ()))


def _first_start(status: JsonObject) -> datetime | None:
    """Return when the engine's container began its first run, while that lasts."""
    for container in status.get("containerStatuses", ()):
        started = container.get("state", {}).get("running", {}).get("startedAt")
        if container.get("name") == names.ENGINE and started and not container.get("restartCount"):
            return _parse_time(started)
    return None


def _end_time(status: JsonObject, never_ran: str) -> datetime | None:
    """Return when the last container of a finished pod ended, or `never_ran`."""
    if status.get("phase") not in _TERMINAL_PHASES:
        return None
    states = (entry.get("state", {}).get("terminated", {}) for entry in _containers(status))
    ends = (_parse_time(state["finishedAt"]) for state in states if state.get("finishedAt"))
    return max(ends, default=_parse_time(never_ran))


def _waiting_reason(containers: Iterable[JsonObject]) -> tuple[str | None, str]:
    """Return why a container waits, and the message of its last run or of the kubelet."""
    for container in containers:
        waiting = container.get("state", {}).get("waiting", {})
        terminated = container.get("lastState", {}).get("terminated", {})
        message = _bounded_text(terminated.get("message") or waiting.get("message") or "").strip()
        if waiting.get("reason") and waiting["reason"] not in (
            "ContainerCreating",
            "PodInitializing",
        ):
            return _bounded_text(waiting["reason"]), message
    return None, ""


def _last_exit(containers: Iterable[JsonObject]) -> ContainerExit | None:
    """Return how the first container that is not ready last ended."""
    for container in containers:
        ended, before = container.get("state", {}), container.get("lastState", {})
        terminated = ended.get("terminated") or before.get("terminated")
        if terminated and not container.get("ready"):
            return ContainerExit(
                code=terminated.get("exitCode", 0),
                reason=_bounded_text(terminated.get("reason", "")),
                log_tail=_bounded_text(terminated.get("message") or "").strip(),
            )
    return None


# Parsers of the kinds that users do not write.
_PARSERS: Mapping[str, Callable[[JsonObject], ObjectValue | None]] = {
    kinds.NODE_LAYOUTS.plural: parse_layout,
    api_resources.JOBS.plural: parse_job,
    api_resources.CLAIMS.plural: parse_claim,
    api_resources.NODES.plural: parse_node,
    api_resources.PODS.plural: parse_pod,
    api_resources.DEPLOYMENTS.plural: parse_workload,
    api_resources.SERVICES.plural: parse_service_endpoint,
    api_resources.KEY_SECRETS.plural: parse_secret,
}
_USER_KINDS = {kind.plural: kind for kind in kinds.USER_KINDS}


def is_plan_input(kind: ApiResource) -> bool:
    """Return whether plans read objects of this kind."""
    revisions = api_resources.CONTROLLER_REVISIONS
    return kind.plural in {*_PARSERS, *_USER_KINDS, revisions.plural}


def parse_object(
    kind: ApiResource,
    body: JsonObject,
    classes: ServiceClasses = BUILT_IN_CLASSES,
) -> ClusterObject:
    """Parse an object of any kind that the operator reads or writes.

    Of a kind that the operator manages, an object that it did not apply is no child and no
    input of a plan: its labels can be copied. One that cannot be parsed is logged and is no input
    either, and the rest goes on.
    """
    meta = body["metadata"]
    key = ObjectKey(kind.plural, str(meta.get("namespace", "")), str(meta["name"]))
    try:
        return _parse(kind, body, key, classes)
    except (
        ValueError,
        TypeError,
        KeyError,
        AttributeError,
        ArithmeticError,
        RecursionError,
    ) as error:
        summary = f"{type(error).__name__}: {error}"[:300]
        log.error("%s/%s: malformed and ignored: %s", kind.plural, meta["name"], summary)
        return ClusterObject(key=key, malformed=True)


def _parse(
    kind: ApiResource, body: JsonObject, key: ObjectKey, classes: ServiceClasses
) -> ClusterObject:
    meta = body["metadata"]
    for texts in (meta.get("labels", {}), meta.get("annotations", {})):
        if not all(isinstance(text, str) for text in texts.values()):
            raise TypeError("a label or an annotation is no text")
    managed = kind.selector == api_resources.MANAGED_SELECTOR
    owned = owned_fields_digest(body) if managed else None
    foreign = managed and owned is None
    name = None if foreign else meta.get("labels", {}).get(names.SERVICE_LABEL)
    plan_input: ObjectValue = None
    if (own := _USER_KINDS.get(kind.plural)) is not None:
        plan_input = parse_own(own, body, classes)
    elif foreign:
        plan_input = None
    elif kind.plural == api_resources.CONTROLLER_REVISIONS.plural:
        plan_input = parse_revision(body, classes)
    elif (parse := _PARSERS.get(kind.plural)) is not None:
        plan_input = parse(body)
    return ClusterObject(
        key=key,
        uid=meta.get("uid", ""),
        plan_input=plan_input,
        heartbeat=getattr(plan_input, "heartbeat", None),
        service=Ref(key.namespace, name) if name else None,
        controller=_controller(meta).get("uid") if managed else None,
        owned_fields_digest=owned,
        version=int(meta.get("resourceVersion", 0)),
    )
