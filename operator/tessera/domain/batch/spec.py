"""What a batch asks for, in the form in which services are placed; and whether that can be."""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta

from tessera.api.batch_inference import BatchInferenceSpec
from tessera.api.inference_service import (
    Context,
    Drain,
    InferenceServiceSpec,
    ServicePlacement,
    Slo,
)
from tessera.api.model_files import Cache
from tessera.domain.batch.facts import VolumeClaim
from tessera.domain.batch.names import LONGEST_NAME
from tessera.domain.batch.reasons import BatchAccepted
from tessera.domain.batch.situation import Situation
from tessera.domain.checks import (
    Denial,
    Tiers,
    check,
    unchecked_flags_warning,
    unknown_model_denial,
)
from tessera.domain.pools import tier_by_pool
from tessera.domain.reasons import StatusVerdict

SHARED = "ReadWriteMany"
_PATIENT = Slo(ttft_p95=timedelta(hours=1), inter_token_p95=timedelta(seconds=1))
"""Nobody watches the stream, so the engine's limits follow from throughput alone."""
_AT_ONCE = Drain(timeout=timedelta())
"""Rows in flight are asked again, so the engine leaves without finishing them."""
_PROMPT_PER_TOKEN = 4096
"""For the engine's limits an answer counts as a token for so many of the prompt at least: one that
is only read has an answer too."""
_SERVICES_ONLY = ("spec.slo", "spec.scaling", "spec.drain.timeout")
"""Fields that set flags of a service and that a batch does not have."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """The model of a batch, with everything that its engine needs."""

    name: str
    """The name under which the engine serves, unless the model says another."""
    spec: InferenceServiceSpec
    output_tokens: int
    """Length of a usual answer."""

    @property
    def model(self) -> str:
        return self.spec.model.served_name or self.name


Denied = StatusVerdict[BatchAccepted]


def accept(situation: Situation) -> tuple[StatusVerdict[BatchAccepted], Source | None]:
    """The verdict on the spec, and the source when it holds."""
    spec = situation.batch.spec
    if spec is None:
        told = situation.batch.problem or "spec: unreadable"
        return StatusVerdict(BatchAccepted.INVALID_SPEC, told), None
    source = _source(situation, spec)
    if isinstance(source, StatusVerdict):
        return source, None
    pools = tier_by_pool(situation.views)
    denials = tuple(_denials(situation, spec, source, pools))
    if denials:
        told = "; ".join(denial.message for denial in denials)
        return StatusVerdict(denials[0].reason, told), None
    if (warning := unchecked_flags_warning(source.spec)) is not None:
        return StatusVerdict(BatchAccepted.FLAGS_UNCHECKED, warning), source
    return StatusVerdict(BatchAccepted.VALID, "the spec can be carried out"), source


def _source(situation: Situation, spec: BatchInferenceSpec) -> Source | Denied:
    if spec.service is None:
        if spec.model is None:
            told = "spec.model and spec.service: 0 of them are given; give 1"
            return StatusVerdict(BatchAccepted.INVALID_SPEC, told)
        own = InferenceServiceSpec(
            model=spec.model, precision=spec.precision, context=spec.context, engine=spec.engine
        )
        return _patient(situation.batch.ref.name, own, spec)
    found = situation.services.get(spec.service)
    if found is None:
        namespace = situation.batch.ref.namespace
        known = "cannot be read" if spec.service in situation.services else "does not exist"
        return StatusVerdict(
            BatchAccepted.SERVICE_NOT_FOUND,
            f"spec.service: InferenceService {spec.service} {known}; kubectl get inferenceservices "
            f"-n {namespace} shows {len(situation.services)}",
        )
    return _patient(spec.service, found, spec)


def _patient(name: str, spec: InferenceServiceSpec, batch: BatchInferenceSpec) -> Source:
    """As it is placed and run for a batch: for throughput, and without a promise."""
    answer = max(
        spec.context.typical_output_tokens,
        -(-spec.context.typical_input_tokens // _PROMPT_PER_TOKEN),
    )
    own: Context = spec.context.model_copy(update={"typical_output_tokens": answer})
    update = {
        "model": spec.model.model_copy(update={"cache": Cache()}),
        "service_class": "batch",
        "slo": _PATIENT,
        "context": own,
        "placement": ServicePlacement(pools=batch.placement.pools),
        "replicas": None,
        "scaling": None,
        "drain": _AT_ONCE,
    }
    return Source(
        name=name,
        spec=spec.model_copy(update=update),
        output_tokens=spec.context.typical_output_tokens,
    )


def _denials(
    situation: Situation, spec: BatchInferenceSpec, source: Source, pools: Tiers
) -> Iterator[Denied]:
    name = situation.batch.ref.name
    if len(name) > LONGEST_NAME:
        yield StatusVerdict(
            BatchAccepted.NAME_TOO_LONG,
            f"metadata.name has {len(name)} characters, and a label holds {LONGEST_NAME}",
        )
    unknown = unknown_model_denial(source.spec)
    for denial in (*((unknown,) if unknown else ()), *check(source.spec, pools)):
        own = spec.service is None or denial.field.startswith("spec.placement")
        where = "" if own else f"spec.service: InferenceService {spec.service}: "
        yield StatusVerdict(
            BatchAccepted[denial.reason.name],
            where + (_for_a_batch(denial) if own else denial.sentence),
        )
    yield from _claim_denials(situation.claim, spec)


def _for_a_batch(denial: Denial) -> str:
    """The sentence, with Tessera in the place of fields that batches do not have."""
    sentence = denial.sentence
    for field in _SERVICES_ONLY:
        sentence = sentence.replace(f"set by {field}", "set by Tessera")
    return sentence


def _claim_denials(claim: VolumeClaim | None, spec: BatchInferenceSpec) -> Iterator[Denied]:
    if claim is None:
        yield StatusVerdict(
            BatchAccepted.CLAIM_NOT_FOUND,
            f"spec.claim: there is no PersistentVolumeClaim {spec.claim}; kubectl get pvc shows "
            f"those there are, and it needs accessModes: [{SHARED}]",
        )
    elif SHARED not in claim.modes:
        modes = ", ".join(claim.modes) or "no access mode"
        yield StatusVerdict(
            BatchAccepted.CLAIM_NOT_READ_WRITE_MANY,
            f"spec.claim: {spec.claim} offers {modes} (storage class "
            f"{claim.storage_class or 'none'}), and attempts on 2 nodes need {SHARED}; make a "
            f"claim with accessModes: [{SHARED}] of a class that has it, such as one of EFS, "
            "Filestore, Azure Files or NFS: kubectl get storageclass",
        )
