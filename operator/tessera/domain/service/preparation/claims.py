"""The claims of downloaded files, which services and batches of a namespace share."""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from tessera.api.inference_service import InferenceServiceSpec
from tessera.api.model_files import CacheStatus, ModelShape, gibibytes
from tessera.api.ref import Ref
from tessera.domain.incremental import reused
from tessera.domain.model.fetched import FetchedFiles, fetched_files
from tessera.domain.model.names import own_claim_name
from tessera.domain.observed.batches import Batch, VolumeClaim
from tessera.domain.observed.snapshot import ObservedService, Snapshot
from tessera.domain.perf.engine_terms import draft_shape
from tessera.domain.perf.footprint import resident_bytes
from tessera.domain.placement.checks import shape_of
from tessera.domain.sizing.lora import slots_mib
from tessera.domain.steps import Step

_GIB = 2**30
# The default size of the claim of a model, relative to its files, and the least of an adapter.
_SIZE_MARGIN = 1.2
_MIN_ADAPTER_GIB = 5


@dataclass(frozen=True, slots=True, order=True)
class BatchUser:
    """A batch whose latest attempt uses a claim."""

    ref: Ref
    uid: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelClaim:
    """A claim with the files of a model or an adapter, and those who use or used it."""

    files: FetchedFiles
    ref: Ref
    users: tuple[ObservedService, ...] = ()
    """Sorted by name; the claim is deleted with the last of them and of `batches`."""
    batches: tuple[BatchUser, ...] = ()
    """Sorted by name."""
    volume: VolumeClaim | None = None
    """The claim as observed; None before it is created."""
    gib: int = 0
    """Its size: what its users ask for, and never less than it has."""

    def fetched_status(self) -> CacheStatus | None:
        """Return how a user of the claim found its files complete; None if none did."""
        if self.volume is None or self.files.own_claim is not None:
            return None
        place = (self.volume.uid, self.files.folder)
        for user in self.users:
            model = user.status.model
            for cache in (model.cache, *model.other_caches) if model is not None else ():
                if cache is not None and cache.fetched and (cache.claim_uid, cache.path) == place:
                    return cache
        return None


def _recorded_refs(service: ObservedService) -> tuple[Ref, ...]:
    model = service.status.model
    if model is None:
        return ()
    caches = (*((model.cache,) if model.cache is not None else ()), *model.other_caches)
    return tuple(Ref(service.ref.namespace, cache.claim_name) for cache in caches)


recorded_refs = Step(_recorded_refs, lambda *_: ())


@dataclass(frozen=True, slots=True)
class ClaimUsers:
    """Who uses each claim, by what services and unfinished batches recorded."""

    services: Mapping[Ref, tuple[ObservedService, ...]] = field(default_factory=dict)
    batches: Mapping[Ref, tuple[BatchUser, ...]] = field(default_factory=dict)


def claim_users(
    services: tuple[ObservedService, ...],
    batches: Iterable[Batch],
    claims: Mapping[Ref, VolumeClaim],
) -> ClaimUsers:
    """Return who uses each claim, by what was recorded and by its owners."""
    users: dict[Ref, list[BatchUser]] = defaultdict(list)
    for batch in batches:
        attempt = batch.status.attempt
        if attempt is not None and attempt.claims and batch.unfinished:
            for name in attempt.claims:
                users[Ref(batch.ref.namespace, name)].append(BatchUser(batch.ref, batch.uid))
    return ClaimUsers(_service_users(services, claims), {ref: tuple(users[ref]) for ref in users})


@reused
def _service_users(
    services: tuple[ObservedService, ...], claims: Mapping[Ref, VolumeClaim]
) -> Mapping[Ref, tuple[ObservedService, ...]]:
    users: dict[Ref, dict[Ref, ObservedService]] = defaultdict(dict)
    for service in services:
        for ref in recorded_refs(service):
            users[ref][service.ref] = service
    # A service that now names other files is an owner: its replicas use the claim for as long as
    # they take to be replaced, and a claim that is being deleted admits no new pods.
    services_by_uid = {service.uid: service for service in services}
    for ref, claim in claims.items():
        for uid in claim.owners:
            if (owner := services_by_uid.get(uid)) is not None:
                users[ref][owner.ref] = owner
    return {ref: tuple(members[user] for user in sorted(members)) for ref, members in users.items()}


