"""The pod template version of a service, which upgrades of Tessera leave alone.

A newer version is taken only when pods are recreated anyway: for a new Deployment, after a change
of the fields that shape them, or on the annotation `tessera.dev/update`. Defaults and planned
numbers of a newer Tessera wait for the same moment.
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from pydantic.alias_generators import to_camel

from tessera.api.inference_service import InferenceServiceSpec
from tessera.api.meta import Wire
from tessera.api.precision import CHECKPOINT
from tessera.api.reasons import StatusVerdict, UpdateAvailable
from tessera.api.template_version import (
    EffectiveValues,
    Platform,
    PodTemplateVersion,
    PodTemplateVersionStatus,
)
from tessera.api.text import counted
from tessera.domain.model.precision_files import spec_in
from tessera.domain.names import UPDATE_ANNOTATION
from tessera.domain.observed.snapshot import ObservedService, Workload
from tessera.domain.placement.candidates import HardwareChoice
from tessera.domain.service.measured_limits import lowered_limit

# Fields of the spec that shape the pods. The others decide placement and count; of `precision` the
# chosen variant counts.
_TEMPLATE_FIELDS = ("model", "slo", "context", "engine", "drain", "pod_template")
_NOT_OF_PODS = {"drain": {"move_streams"}}


@dataclass(frozen=True, slots=True, kw_only=True)
class TemplateDecision:
    """The pod template version of a service."""

    record: PodTemplateVersionStatus
    choice: HardwareChoice
    """The choice with the numbers planned when the replicas were created."""
    verdict: StatusVerdict[UpdateAvailable]
    workload: Workload | None = None
    """The Deployment of the template, if it exists."""

    @property
    def version(self) -> PodTemplateVersion:
        return PodTemplateVersion(
            builder_version=self.record.builder_version, platform=self.record.platform
        )

    @property
    def digest(self) -> str:
        """Return what tells the template from others of its variant."""
        return template_digest(self.record)


def template_digest(record: PodTemplateVersionStatus) -> str:
    """Return a digest of what a pod template is made from."""
    # The digests of records without a gate are as they were before there were gates.
    unset = {"gated"} if record.gated is None else set[str]()
    text = record.model_dump_json(by_alias=True, exclude={"downgraded_from", *unset})
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def decide_template(
    available: PodTemplateVersion,
    service: ObservedService,
    spec: InferenceServiceSpec,
    choice: HardwareChoice,
    workloads: Sequence[Workload],
    unused: Workload | None = None,
) -> TemplateDecision:
    """Return the version of the pods of one of the variant's Deployments, or the newest version.

    One that suits the spec stays, also where others came after it. A first Deployment that is
    `unused`, without a replica, takes the newest version.
    """
    newest = _newest_template(available, service, spec, choice)
    records = [
        (workload, _recorded_template(service, workload, workloads, newest))
        for workload in workloads
    ]
    for workload, record in reversed(records):
        if record is not None and _suits(record, newest, service, spec, choice):
            same = record.effective_values == newest.effective_values
            values = record.effective_values
            return TemplateDecision(
                record=record,
                choice=choice if same else _choice_with_effective_values(choice, values),
                verdict=_verdict(service, record, newest),
                workload=workload,
            )
    newer = [record.builder_version for _, record in records if record is not None]
    if newer and max(newer) > newest.builder_version:
        newest = newest.model_copy(update={"downgraded_from": max(newer)})
    return TemplateDecision(
        record=newest,
        choice=choice,
        verdict=_verdict(service, newest, newest),
        workload=unused,
    )


def _suits(
    record: PodTemplateVersionStatus,
    newest: PodTemplateVersionStatus,
    service: ObservedService,
    spec: InferenceServiceSpec,
    choice: HardwareChoice,
) -> bool:
    """Return whether pods of a record go on: its spec is the present one, and no update is due."""
    # The API server adds the default of `drain.timeout` to a service that had no `drain`.
    is_same = record.template_hash == newest.template_hash or (
        spec.drain.timeout == record.effective_values.drain_timeout
        and record.template_hash == _hash(service, spec, choice, without=frozenset({"drain"}))
    )
    is_known = record.builder_version <= newest.builder_version
    return is_same and is_known and not is_update_requested(service, record.observed_update)


def is_update_requested(service: ObservedService, applied_update: str | None) -> bool:
    """Return whether the annotation has a new value; removing it requests nothing."""
    return service.update is not None and service.update != applied_update


def spec_with_effective_values(
    spec: InferenceServiceSpec, effective_values: EffectiveValues
) -> InferenceServiceSpec:
    """Return the spec with the defaults of the time when the replicas were created."""
    engine = spec.engine.model_copy(update={"version": effective_values.engine_version})
    drain = spec.drain.model_copy(update={"timeout": effective_values.drain_timeout})
    return spec.model_copy(update={"engine": engine, "drain": drain})


def _choice_with_effective_values(
    choice: HardwareChoice, effective_values: EffectiveValues
) -> HardwareChoice:
    fit = choice.fit
    limits = replace(
        fit.limits,
        max_num_seqs=effective_values.max_num_seqs,
        max_num_batched_tokens=effective_values.max_num_batched_tokens,
    )
    memory = replace(fit.memory, weights_mib=effective_values.weights_mib)
    return replace(
        choice,
        fit=replace(
            fit, max_model_len=effective_values.max_model_len, limits=limits, memory=memory
        ),
    )


def _newest_template(
    available: PodTemplateVersion,
    service: ObservedService,
    spec: InferenceServiceSpec,
    choice: HardwareChoice,
) -> PodTemplateVersionStatus:
    fit, gated = choice.fit, service.gated
    return PodTemplateVersionStatus(
        # Another builder may change answers, so a gated version stays with its own.
        builder_version=gated.builder_version if gated else available.builder_version,
        platform=available.platform,
        template_hash=_hash(service, spec, choice),
        effective_values=EffectiveValues(
            engine_version=spec.engine.version,
            drain_timeout=spec.drain.timeout,
            max_model_len=fit.max_model_len,
            max_num_seqs=fit.limits.max_num_seqs,
            max_num_batched_tokens=fit.limits.max_num_batched_tokens,
            weights_mib=fit.memory.weights_mib,
        ),
        observed_update=service.update,
        gated=f"{gated.digest}/{fit.precision or CHECKPOINT}" if gated else None,
    )


def _recorded_template(
    service: ObservedService,
    workload: Workload,
    workloads: Sequence[Workload],
    newest: PodTemplateVersionStatus,
) -> PodTemplateVersionStatus | None:
    """Return the version of the pods of a Deployment; None where nothing that is trusted says it.

    Who may write an annotation of a Deployment may not write its selector, nor a status. A first
    Deployment has no digest in its selector: the status has its record until another follows.
    """
    record = workload.record
    digest = template_digest(record) if record is not None else None
    if workload.template_digest:
        return record if digest == workload.template_digest else None
    known = {each.complete for each in service.status.templates} | {template_digest(newest)}
    if digest is not None and digest in known:
        return record
    if any(each.template_digest for each in workloads):
        return None
    return _reported_template(service, workload, newest)


def _reported_template(
    service: ObservedService, workload: Workload, newest: PodTemplateVersionStatus
) -> PodTemplateVersionStatus | None:
    """Return the version of the variant in the status, else that of the Deployment.

    A status of the variant without a version is older than versions. One without the variant was
    lost, or is not written yet, as when an operator ends after it created the Deployment. Then the
    Deployment alone says it: a wrong one costs a rollout of its service.
    """
    variant = workload.variant
    for reported in service.status.variants or ():
        if reported.name == variant:
            return reported.pod_template_version
    placed = service.status.variant
    if placed is not None and placed.name != variant:
        return workload.record
    if service.status.pod_template_version is not None:
        return service.status.pod_template_version
    if placed is None:
        return workload.record or newest
    first = {"builder_version": 1, "platform": Platform(), "observed_update": None}
    return newest.model_copy(update=first)


def _hash(
    service: ObservedService,
    spec: InferenceServiceSpec,
    choice: HardwareChoice,
    *,
    without: frozenset[str] = frozenset(),
) -> str:
    """Return a digest of set fields and placement, to which new defaults are no change."""
    lowered = lowered_limit(service, spec, choice)
    hardware, offer = choice.fit.hardware, choice.offer
    template_inputs: dict[str, Any] = spec_in(spec, None, choice.fit.precision).model_dump(
        mode="json",
        by_alias=True,
        exclude_unset=True,
        exclude_none=True,
        include=set(_TEMPLATE_FIELDS) - without,
        exclude=_NOT_OF_PODS,
    )
    template_inputs["on"] = [
        choice.variant,
        offer.pool,
        offer.tier,
        hardware.resource,
        hardware.devices,
        choice.fit.precision,
        sorted(offer.node_selector.items()),
        [toleration.manifest for toleration in offer.tolerations],
        offer.runtime_class_name,
        offer.scheduler_name,
    ]
    if lowered is not None:
        template_inputs["maxNumSeqs"] = lowered
    return hashlib.sha256(json.dumps(template_inputs, sort_keys=True).encode()).hexdigest()[:16]


def _verdict(
    service: ObservedService, record: PodTemplateVersionStatus, newest: PodTemplateVersionStatus
) -> StatusVerdict[UpdateAvailable]:
    if changes := tuple(_changes(record, newest)):
        return StatusVerdict(
            UpdateAvailable.NEW_TEMPLATE_AVAILABLE,
            f"new replicas would differ in {counted(len(changes), 'point')} "
            f"({'; '.join(changes)}); kubectl tessera update {service.ref.name} (the annotation "
            f"{UPDATE_ANNOTATION}) or a change of "
            f"{', '.join(f'spec.{to_camel(part)}' for part in _TEMPLATE_FIELDS)} applies it by a "
            "rollout",
        )
    if record.downgraded_from is not None:
        return StatusVerdict(
            UpdateAvailable.DOWNGRADED,
            f"builder version {record.downgraded_from} of a newer "
            "Tessera is unknown to this one; the "
            f"replicas were recreated by version {newest.builder_version}",
        )
    message = f"the replicas have builder version {record.builder_version}"
    return StatusVerdict(UpdateAvailable.UP_TO_DATE, message)


def _changes(record: PodTemplateVersionStatus, newest: PodTemplateVersionStatus) -> Iterator[str]:
    """Yield the differences of new replicas; of the platform only names, without secrets."""
    if record.builder_version != newest.builder_version:
        yield f"builder version {newest.builder_version} instead of {record.builder_version}"
    for field, _, _ in _differences(record.platform, newest.platform):
        yield f"{field} of the platform"
    for field, old, new in _differences(record.effective_values, newest.effective_values):
        yield f"{field} {new} instead of {old}"


def _differences(old: Wire, new: Wire) -> Iterator[tuple[str, Any, Any]]:
    if old == new:
        return
    before, after = (model.model_dump(mode="json", by_alias=True) for model in (old, new))
    for field, value in after.items():
        if before[field] != value:
            yield field, before[field], value
