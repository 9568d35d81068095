"""By what are a service's replicas made besides its spec? Upgrades leave what runs alone.

The recipe is chosen anew only where the pods are made anew anyway: for a new Deployment, after a
change of what shapes them, or when the annotation `tessera.dev/update` asks. What a newer Tessera
would fill in differently (defaults, planned numbers) waits for the same moment.
"""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from pydantic.alias_generators import to_camel

from tessera.api.inference_service import InferenceServiceSpec
from tessera.api.meta import Wire
from tessera.api.recipe import Filled, KeptRecipe, Platform, Recipe
from tessera.domain.names import UPDATE_ANNOTATION
from tessera.domain.placement import Choice
from tessera.domain.reasons import UpdateAvailable, Verdict
from tessera.domain.snapshot import Service, Snapshot, Workload

_SHAPING = ("model", "slo", "context", "engine", "drain", "pod_template")
"""Parts of the spec that shape the pods. The others decide where and how many, and who waits; of
`precision` counts what was chosen."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Making:
    """How the replicas of a service are made."""

    kept: KeptRecipe
    choice: Choice
    """The choice with the numbers as they were planned when the replicas were made."""
    verdict: Verdict[UpdateAvailable]

    @property
    def recipe(self) -> Recipe:
        return Recipe(builder=self.kept.builder, platform=self.kept.platform)


def making(
    snapshot: Snapshot,
    service: Service,
    spec: InferenceServiceSpec,
    choice: Choice,
    workload: Workload | None,
) -> Making:
    """Keep what made the pods of `workload`, or take the newest if they are made anew anyway."""
    newest = _newest(snapshot, service, spec, choice)
    kept = _kept(service, newest) if workload is not None else newest
    if kept.shape != newest.shape or asked_for(service, kept.update):
        kept = newest
    if kept.builder > snapshot.builder:
        kept = kept.model_copy(
            update={"builder": snapshot.builder, "instead_of": kept.builder},
        )
    same = kept.filled == newest.filled
    return Making(
        kept=kept,
        choice=choice if same else _filled_choice(choice, kept.filled),
        verdict=_verdict(service, kept, newest),
    )


def asked_for(service: Service, honoured: str | None) -> bool:
    """The annotation asks for an update that was not given yet; taking it away asks for nothing."""
    return service.update is not None and service.update != honoured


def filled_spec(spec: InferenceServiceSpec, filled: Filled) -> InferenceServiceSpec:
    """The spec with the defaults as they stood when the replicas were made."""
    engine = spec.engine.model_copy(update={"version": filled.engine_version})
    drain = spec.drain.model_copy(update={"timeout": filled.drain_timeout})
    return spec.model_copy(update={"engine": engine, "drain": drain})


def _filled_choice(choice: Choice, filled: Filled) -> Choice:
    fit = choice.fit
    return replace(
        choice,
        fit=replace(
            fit,
            max_model_len=filled.max_model_len,
            limits=replace(
                fit.limits,
                max_num_seqs=filled.max_num_seqs,
                max_num_batched_tokens=filled.max_num_batched_tokens,
            ),
            memory=replace(fit.memory, weights_mib=filled.weights_mib),
        ),
    )


def _newest(
    snapshot: Snapshot, service: Service, spec: InferenceServiceSpec, choice: Choice
) -> KeptRecipe:
    fit = choice.fit
    return KeptRecipe(
        builder=snapshot.builder,
        platform=snapshot.platform,
        shape=_shape(spec, choice),
        filled=Filled(
            engine_version=spec.engine.version,
            drain_timeout=spec.drain.timeout,
            max_model_len=fit.max_model_len,
            max_num_seqs=fit.limits.max_num_seqs,
            max_num_batched_tokens=fit.limits.max_num_batched_tokens,
            weights_mib=fit.memory.weights_mib,
        ),
        update=service.update,
    )


def _kept(service: Service, newest: KeptRecipe) -> KeptRecipe:
    """What the status says. One that says where the service runs, but not by what it was made, is
    older than recipes; one that says nothing was lost right after the Deployment was made."""
    if service.status.recipe is not None:
        return service.status.recipe
    if service.status.variant is None:
        return newest
    first = {"builder": 1, "platform": Platform(), "update": None}
    return newest.model_copy(update=first)


def _shape(spec: InferenceServiceSpec, choice: Choice) -> str:
    """Digest of what the user wrote and where it was placed, so that a default of a newer Tessera
    is no change."""
    hardware, offer = choice.fit.hardware, choice.offer
    told: dict[str, Any] = spec.model_dump(
        mode="json",
        by_alias=True,
        exclude_unset=True,
        exclude_none=True,
        include=set(_SHAPING),
    )
    told["on"] = [
        choice.variant,
        offer.pool,
        offer.tier,
        hardware.resource,
        hardware.devices,
        choice.fit.precision,
        sorted(offer.node_selector.items()),
        [one.wire for one in offer.tolerations],
        offer.runtime_class_name,
        offer.scheduler_name,
    ]
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:16]


def _verdict(service: Service, kept: KeptRecipe, newest: KeptRecipe) -> Verdict[UpdateAvailable]:
    if changes := tuple(_changes(kept, newest)):
        return Verdict(
            UpdateAvailable.NEWER_RECIPE,
            f"new replicas would differ in {len(changes)} points ({'; '.join(changes)}); kubectl "
            f"tessera update {service.ref.name} (the annotation {UPDATE_ANNOTATION}) or a change "
            f"of {', '.join(f'spec.{to_camel(part)}' for part in _SHAPING)} applies it, and rolls "
            "the pods",
        )
    if kept.instead_of is not None:
        return Verdict(
            UpdateAvailable.DOWNGRADED,
            f"the replicas were made by builder version {kept.instead_of} of a newer Tessera; this "
            f"one knows {newest.builder} at most, and made them anew by that",
        )
    return Verdict(
        UpdateAvailable.NEWEST, f"the replicas are made by builder version {kept.builder}"
    )


def _changes(kept: KeptRecipe, newest: KeptRecipe) -> Iterator[str]:
    """What new replicas would have. Of the platform only names: an address may hold a password."""
    if kept.builder != newest.builder:
        yield f"builder version {newest.builder} instead of {kept.builder}"
    for field, _, _ in _differing(kept.platform, newest.platform):
        yield f"{field} of the platform"
    for field, old, new in _differing(kept.filled, newest.filled):
        yield f"{field} {new} instead of {old}"


def _differing(old: Wire, new: Wire) -> Iterator[tuple[str, Any, Any]]:
    if old == new:
        return
    before, after = (one.model_dump(mode="json", by_alias=True) for one in (old, new))
    for field, value in after.items():
        if before[field] != value:
            yield field, before[field], value
