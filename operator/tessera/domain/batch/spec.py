"""What a batch asks for, in the form in which services are placed; and whether that can be."""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta

from tessera.api.batch_inference import BatchInferenceSpec
from tessera.api.batch_reasons import BatchAccepted
from tessera.api.inference_service import (
    Context,
    Drain,
    InferenceServiceSpec,
    ServicePlacement,
    Slo,
)
from tessera.api.model_files import Cache
from tessera.api.reasons import StatusVerdict
from tessera.domain.batch.names import MAX_NAME_LENGTH
from tessera.domain.batch.situation import Situation
from tessera.domain.hardware.pools import tier_by_pool
from tessera.domain.observed.batches import VolumeClaim
from tessera.domain.placement.checks import (
    Denial,
    Tiers,
    check,
    unchecked_flags_warning,
    unknown_model_denial,
)

SHARED_ACCESS_MODE = "ReadWriteMany"
# Nobody watches the stream, so the engine's limits follow from throughput alone.
_BATCH_SLO = Slo(ttft_p95=timedelta(hours=1), inter_token_p95=timedelta(seconds=1))
# Rows in flight are asked again, so the engine leaves without finishing them.
_NO_DRAIN = Drain(timeout=timedelta())
# For the engine's limits an answer counts as a token for so many of the prompt at least: one that
# is only read has an answer too.
_PROMPT_PER_TOKEN = 4096
# Fields that set flags of a service and that a batch does not have.
_SERVICE_ONLY_FIELDS = ("spec.slo", "spec.scaling", "spec.drain.timeout")


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchModelSource:
    """The model of a batch, with everything that its engine needs."""

    name: str
    """The name under which the engine serves, unless the model says another."""
    spec: InferenceServiceSpec
    output_tokens: int
    """Length of a usual answer."""

    @property
    def model(self) -> str:
        return self.spec.model.served_name or self.name


AcceptedVerdict = StatusVerdict[BatchAccepted]


def accept_spec(
    situation: Situation,
) -> tuple[StatusVerdict[BatchAccepted], BatchModelSource | None]:
    """The verdict on the spec, and the source when it holds."""
    spec = situation.batch.spec
    if spec is None:
        message = situation.batch.problem or "spec: unreadable"
        return StatusVerdict(BatchAccepted.INVALID_SPEC, message), None
    source = _model_source(situation, spec)
    if isinstance(source, StatusVerdict):
        return source, None
    pools = tier_by_pool(situation.views)
    denials = tuple(_denials(situation, spec, source, pools))
    if denials:
        message = "; ".join(denial.message for denial in denials)
        return StatusVerdict(denials[0].reason, message), None
    if (warning := unchecked_flags_warning(source.spec)) is not None:
        return StatusVerdict(BatchAccepted.FLAGS_UNCHECKED, warning), source
    return StatusVerdict(BatchAccepted.VALID, "the spec can be carried out"), source


def _model_source(
    situation: Situation, spec: BatchInferenceSpec
) -> BatchModelSource | AcceptedVerdict:
    if spec.service is None:
        if spec.model is None:
            message = "spec.model and spec.service: 0 of them are given; give 1"
            return StatusVerdict(BatchAccepted.INVALID_SPEC, message)
        service_spec = InferenceServiceSpec(
            model=spec.model, precision=spec.precision, context=spec.context, engine=spec.engine
        )
        return _batch_source(situation.batch.ref.name, service_spec, spec)
    service = situation.services.get(spec.service)
    if service is None:
        namespace = situation.batch.ref.namespace
        problem = "cannot be read" if spec.service in situation.services else "does not exist"
        return StatusVerdict(
            BatchAccepted.SERVICE_NOT_FOUND,
            f"spec.service: InferenceService {spec.service} {problem}; kubectl get "
            "inferenceservices "
            f"-n {namespace} shows {len(situation.services)}",
        )
    return _batch_source(spec.service, service, spec)


def _batch_source(
    name: str, spec: InferenceServiceSpec, batch: BatchInferenceSpec
) -> BatchModelSource:
    """As it is placed and run for a batch: for throughput, and without a promise."""
    output_tokens = max(
        spec.context.typical_output_tokens,
        -(-spec.context.typical_input_tokens // _PROMPT_PER_TOKEN),
    )
    context: Context = spec.context.model_copy(update={"typical_output_tokens": output_tokens})
    update = {
        "model": spec.model.model_copy(update={"cache": Cache()}),
        "service_class": "batch",
        "slo": _BATCH_SLO,
        "context": context,
        "placement": ServicePlacement(pools=batch.placement.pools),
        "replicas": None,
        "scaling": None,
        "drain": _NO_DRAIN,
    }
    return BatchModelSource(
        name=name,
        spec=spec.model_copy(update=update),
        output_tokens=spec.context.typical_output_tokens,
    )


def _denials(
    situation: Situation, spec: BatchInferenceSpec, source: BatchModelSource, pools: Tiers
) -> Iterator[AcceptedVerdict]:
    name = situation.batch.ref.name
    if len(name) > MAX_NAME_LENGTH:
        yield StatusVerdict(
            BatchAccepted.NAME_TOO_LONG,
            f"metadata.name has {len(name)} characters, and a label holds {MAX_NAME_LENGTH}",
        )
    unknown = unknown_model_denial(source.spec)
    for denial in (*((unknown,) if unknown else ()), *check(source.spec, pools)):
        own_field = spec.service is None or denial.field.startswith("spec.placement")
        where = "" if own_field else f"spec.service: InferenceService {spec.service}: "
        yield StatusVerdict(
            BatchAccepted[denial.reason.name],
            where + (_batch_sentence(denial) if own_field else denial.sentence),
        )
    yield from _claim_denials(situation.claim, spec)


def _batch_sentence(denial: Denial) -> str:
    """The sentence, with Tessera in the place of fields that batches do not have."""
    sentence = denial.sentence
    for field in _SERVICE_ONLY_FIELDS:
        sentence = sentence.replace(f"set by {field}", "set by Tessera")
    return sentence


def _claim_denials(
    claim: VolumeClaim | None, spec: BatchInferenceSpec
) -> Iterator[AcceptedVerdict]:
    if claim is None:
        yield StatusVerdict(
            BatchAccepted.CLAIM_NOT_FOUND,
            f"spec.claim: there is no PersistentVolumeClaim {spec.claim}; kubectl get pvc shows "
            f"those there are, and it needs accessModes: [{SHARED_ACCESS_MODE}]",
        )
    elif SHARED_ACCESS_MODE not in claim.access_modes:
        modes = ", ".join(claim.access_modes) or "no access mode"
        yield StatusVerdict(
            BatchAccepted.CLAIM_NOT_READ_WRITE_MANY,
            f"spec.claim: {spec.claim} offers {modes} (storage class "
            f"{claim.storage_class or 'none'}), and attempts on 2 nodes need {SHARED_ACCESS_MODE}; "
            "make a "
            f"claim with accessModes: [{SHARED_ACCESS_MODE}] of a class that has it, such as one "
            "of EFS, "
            "Filestore, Azure Files or NFS: kubectl get storageclass",
        )
