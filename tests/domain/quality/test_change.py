"""Which edits can change answers, and which spec is in force while they wait."""

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from tessera.api.inference_service import InferenceServiceSpec
from tessera.domain.quality.change import (
    answers_digest,
    changed_fields,
    gated_digest,
    in_force,
    version_digest,
)
from tests.builders import SMALL, a_spec

# Fields by path, each with values that it may have.
_GATED: dict[str, tuple[Any, ...]] = {
    "model.uri": ("hf://meta-llama/Llama-3.1-8B-Instruct", "pvc://claim/model"),
    "model.revision": ("v1", "v2"),
    "model.adapters": ([{"name": "sql", "uri": "hf://org/sql", "rank": 8}],),
    "precision.variants": ([{"precision": "fp8"}],),
    "engine.version": ("0.31.0", "0.33.0"),
    "engine.extraArgs": (["--seed=1"], ["--seed=2"]),
    "engine.kvCacheDtype": ("fp8",),
    "engine.maxNumSeqs": (16, 32),
    "engine.chatTemplate": ({"configMapKeyRef": {"name": "chat", "key": "template"}},),
    "context.maxModelLen": (2048, 4096),
    "podTemplate.env": ([{"name": "A", "value": "1"}],),
    "access.rateLimits.maxOutputTokens": (100, 200),
}
# What changes latency alone.
_LATENCY: dict[str, tuple[Any, ...]] = {
    "engine.prefixCaching": (False, True),
    "engine.speculation": ({"method": "NGram"}, {"method": "NGram", "tokens": 3}),
}
_UNGATED: dict[str, tuple[Any, ...]] = {
    "engine.tensorParallelSize": (1, 2),
    "replicas": (1, 5),
    "scaling.minReplicas": (1, 4),
    "class": ("Batch", "Standard"),
    "slo.ttftP95": ("2s", "5s"),
    "context.typicalInputTokens": (100, 200),
    "placement.pools": (["one"], ["two"]),
    "access.aliases": (["other"],),
    "access.rateLimits.concurrentRequests": (8,),
    "drain.timeout": ("90s",),
    "podTemplate.labels": ({"team": "a"},),
    "rollout.rollbackWindow": (1, 2),
}
# A model keeps its names and its credentials while another one waits.
_WITH_MODEL: dict[str, tuple[Any, ...]] = {
    "model.servedName": ("alpha", "beta"),
    "model.tokenSecretRef": ({"name": "hub"},),
}


def fields(values: dict[str, tuple[Any, ...]]) -> st.SearchStrategy[dict[str, Any]]:
    """Return edits of some of the fields, by path; none leaves them out."""
    chosen = {path: st.sampled_from(options) for path, options in values.items()}
    return st.fixed_dictionaries({}, optional=chosen)


def spec_of(*parts: dict[str, Any]) -> InferenceServiceSpec:
    body: dict[str, Any] = {"model": {"uri": SMALL}}
    for part in parts:
        for path, value in part.items():
            *parents, name = path.split(".")
            target = body
            for parent in parents:
                target = target.setdefault(parent, {})
            target[name] = value
    return InferenceServiceSpec.model_validate(body)


def as_written(spec: InferenceServiceSpec) -> Any:
    return spec.model_dump(mode="json", by_alias=True, exclude_unset=True)


@given(fields(_GATED), fields(_UNGATED | _WITH_MODEL), fields(_UNGATED | _WITH_MODEL))
def test_no_other_edit_is_a_change_of_answers(
    gated: dict[str, Any], before: dict[str, Any], after: dict[str, Any]
) -> None:
    old, new = spec_of(gated, before), spec_of(gated, after)

    assert gated_digest(old) == gated_digest(new)
    assert changed_fields(old, new) == ()


@given(fields(_GATED), fields(_GATED), fields(_UNGATED))
def test_each_edit_that_can_change_answers_has_another_digest(
    before: dict[str, Any], after: dict[str, Any], others: dict[str, Any]
) -> None:
    old, new = spec_of(before, others), spec_of(after, others)

    assert (gated_digest(old) == gated_digest(new)) is (before == after)
    changed = changed_fields(old, new)
    differing = {f"spec.{path}" for path in _GATED if before.get(path) != after.get(path)}
    assert all(any(each.startswith(path) for each in changed) for path in differing)
    assert bool(changed) is bool(differing)


@given(
    fields(_GATED | _WITH_MODEL), fields(_UNGATED), fields(_GATED | _WITH_MODEL), fields(_UNGATED)
)
def test_the_spec_in_force_has_the_answers_of_the_stable_one_and_all_else_of_the_edit(
    stable: dict[str, Any], before: dict[str, Any], edited: dict[str, Any], after: dict[str, Any]
) -> None:
    old, new = spec_of(stable, before), spec_of(edited, after)

    spec = in_force(old, new)

    assert gated_digest(spec) == gated_digest(old)
    wanted = as_written(spec_of(stable, after))
    assert {name: part for name, part in as_written(spec).items() if part} == wanted
    assert InferenceServiceSpec.model_validate(as_written(spec)) == spec


@given(fields(_GATED), fields(_LATENCY), fields(_GATED), fields(_LATENCY))
def test_what_changes_latency_alone_waits_and_is_known_to_change_no_answers(
    gated: dict[str, Any], before: dict[str, Any], edited: dict[str, Any], after: dict[str, Any]
) -> None:
    old, new = spec_of(gated, before), spec_of(edited, after)

    assert (gated_digest(old) == gated_digest(new)) is ((gated, before) == (edited, after))
    assert (answers_digest(old) == answers_digest(new)) is (gated == edited)
    assert bool(changed_fields(old, new)) is ((gated, before) != (edited, after))
    assert in_force(old, new).engine == old.engine


def test_what_the_api_server_fills_in_beside_other_fields_is_no_change() -> None:
    written = spec_of({"engine.tensorParallelSize": 2})
    filled = {"engine.version": a_spec().engine.version, "engine.extraArgs": []}
    empty: dict[str, Any] = {"precision.variants": [], "podTemplate.env": [], "model.adapters": []}
    limits = {"access.rateLimits.requests.perMinute": 5}

    for fields in (filled, empty, limits, filled | empty | limits):
        assert gated_digest(spec_of(fields)) == gated_digest(written)
        assert changed_fields(written, spec_of(fields)) == ()
    option = spec_of(filled, {"engine.kvCacheDtype": "fp8"})
    assert changed_fields(spec_of(), option) == ("spec.engine.kvCacheDtype",)


def test_a_request_for_the_newest_commit_and_another_builder_are_changes() -> None:
    spec = a_spec()
    digest = gated_digest(spec)

    assert gated_digest(spec, "2026-11-20") != digest
    assert version_digest(digest, None, (), 1) != version_digest(digest, None, (), 2)
