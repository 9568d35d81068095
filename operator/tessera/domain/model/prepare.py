"""What a model needs before its engines: its shape, and its files where they are asked for."""

from dataclasses import dataclass, replace

from tessera.api.inference_service import (
    InferenceServiceSpec,
    Model,
    ModelShape,
    ModelStatus,
)
from tessera.api.model_files import CacheStatus
from tessera.domain.checks import model_unknown, shape_of
from tessera.domain.model.errands import Errand, Outcome, Standing, standing
from tessera.domain.model.names import claim_name, folder_of
from tessera.domain.model.reports import FetchReport, ShapeReport, report
from tessera.domain.reasons import Accepted, Progressing, Verdict
from tessera.domain.ref import Ref
from tessera.domain.revision import Pin, pinned_spec
from tessera.domain.snapshot import Service, Snapshot
from tessera.domain.trouble import hub_refusal

_STEPS = 100
"""A status is written for each of so many steps of a fetch, not for each answer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Preparation:
    """How far a model is, and what is to be done for it."""

    spec: InferenceServiceSpec
    """With the shape that was found."""
    status: ModelStatus
    unknown: Verdict[Accepted] | None = None
    """Why there is no shape, or not yet."""
    unfetched: Verdict[Progressing] | None = None
    """Why the files are not there, or not yet."""
    errand: Errand | None = None
    """The Job to make."""
    over: tuple[Ref, ...] = ()
    """Jobs that may go."""
    ask: str | None = None
    """Address of the pod to ask how far the fetch is."""

    @property
    def pending(self) -> bool:
        """Something is under way, or left to do: Jobs, their pods and the time count."""
        waits = self.unknown is not None or self.unfetched is not None
        return waits or self.errand is not None or bool(self.over)


def recalled(service: Service) -> Service:
    """The service with the shape that was found before, as if its spec gave it."""
    known = _known(service)
    if service.spec is None or known.shape is None or shape_of(service.spec) is not None:
        return service
    return replace(service, spec=_with_shape(service.spec, known.shape))


def prepare(snapshot: Snapshot, service: Service, spec: InferenceServiceSpec) -> Preparation:
    """Is the shape known? By what the service remembers and by the Job that was made for it."""
    known = _known(service)
    stands = standing(snapshot, service, pinned_spec(spec, Pin(known)), "shape")
    if shape_of(spec) is not None:
        return Preparation(spec=spec, status=known, over=stands.jobs)
    told = report(ShapeReport, stands.report)
    if stands.outcome is Outcome.DONE and told is not None and told.shape is not None:
        source = f"config.json of {spec.model.uri}" + (f" at {told.commit}" if told.commit else "")
        status = known.model_copy(update={"shape": told.shape, "source": source})
        return Preparation(spec=_with_shape(spec, told.shape), status=status, over=stands.former)
    return Preparation(
        spec=spec,
        status=known,
        unknown=_unknown(spec, stands, told.message if told is not None else stands.report),
        errand=stands.errand,
        over=stands.over,
    )


def fetched(snapshot: Snapshot, service: Service, found: Preparation, pin: Pin) -> Preparation:
    """Are the files of the pinned commit on the claim? Nothing is fetched before a hub that is
    asked has said which commit that is."""
    if found.spec.model.cache.type == "none" or pin.question is not None:
        return found
    return _fetched(snapshot, service, found, pinned_spec(found.spec, pin))


def _known(service: Service) -> ModelStatus:
    """What the status says, unless it speaks of another model."""
    spec, told = service.spec, service.status.model
    if spec is None:
        return ModelStatus(uri="")
    fresh = ModelStatus(uri=spec.model.uri, asked=spec.model.revision)
    if told is None or (told.uri, told.asked) != (fresh.uri, fresh.asked):
        return fresh
    return told


def _with_shape(spec: InferenceServiceSpec, shape: ModelShape) -> InferenceServiceSpec:
    """A shape that was read counts as not written: once Tessera ships it, no replica is new."""
    model = Model.model_construct(spec.model.model_fields_set, **dict(spec.model, shape=shape))
    return spec.model_copy(update={"model": model})


def _unknown(spec: InferenceServiceSpec, stands: Standing, words: str) -> Verdict[Accepted]:
    if stands.outcome is Outcome.REFUSED:
        refusal = hub_refusal(spec.model, words)
        denial = model_unknown(spec, f"{refusal or words[-600:]} ({stands.where})")
        if denial is not None:
            return Verdict(denial.reason, denial.sentence)
    told = stands.said or f"Job {stands.name} reads the config.json of {spec.model.uri}"
    return Verdict(Accepted.READING_MODEL, f"spec.model.shape: {told}; {stands.where}")


def claim_of(service: Ref) -> Ref:
    """The claim for the files of a service's model."""
    return Ref(service.namespace, claim_name(service.name))


