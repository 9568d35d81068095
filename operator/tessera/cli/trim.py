"""Trims objects to what a plan reads, without secrets."""

import re
from collections.abc import Mapping
from typing import Any

from tessera.adapters.kube.managed_fields import owned_fields_digest
from tessera.api.api_resource import ApiResource
from tessera.api.meta import GROUP
from tessera.cli.cluster import Json
from tessera.domain.names import COST_ANNOTATION, FIELD_MANAGER
from tessera.resources.api_resources import DEPLOYMENTS, JOBS, NODES, PODS

_WORKLOAD_KINDS = (PODS.plural, DEPLOYMENTS.plural, JOBS.plural)
_COMMAND_FIELDS = frozenset({"args", "command"})
# A plan reads these of an engine's arguments.
_LIMIT = re.compile(r"--max-(num-seqs|num-batched-tokens|model-len)=[0-9]{1,9}")
_UNUSED_FIELDS = frozenset({"managedFields", "selfLink"})
_MASK = "***"
_LOGIN = re.compile(r"(?<=://)[^/\s:@]*:[^/\s@]+(?=@)")
_TOKEN = re.compile(r"\b(hf_|sk-|ghp_|glpat-|xox[a-z]-)[A-Za-z0-9_-]{12,}")
_BEARER = re.compile(r"(?i)(?<=bearer )[A-Za-z0-9._~+/=-]{12,}")
_SECRET_FLAG = re.compile(r"(?i)^--?[a-z0-9-]*(key|token|secret|password)[a-z0-9-]*$")


def trim_object(kind: ApiResource, body: Mapping[str, Any]) -> Json:
    """Trim one object; names of environment variables and of their Secrets stay."""
    dropped = _UNUSED_FIELDS | (_COMMAND_FIELDS if kind.plural in _WORKLOAD_KINDS else frozenset())
    if kind.plural == NODES.plural:
        dropped = dropped | {"images", "addresses"}
    cleaned: Json = _clean(body, dropped)
    annotations = cleaned.get("metadata", {}).pop("annotations", {})
    own_annotations = {name: text for name, text in annotations.items() if _is_own_annotation(name)}
    if own_annotations:
        cleaned["metadata"]["annotations"] = own_annotations
    if owned_fields_digest(body) is not None:  # without it the object is not Tessera's
        entry = {"manager": FIELD_MANAGER, "operation": "Apply"}
        cleaned["metadata"]["managedFields"] = [entry]
    return cleaned


def _is_own_annotation(annotation: str) -> bool:
    return annotation.startswith(f"{GROUP}/") or annotation == COST_ANNOTATION


def _clean(value: Any, dropped: frozenset[str]) -> Any:
    if isinstance(value, Mapping):
        if "args" in dropped and isinstance(arguments := value.get("args"), list):
            limits = [each for each in arguments if _LIMIT.fullmatch(str(each))]
            return _clean({**value, "args": limits}, dropped - {"args"})
        return {
            name: _clean_variables(child, dropped) if name == "env" else _clean(child, dropped)
            for name, child in value.items()
            if name not in dropped
        }
    if isinstance(value, list):
        return _mask_arguments([_clean(child, dropped) for child in value])
    return mask_secrets(value) if isinstance(value, str) else value


def _clean_variables(env: Any, dropped: frozenset[str]) -> Any:
    if not isinstance(env, list):
        return _clean(env, dropped)
    return [
        {name: child for name, child in variable.items() if name != "value"}
        for variable in env
        if isinstance(variable, Mapping)
    ]


def _mask_arguments(values: list[Any]) -> list[Any]:
    """Mask the values of `--api-key=x` and `--api-key x`."""
    arguments: list[Any] = []
    for value in values:
        if not isinstance(value, str) or _LIMIT.fullmatch(value):
            arguments.append(value)
            continue
        name, equals, _ = value.partition("=")
        if arguments and isinstance(arguments[-1], str) and _SECRET_FLAG.match(arguments[-1]):
            arguments.append(value if value.startswith("--") else _MASK)
        elif equals and _SECRET_FLAG.match(name):
            arguments.append(f"{name}={_MASK}")
        else:
            arguments.append(value)
    return arguments


def mask_secrets(text: str) -> str:
    """Return a text without passwords in URLs and without tokens of well-known forms."""
    text = _LOGIN.sub(_MASK, text)
    text = _BEARER.sub(_MASK, text)
    return _TOKEN.sub(lambda match: match[1] + _MASK, text)
