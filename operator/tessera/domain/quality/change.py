"""Which fields of a service can change its answers, and the spec in force while some of them wait.

What a user wrote counts, so that a new default of Tessera is no change.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, TypeVar

from pydantic import BaseModel

from tessera.api.inference_service import Access, InferenceServiceSpec
from tessera.api.precision import CHECKPOINT, Precision
from tessera.api.service_status import ModelStatus, PrecisionStatus

# Of `spec.engine`: the same weights on more GPUs, and a right.
_UNGATED_ENGINE = frozenset({"tensor_parallel_size", "allowed_media_domains"})
# The model verifies each drafted token, and a reused KV cache is that of the same tokens.
_LATENCY_ENGINE = frozenset({"speculation", "prefix_caching"})
# What can change answers. Of the model neither its names nor how its files are reached.
_GATED: Mapping[str, Any] = {
    "model": {
        **{"uri": True, "revision": True, "adapters": True, "store": {"endpoint"}},
        # What dimensions say of the context and of the task; the others are for sizing alone.
        "shape": {"max_position_embeddings", "derived_positions", "pooling"},
    },
    "precision": True,
    "engine": True,
    # A shorter context cuts answers.
    "context": {"max_model_len"},
    "pod_template": {"env"},
    # A shorter answer may lack its end.
    "access": {"rate_limits": {"max_output_tokens"}},
}
BaseModelT = TypeVar("BaseModelT", bound=BaseModel)


def gated_digest(spec: InferenceServiceSpec, update: str | None = None) -> str:
    """Return a digest of what waits for a gate, as written.

    `update` is the annotation by which the service got its commit and its pod template.
    """
    return _digest([_gated_fields(spec), update])


def answers_digest(spec: InferenceServiceSpec, update: str | None = None) -> str:
    """Return the same of what can change answers, without what changes latency alone."""
    return _digest([_gated_fields(spec, _UNGATED_ENGINE | _LATENCY_ENGINE), update])


def digest_in(spec: InferenceServiceSpec, update: str | None, precision: str) -> str:
    """Return `answers_digest` of one precision, by its name, whatever else the version lists."""
    listed = tuple(each for each in spec.precision.variants if each.precision == precision)
    chosen = Precision(variants=listed) if listed else Precision()
    return answers_digest(spec.model_copy(update={"precision": chosen}), update)


def version_digest(
    digest: str,
    model: ModelStatus | None,
    precisions: Iterable[PrecisionStatus],
    builder_version: int,
    precision: str = CHECKPOINT,
) -> str:
    """Return the digest by which verdicts go: of what was written, what it was resolved to, and
    the precision that answers."""
    commits = sorted((each.precision, each.uri, each.revision) for each in precisions)
    # Digests of the model's own files are as they were before others were tried by themselves.
    chosen = () if precision == CHECKPOINT else (precision,)
    return _digest(
        [digest, model.revision if model is not None else None, commits, builder_version, *chosen]
    )


def changed_fields(old: InferenceServiceSpec, new: InferenceServiceSpec) -> tuple[str, ...]:
    """Return the full paths of the fields that differ and wait for a gate, sorted."""
    before, after = (dict(_paths("spec", _gated_fields(spec))) for spec in (old, new))
    return tuple(
        sorted(path for path in before.keys() | after if before.get(path) != after.get(path))
    )


def in_force(stable: InferenceServiceSpec, edited: InferenceServiceSpec) -> InferenceServiceSpec:
    """Return the spec of a service whose change waits: its fields that act at once are the edit's.

    The model has the names and the credentials that it had.
    """
    context = _taken(edited.context, stable.context, {"max_model_len"})
    pod_template = _taken(edited.pod_template, stable.pod_template, {"env"})
    parts: dict[str, BaseModel] = {
        "model": stable.model,
        "precision": stable.precision,
        "engine": _taken(stable.engine, edited.engine, _UNGATED_ENGINE),
        "context": context,
        "pod_template": pod_template,
        "access": _access(stable.access, edited.access),
    }
    fields = {
        *(edited.model_fields_set - parts.keys()),
        *(stable.model_fields_set & {"model", "precision"}),
        *(
            name
            for name in ("engine", "context", "pod_template", "access")
            if parts[name].model_fields_set
        ),
    }
    return InferenceServiceSpec.model_construct(fields, **{**dict(edited), **parts})


def _access(stable: Access, edited: Access) -> Access:
    """Return who may ask, with the longest answer of the stable version."""
    limits = _taken(edited.rate_limits, stable.rate_limits, {"max_output_tokens"})
    fields = edited.model_fields_set - {"rate_limits"}
    fields |= {"rate_limits"} if limits.model_fields_set else set()
    return Access.model_construct(fields, **{**dict(edited), "rate_limits": limits})


def _taken(base: BaseModelT, source: BaseModelT, names: Iterable[str]) -> BaseModelT:
    """Return a part with these fields of another one, set or not as they are there."""
    taken = frozenset(names)
    fields = (base.model_fields_set - taken) | (source.model_fields_set & taken)
    values = {**dict(base), **{name: getattr(source, name) for name in taken}}
    return type(base).model_construct(fields, **values)


def _gated_fields(
    spec: InferenceServiceSpec, ungated_engine: frozenset[str] = _UNGATED_ENGINE
) -> Mapping[str, Any]:
    fields = spec.model_dump(
        mode="json",
        by_alias=True,
        exclude_unset=True,
        exclude_none=True,
        include=dict(_GATED),
        exclude={"engine": set(ungated_engine)},
    )
    # The API server fills in defaults of a part once anything stands in it.
    fields["engine"] = {"version": spec.engine.version} | fields.get("engine", {})
    return {name: part for name, part in _without_empty(fields).items() if part}


def _without_empty(part: Any) -> Any:
    """Return a part without lists and objects that are empty, at any depth."""
    if not isinstance(part, dict):
        return part
    fields = {name: _without_empty(value) for name, value in part.items()}
    return {name: value for name, value in fields.items() if value not in ([], {})}


def _paths(path: str, value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for name in value:
            yield from _paths(f"{path}.{name}", value[name])
    else:
        yield path, value


def _digest(parts: object) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
