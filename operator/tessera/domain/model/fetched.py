"""Files that are downloaded once to a claim, for all services of a namespace that use them."""

import hashlib
from dataclasses import dataclass

from tessera.api.engine_options import DraftModel
from tessera.api.inference_service import InferenceServiceSpec, SecretKeySelector
from tessera.api.model_files import Adapter, Cache, ModelStore, is_stored


@dataclass(frozen=True, slots=True, kw_only=True)
class FetchedFiles:
    """The files of a model, an adapter or a draft model, on the claim of all who use them."""

    uri: str
    revision: str | None = None
    store: ModelStore | None = None
    token: SecretKeySelector | None = None
    """The token of the hub, for files from there."""
    cache: Cache
    own_claim: str | None = None
    """The claim of the service, from before claims were shared; its files stay there."""

    @property
    def claim_name(self) -> str:
        """Return the name of the claim; other files, or those of another store, have another."""
        parts = (*self._identity, *self._store_identity, self.cache.storage_class_name or "")
        return self.own_claim or f"model-{_digest(*parts)}"

    @property
    def folder(self) -> str:
        """Return the folder on the claim."""
        return _digest(*self._identity)

    @property
    def location(self) -> str:
        """Return where an engine finds the files."""
        return f"pvc://{self.claim_name}/{self.folder}"

    @property
    def job_name(self) -> str:
        """Return the name of the Job, the same for all who use the files.

        What may cure a failed download makes another Job: credentials, and the size of the claim.
        So the credentials of one service fail for no other.
        """
        accesses = [each.model_dump_json() for each in (self.store, self.token) if each is not None]
        parts = (self.claim_name, *self._identity, *accesses, self.cache.size or "")
        return f"fetch-{_digest(*parts)}"

    @property
    def _store_identity(self) -> tuple[str, ...]:
        """Return what tells stores apart that have the same buckets."""
        if self.store is None:
            return ("",)
        # The account, which has the containers, is in the Secret.
        account = (self.store.secret_name or "",) if self.uri.startswith("az://") else ()
        return (self.store.endpoint or "", *account)

    @property
    def _identity(self) -> tuple[str, str]:
        return self.uri, self.revision or ""


def fetched_files(
    spec: InferenceServiceSpec, own_claim: str | None = None
) -> tuple[FetchedFiles, ...]:
    """Return what is downloaded before an engine starts, the model first."""
    model = spec.model
    others: list[Adapter | DraftModel] = [*_stored_adapters(spec), *_stored_drafts(spec)]
    further_files = tuple(_other_files(spec, other) for other in others)
    if not model.is_fetched:
        return further_files
    files = FetchedFiles(
        uri=model.uri,
        revision=model.revision,
        store=model.store if is_stored(model.uri) else None,
        token=None if is_stored(model.uri) else model.token_secret_ref,
        cache=model.cache,
        own_claim=own_claim,
    )
    return (files, *further_files)


def located(spec: InferenceServiceSpec, own_claim: str | None = None) -> InferenceServiceSpec:
    """Return the spec as its engine sees it: what is downloaded lies on claims."""
    if not (files := fetched_files(spec, own_claim)):
        return spec
    model, engine = spec.model, spec.engine
    if model.is_fetched:
        update = {"uri": files[0].location, "revision": None, "cache": Cache(), "store": None}
        model = model.model_copy(update=update)
    if stored := _stored_adapters(spec):
        places = {adapter.name: _other_files(spec, adapter).location for adapter in stored}
        adapters = tuple(
            adapter.model_copy(update={"uri": places.get(adapter.name, adapter.uri)})
            for adapter in model.adapters
        )
        model = model.model_copy(update={"adapters": adapters})
    for draft in _stored_drafts(spec):
        place = draft.model_copy(update={"uri": _other_files(spec, draft).location})
        speculation = engine.speculation
        assert speculation is not None  # noqa: S101 - it has the draft
        speculation = speculation.model_copy(update={"model": place})
        engine = engine.model_copy(update={"speculation": speculation})
    return spec.model_copy(update={"model": model, "engine": engine})


def _stored_adapters(spec: InferenceServiceSpec) -> list[Adapter]:
    return [adapter for adapter in spec.model.adapters if is_stored(adapter.uri)]


def _stored_drafts(spec: InferenceServiceSpec) -> list[DraftModel]:
    draft = spec.engine.draft
    return [draft] if draft is not None and is_stored(draft.uri) else []


def _other_files(spec: InferenceServiceSpec, other: Adapter | DraftModel) -> FetchedFiles:
    cache = Cache(storage_class_name=spec.model.cache.storage_class_name)
    return FetchedFiles(uri=other.uri, store=spec.model.store, cache=cache)


def _digest(*parts: str) -> str:
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:8]
