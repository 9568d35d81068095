"""Validation of a batch's spec, and its translation to the spec of a service for placement."""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from tessera.api.batch_inference import BatchInferenceSpec, BatchSettings, CheckStatus
from tessera.api.batch_reasons import BatchAccepted
from tessera.api.inference_service import (
    Context,
    Drain,
    InferenceServiceSpec,
    PodTemplate,
    ServicePlacement,
    Slo,
)
from tessera.api.model_files import Cache, PoolingTask
from tessera.api.reasons import Accepted, StatusVerdict
from tessera.domain.batch import names
from tessera.domain.batch.names import COMPLETION_URLS, EMBEDDING_URL, MAX_NAME_LENGTH
from tessera.domain.batch.situation import Situation
from tessera.domain.hardware.gpu_catalog import models
from tessera.domain.hardware.pools import tier_by_pool
from tessera.domain.model.precision_files import as_listed, spec_in
from tessera.domain.observed.batches import VolumeClaim
from tessera.domain.placement import checks
from tessera.domain.service.preparation.jobs import ModelJobStatus
from tessera.domain.service.preparation.shape import missing_shape_verdict, with_shape

SHARED_ACCESS_MODE = "ReadWriteMany"
# Answers are not streamed, so the engine's limits follow from throughput alone.
_BATCH_SLO = Slo(ttft_p95=timedelta(hours=1), itl_p95=timedelta(seconds=1))
# Rows in flight are sent again, so the engine need not finish them.
_NO_DRAIN = Drain(timeout=timedelta())
# For the engine's limits an answer has at least one token per so many of the prompt, so that
# requests without generated tokens (embeddings) are counted too.
_PROMPT_PER_TOKEN = 4096
# Fields of a service that set engine flags and that a batch does not have.
_SERVICE_ONLY_FIELDS = ("spec.slo", "spec.scaling", "spec.drain.timeout")


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchModelSource:
    """The model of a batch as the spec of a service, for placement and for its engine."""

    name: str
    """The served model name, unless the model sets servedName."""
    spec: InferenceServiceSpec
    output_tokens: int
    """Tokens of a typical answer."""

    @property
    def model(self) -> str:
        return self.spec.model.served_name or self.name

    def spec_in(self, precision: str | None) -> InferenceServiceSpec:
        """Return the spec of the engine, with the files that a precision uses."""
        return spec_in(self.spec, checks.shape_of(self.spec), precision)

    @property
    def pooling_task(self) -> PoolingTask | None:
        return checks.pooling_task(self.spec)

    @property
    def urls(self) -> tuple[str, ...]:
        """Return the paths of rows that the engine answers; all where nothing says which."""
        task = self.pooling_task
        if task is not None:
            return (EMBEDDING_URL,) if task == "Embed" else ()
        if self.spec.engine.runner or self.spec.model.uri.removeprefix("hf://") in models():
            return COMPLETION_URLS
        return (*COMPLETION_URLS, EMBEDDING_URL)


AcceptedVerdict = StatusVerdict[BatchAccepted]


def accept_spec(
    situation: Situation,
) -> tuple[StatusVerdict[BatchAccepted], BatchModelSource | None]:
    """Return the verdict on the spec, and the model source if it is accepted."""
    spec = situation.batch.spec
    if spec is None:
        message = situation.batch.problem or "spec: cannot be parsed"
        return StatusVerdict(BatchAccepted.INVALID_SPEC, message), None
    source = _model_source(situation, spec)
    if isinstance(source, StatusVerdict):
        return source, None
    pools = tier_by_pool(situation.views)
    denials = tuple(_denials(situation, spec, source, pools))
    if denials:
        message = "; ".join(denial.message for denial in denials)
        return StatusVerdict(denials[0].reason, message), None
    if situation.shape_job is not None and situation.model is None:
        return _missing_shape_verdict(source, situation.shape_job), None
    verdict = checks.engine_verdict(source.spec)
    message = verdict.message + _differences(situation, spec)
    if situation.batch.status.check is not None:
        flags, _ = checks.split_running(checks.check(source.spec, pools), flags=True, keys=False)
        message += f"; {checks.tolerated_message(flags)}" if flags else ""
    return StatusVerdict(BatchAccepted[verdict.reason.name], message), source


def with_settings(check: CheckStatus, situation: Situation) -> CheckStatus:
    """Return the check with what answers the rows, if they come from a service and lack it."""
    spec = situation.batch.spec
    service = situation.services.get(spec.service or "") if spec is not None else None
    if service is None or check.settings is not None:
        return check
    settings = BatchSettings(
        model=service.model,
        precision=as_listed(service.precision),
        context=service.context,
        engine=service.engine,
    )
    return check.model_copy(update={"settings": settings})