def _fetched(
    snapshot: Snapshot, service: Service, found: Preparation, spec: InferenceServiceSpec
) -> Preparation:
    claim = claim_of(service.ref)
    volume = snapshot.claims.get(claim)
    model, old = spec.model, found.status.cache
    stands = standing(snapshot, service, spec, "fetch")
    cache = CacheStatus(
        claim=claim.name, claim_uid=volume.uid if volume else "", folder=folder_of(model)
    )
    if old is not None and (old.claim_uid, old.folder) == (cache.claim_uid, cache.folder):
        cache = old
    if cache.fetched:
        return replace(found, over=(*found.over, *stands.jobs))
    told = report(FetchReport, stands.report)
    if volume is not None and stands.outcome is Outcome.DONE and told is not None and told.ok:
        update = {"fetched": True, "bytes_done": told.bytes, "bytes_total": told.bytes}
        cache = cache.model_copy(update=update | {"commit": told.commit or None})
        return replace(
            found, status=_with_cache(found.status, cache), over=(*found.over, *stands.former)
        )
    cache = _progress(snapshot, service, cache)
    return replace(
        found,
        status=_with_cache(found.status, cache),
        unfetched=_unfetched(found.spec, stands, cache, told.message if told else stands.report),
        errand=stands.errand if volume is not None else None,
        over=(*found.over, *stands.over),
        ask=stands.address,
    )


def _with_cache(status: ModelStatus, cache: CacheStatus) -> ModelStatus:
    return status.model_copy(update={"cache": cache})


def _progress(snapshot: Snapshot, service: Service, cache: CacheStatus) -> CacheStatus:
    """The last answer of the fetch, rounded down; an unknown size is told in steps of 1 GiB."""
    told = snapshot.fetched.get(service.ref)
    if told is None:
        return cache
    step = max(1, told.total // _STEPS) if told.total else 2**30
    update = {"bytes_done": told.done // step * step, "bytes_total": told.total}
    return cache.model_copy(update=update)


def _unfetched(
    spec: InferenceServiceSpec, stands: Standing, cache: CacheStatus, words: str
) -> Verdict[Progressing]:
    if stands.outcome is Outcome.REFUSED:
        refusal = hub_refusal(spec.model, words) or f"spec.model: {words[-600:]}"
        return Verdict(Progressing.FETCH_FAILED, f"{refusal} ({stands.where})")
    if stands.said:
        return Verdict(Progressing.FETCHING_MODEL, f"spec.model.cache: {stands.said}")
    total = cache.bytes_total
    share = f" of {total / 1e9:.1f}" if total else ""
    percent = f" ({cache.bytes_done * 100 // total}%)" if total else ""
    return Verdict(
        Progressing.FETCHING_MODEL,
        f"spec.model.cache: {cache.bytes_done / 1e9:.1f}{share} GB{percent} of {spec.model.uri} "
        f"are on claim {cache.claim}; {stands.where}",
    )
