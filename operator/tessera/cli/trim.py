"""Objects as a snapshot keeps them: what a plan reads, without secrets and without noise."""

import re
from collections.abc import Mapping
from typing import Any

from tessera.api.meta import GROUP
from tessera.cli.cluster import Json
from tessera.domain.names import COST_ANNOTATION
from tessera.resources.kinds import DEPLOYMENTS, JOBS, NODES, PODS, Kind

_RUN_BY = (PODS.plural, DEPLOYMENTS.plural, JOBS.plural)
_COMMANDS = frozenset({"args", "command"})
_NOISE = frozenset({"managedFields", "selfLink"})
_MASK = "***"
_LOGIN = re.compile(r"(?<=://)[^/\s:@]*:[^/\s@]+(?=@)")
_TOKEN = re.compile(r"\b(hf_|sk-|ghp_|glpat-|xox[a-z]-)[A-Za-z0-9_-]{12,}")
_BEARER = re.compile(r"(?i)(?<=bearer )[A-Za-z0-9._~+/=-]{12,}")
_SECRET_FLAG = re.compile(r"(?i)^--?[a-z0-9-]*(key|token|secret|password)[a-z0-9-]*$")


def trimmed(kind: Kind, body: Mapping[str, Any]) -> Json:
    """One object. Of environment variables the names stay, and which Secret a value comes from."""
    dropped = _NOISE | (_COMMANDS if kind.plural in _RUN_BY else frozenset())
    if kind.plural == NODES.plural:
        dropped = dropped | {"images", "addresses"}
    told: Json = _clean(body, dropped)
    annotations = told.get("metadata", {}).pop("annotations", {})
    kept = {name: text for name, text in annotations.items() if _is_ours(name)}
    if kept:
        told["metadata"]["annotations"] = kept
    return told


def _is_ours(annotation: str) -> bool:
    return annotation.startswith(f"{GROUP}/") or annotation == COST_ANNOTATION


def _clean(value: Any, dropped: frozenset[str]) -> Any:
    if isinstance(value, Mapping):
        return {
            name: _variables(child, dropped) if name == "env" else _clean(child, dropped)
            for name, child in value.items()
            if name not in dropped
        }
    if isinstance(value, list):
        return _arguments([_clean(child, dropped) for child in value])
    return masked(value) if isinstance(value, str) else value


def _variables(env: Any, dropped: frozenset[str]) -> Any:
    if not isinstance(env, list):
        return _clean(env, dropped)
    return [
        {name: child for name, child in one.items() if name != "value"}
        for one in env
        if isinstance(one, Mapping)
    ]


def _arguments(values: list[Any]) -> list[Any]:
    """`--api-key=x` and `--api-key x` lose what they give away."""
    told: list[Any] = []
    for value in values:
        if not isinstance(value, str):
            told.append(value)
            continue
        name, equals, _ = value.partition("=")
        if told and isinstance(told[-1], str) and _SECRET_FLAG.match(told[-1]):
            told.append(value if value.startswith("--") else _MASK)
        elif equals and _SECRET_FLAG.match(name):
            told.append(f"{name}={_MASK}")
        else:
            told.append(value)
    return told


def masked(text: str) -> str:
    """A text without passwords of URLs and without tokens of well-known forms."""
    text = _LOGIN.sub(_MASK, text)
    text = _BEARER.sub(_MASK, text)
    return _TOKEN.sub(lambda found: found[1] + _MASK, text)