def _differences(situation: Situation, spec: BatchInferenceSpec) -> str:
    """Return that the service of a batch has other settings than at the check."""
    pinned, service = _pinned(situation), situation.services.get(spec.service or "")
    if pinned is None or service is None:
        return ""
    now = with_settings(CheckStatus(rows=0, url="", input_tokens=0), situation).settings
    if now is None or (now := _answering(now)) == (pinned := _answering(pinned)):
        return ""
    fields = [
        name for name in BatchSettings.model_fields if getattr(now, name) != getattr(pinned, name)
    ]
    model = pinned.model
    commit = f" at {model.revision}" if model.revision else ""
    return (
        f"; InferenceService/{spec.service} has another spec.{', spec.'.join(fields)} since the "
        f"check: all rows are answered by {model.uri}{commit} with vLLM {pinned.engine.version}, "
        "as it was then; for the new settings create another BatchInference"
    )


def _answering(settings: BatchSettings) -> BatchSettings:
    """Return what decides the answers: not where files are downloaded to."""
    model = settings.model.model_copy(update={"cache": Cache()})
    return settings.model_copy(update={"model": model})


def _pinned(situation: Situation) -> BatchSettings | None:
    check = situation.batch.status.check
    return None if check is None else check.settings


def _model_source(
    situation: Situation, spec: BatchInferenceSpec
) -> BatchModelSource | AcceptedVerdict:
    if spec.service is None:
        if spec.model is None:
            message = "spec.model and spec.service: 0 of 2 are set; set exactly one"
            return StatusVerdict(BatchAccepted.INVALID_SPEC, message)
        service_spec = InferenceServiceSpec(
            model=spec.model, precision=spec.precision, context=spec.context, engine=spec.engine
        )
        if (known := situation.model) is not None:
            service_spec = with_shape(service_spec, known.shape)
        return _batch_source(situation.batch.ref.name, service_spec, spec)
    service = situation.services.get(spec.service)
    if service is None:
        namespace = situation.batch.ref.namespace
        problem = "has an invalid spec" if spec.service in situation.services else "does not exist"
        return StatusVerdict(
            BatchAccepted.SERVICE_NOT_FOUND,
            f"spec.service: InferenceService/{spec.service} {problem}; see kubectl get "
            f"tsvc -n {namespace}",
        )
    if (pinned := _pinned(situation)) is not None:
        settings = {name: getattr(pinned, name) for name in BatchSettings.model_fields}
        service = service.model_copy(update=settings)
    return _batch_source(spec.service, service, spec)