def recorded_claims(
    snapshot: Snapshot, users: ClaimUsers, service: ObservedService
) -> tuple[object, ...]:
    """Return what else the claims of a service depend on: their volumes, and their users."""
    refs = recorded_refs(service)
    return tuple(
        (ref, snapshot.claims.get(ref), users.services.get(ref, ()), users.batches.get(ref, ()))
        for ref in refs
    )


def model_claims(
    snapshot: Snapshot,
    service: ObservedService,
    spec: InferenceServiceSpec,
    users: ClaimUsers,
) -> tuple[ModelClaim, ...]:
    """Return the claims of a service by its pinned spec, the one of its model first."""
    all_files = fetched_files(spec, own_claim(service, spec))
    return tuple(_model_claim(snapshot.claims, service, spec, files, users) for files in all_files)


def batch_claims(
    volumes: Mapping[Ref, VolumeClaim],
    batch: BatchUser,
    spec: InferenceServiceSpec,
    users: ClaimUsers,
) -> tuple[ModelClaim, ...]:
    """Return the claims of an attempt of a batch, by the spec of its engine."""
    return tuple(_model_claim(volumes, batch, spec, files, users) for files in fetched_files(spec))


def own_claim(service: ObservedService, spec: InferenceServiceSpec) -> str | None:
    """Return the claim that a service had before claims were shared, if it still has its files."""
    model, name = service.status.model, own_claim_name(service.ref.name)
    if model is None or model.cache is None or model.cache.claim_name != name:
        return None
    first, *_ = fetched_files(spec) or (None,)
    return name if first is not None and first.folder == model.cache.path else None


def _model_claim(
    volumes: Mapping[Ref, VolumeClaim],
    user: ObservedService | BatchUser,
    spec: InferenceServiceSpec,
    files: FetchedFiles,
    users: ClaimUsers,
) -> ModelClaim:
    ref = Ref(user.ref.namespace, files.claim_name)
    services = {service.ref: service for service in users.services.get(ref, ())}
    batches = {*users.batches.get(ref, ())}
    if isinstance(user, BatchUser):
        batches.add(user)
    else:
        services[user.ref] = user
    volume = volumes.get(ref)
    # Another user may ask for more: that is the size that the volume has by then.
    size = max(_requested_gib(spec, files), volume.gib if volume is not None else 0)
    claim = ModelClaim(
        files=files,
        ref=ref,
        users=tuple(services[name] for name in sorted(services)),
        batches=tuple(sorted(batches)),
        volume=volume,
        gib=size,
    )
    is_filled = files.own_claim is not None or claim.fetched_status() is not None
    if volume is not None and files.cache.size is None and is_filled:
        return replace(claim, gib=volume.gib)  # an upgrade grows none: not every storage class can
    return claim


def _requested_gib(spec: InferenceServiceSpec, files: FetchedFiles) -> int:
    shape, draft = shape_of(spec), spec.engine.draft
    if files.uri == spec.model.uri:
        if (size := spec.model.cache.size) is not None:
            return gibibytes(size)
        return _weights_gib(shape)
    if draft is not None and files.uri == draft.uri:
        return _weights_gib(draft_shape(spec.engine))
    rank = max((each.rank for each in spec.model.adapters if each.uri == files.uri), default=0)
    # The files of an adapter may have 32 bits per weight, of which the engine keeps 16.
    mib = 2 * slots_mib(shape, 1, rank) if shape is not None else 0
    return max(_MIN_ADAPTER_GIB, -(-mib // 1024))


def _weights_gib(shape: ModelShape | None) -> int:
    if shape is None:
        return 1
    files = max(resident_bytes(shape, None), shape.file_bytes or 0)
    return int(files * _SIZE_MARGIN / _GIB) + 1
