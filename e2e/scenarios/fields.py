"""The fields that the operator owns on an object, as the API server keeps them."""

import json
from collections.abc import Iterator, Mapping
from typing import Any

from tessera.domain.names import FIELD_MANAGER

FieldPath = tuple[str | int, ...]


def owned_fields(body: Mapping[str, Any]) -> dict[str, FieldPath]:
    """Return all leaves that the operator applied: their name by keys -> their current path."""
    for entry in body["metadata"].get("managedFields", ()):
        if entry["manager"] == FIELD_MANAGER and "subresource" not in entry:
            return dict(_leaves(entry["fieldsV1"], body, (), ""))
    return {}


def owned_values(body: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values of all these leaves."""
    return {name: value_at(body, path) for name, path in owned_fields(body).items()}


def value_at(body: Any, path: FieldPath) -> Any:
    """Return the value at a path; None when there is none."""
    for step in path:
        try:
            body = body[step]
        except (KeyError, IndexError, TypeError):
            return None
    return body


def pointer(path: FieldPath) -> str:
    """Return the path as a JSON pointer."""
    return "".join(f"/{str(step).replace('~', '~0').replace('/', '~1')}" for step in path)


def _leaves(
    fields: Mapping[str, Any], node: Any, path: FieldPath, prefix: str
) -> Iterator[tuple[str, FieldPath]]:
    for name, children in fields.items():
        step = None if name == "." else _step(name, node)
        if step is None:
            continue
        if children and set(children) != {"."}:
            yield from _leaves(children, node[step], (*path, step), f"{prefix}/{name}")
        else:
            yield f"{prefix}/{name}", (*path, step)


def _step(name: str, node: Any) -> str | int | None:
    kind, _, rest = name.partition(":")
    if kind == "f":
        return rest
    if kind == "k":
        key = json.loads(rest)
        for index, item in enumerate(node):
            if all(item.get(field, _DEFAULTS.get(field)) == value for field, value in key.items()):
                return index
    if kind == "v":
        return list(node).index(json.loads(rest))
    return None


# Keys of lists that the API server fills in by default.
_DEFAULTS = {"protocol": "TCP"}