def _batch_source(
    name: str, spec: InferenceServiceSpec, batch: BatchInferenceSpec
) -> BatchModelSource:
    """Return the source of a spec, tuned for throughput and without latency targets."""
    typical_output_tokens = spec.context.typical_output_tokens
    output_tokens = max(
        typical_output_tokens, -(-spec.context.typical_input_tokens // _PROMPT_PER_TOKEN)
    )
    context: Context = spec.context.model_copy(update={"typical_output_tokens": output_tokens})
    update: dict[str, Any] = {
        "service_class": "Batch",
        "slo": _BATCH_SLO,
        "context": context,
        "placement": ServicePlacement(pools=batch.placement.pools),
        "replicas": None,
        "scaling": spec.scaling.model_copy(update={"schedules": ()}),
        "drain": _NO_DRAIN,
        # Its pods have the variables of the service alone.
        "pod_template": PodTemplate(env=spec.pod_template.env),
    }
    if spec.engine.speculation is not None:
        # A full batch computes all the time, so verifying drafts costs more than it saves.
        update["engine"] = spec.engine.model_copy(update={"speculation": None})
    return BatchModelSource(
        name=name, spec=spec.model_copy(update=update), output_tokens=typical_output_tokens
    )


def _denials(
    situation: Situation, spec: BatchInferenceSpec, source: BatchModelSource, pools: checks.Tiers
) -> Iterator[AcceptedVerdict]:
    name = situation.batch.ref.name
    if len(name) > MAX_NAME_LENGTH:
        yield StatusVerdict(
            BatchAccepted.INVALID_NAME,
            f"metadata.name has {len(name)} characters, the limit of a label is {MAX_NAME_LENGTH}; "
            "create the batch under a shorter name",
        )
    if spec.service is None and spec.engine.speculation is not None:
        yield StatusVerdict(
            BatchAccepted.INVALID_ENGINE_OPTION,
            "spec.engine.speculation: batches fill their engines, where verifying drafts takes "
            "more time than accepted ones save; remove it",
        )
    # What a Job reads is missing only once nothing else is wrong.
    unknown = checks.unknown_model_denial(source.spec) if situation.shape_job is None else None
    denials = checks.check(source.spec, pools)
    if situation.batch.status.check is not None:
        # Its flags were accepted when its rows were checked, and are what its attempts run with.
        _, denials = checks.split_running(denials, flags=True, keys=False)
    for denial in (*((unknown,) if unknown else ()), *denials):
        own_field = spec.service is None or denial.field.startswith("spec.placement")
        where = "" if own_field else f"spec.service: InferenceService/{spec.service}: "
        message = where + (_batch_sentence(denial) if own_field else denial.sentence)
        yield StatusVerdict(BatchAccepted[denial.reason.name], message)
    yield from _precision_denials(spec)
    if not source.urls:
        yield StatusVerdict(
            BatchAccepted.RUNNER_MISMATCH,
            f"spec.engine.runner: {source.spec.model.uri} returns no embeddings "
            f"(spec.model.shape.pooling {source.pooling_task}), and batches have rows of "
            f"{' and '.join((*COMPLETION_URLS, EMBEDDING_URL))} only; use an InferenceService and "
            "its /rerank, /score or /classify",
        )
    yield from _path_denials(spec)
    yield from _claim_denials(situation.claim, spec)
    if situation.conflict is not None:
        path, writer = situation.conflict
        check = situation.batch.status.check
        outputs = (spec.output, *(check.files[:1] if check is not None else ()))
        field = "spec.output" if path in outputs else "spec.errors"
        via = "" if path in (spec.output, names.errors_path(spec)) else " (where its link leads)"
        yield StatusVerdict(
            BatchAccepted.OUTPUT_CONFLICT,
            f"{field}: BatchInference/{writer.name} came first, is unfinished, and writes {path}"
            f"{via} on PersistentVolumeClaim/{spec.claim_name} too; create this batch with another "
            f"path, or kubectl delete batchinference -n {writer.namespace} {writer.name}",
        )


def _missing_shape_verdict(source: BatchModelSource, job_status: ModelJobStatus) -> AcceptedVerdict:
    verdict = missing_shape_verdict(
        source.spec, job_status, "create another BatchInference with the shape there"
    )
    message = verdict.message
    if verdict.reason is Accepted.UNKNOWN_MODEL:
        message += "; spec.model is immutable, so correct it in another BatchInference"
    return StatusVerdict(BatchAccepted[verdict.reason.name], message)


def _batch_sentence(denial: checks.Denial) -> str:
    """Return the sentence without fields that batches do not have."""
    sentence = denial.sentence
    for field in _SERVICE_ONLY_FIELDS:
        sentence = sentence.replace(f"set by {field}", "set by Tessera")
    return sentence


def _precision_denials(spec: BatchInferenceSpec) -> Iterator[AcceptedVerdict]:
    """Yield files in another precision of a batch's own model, which no Job has read."""
    for index, variant in enumerate(spec.precision.variants):
        if variant.uri is not None:
            yield StatusVerdict(
                BatchAccepted.PRECISION_MISMATCH,
                f"spec.precision.variants[{index}].uri: {variant.uri} is not checked against the "
                "model for a batch; list it in an InferenceService, which may have spec.replicas "
                "0, and name that in spec.service",
            )


def _path_denials(spec: BatchInferenceSpec) -> Iterator[AcceptedVerdict]:
    files = {
        "spec.input": spec.input,
        "spec.output": spec.output,
        "spec.errors": names.errors_path(spec),
    }
    for (field, path), (other_field, other) in itertools.combinations(files.items(), 2):
        outer, inner = sorted((path, other))
        if path == other or inner.startswith(f"{outer}/"):
            default = "" if spec.errors else " (spec.errors follows from spec.output by default)"
            yield StatusVerdict(
                BatchAccepted.INVALID_SPEC,
                f"{field}: {path} and {other_field}: {other} cannot be 2 files{default}; create "
                "this batch with another path",
            )


def _claim_denials(
    claim: VolumeClaim | None, spec: BatchInferenceSpec
) -> Iterator[AcceptedVerdict]:
    if claim is None:
        yield StatusVerdict(
            BatchAccepted.CLAIM_NOT_FOUND,
            f"spec.claimName: PersistentVolumeClaim/{spec.claim_name} does not exist; choose one "
            "of kubectl "
            f"get pvc with accessModes: [{SHARED_ACCESS_MODE}]",
        )
    elif claim.terminating:
        yield StatusVerdict(
            BatchAccepted.CLAIM_TERMINATING,
            f"spec.claimName: PersistentVolumeClaim/{spec.claim_name} is being deleted, so no "
            "further pod can mount it. Create it again, with spec.input on it, once kubectl get "
            f"pvc {spec.claim_name} finds none",
        )
    elif SHARED_ACCESS_MODE not in claim.access_modes:
        modes = ", ".join(claim.access_modes) or "no access mode"
        yield StatusVerdict(
            BatchAccepted.CLAIM_NOT_READ_WRITE_MANY,
            f"spec.claimName: PersistentVolumeClaim/{spec.claim_name} has {modes} (storage class "
            f"{claim.storage_class or 'none'}), but attempts on 2 nodes need {SHARED_ACCESS_MODE}; "
            f"create a claim with accessModes: [{SHARED_ACCESS_MODE}] of a storage class that "
            "supports it, such as EFS, Filestore, Azure Files or NFS (kubectl get storageclass)",
        )
