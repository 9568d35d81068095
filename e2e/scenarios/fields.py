"""The fields that the operator owns on an object, as the API server keeps them."""

import json
from collections.abc import Iterator, Mapping
from typing import Any

from tessera.domain.names import FIELD_MANAGER

Path = tuple[str | int, ...]


def owned(body: Mapping[str, Any]) -> dict[str, Path]:
    """All leaves that were applied by the operator: their name by keys -> where they are now."""
    for entry in body["metadata"].get("managedFields", ()):
        if entry["manager"] == FIELD_MANAGER and "subresource" not in entry:
            return dict(_leaves(entry["fieldsV1"], body, (), ""))
    return {}


def projection(body: Mapping[str, Any]) -> dict[str, Any]:
    """The values of all these leaves."""
    return {name: value_at(body, path) for name, path in owned(body).items()}


def value_at(body: Any, path: Path) -> Any:
    """The value at a path; None when there is none."""
    for step in path:
        try:
            body = body[step]
        except (KeyError, IndexError, TypeError):
            return None
    return body


def pointer(path: Path) -> str:
    """A JSON pointer."""
    return "".join(f"/{str(step).replace('~', '~0').replace('/', '~1')}" for step in path)


def _leaves(
    fields: Mapping[str, Any], node: Any, path: Path, named: str
) -> Iterator[tuple[str, Path]]:
    for name, below in fields.items():
        step = None if name == "." else _step(name, node)
        if step is None:
            continue
        if below and set(below) != {"."}:
            yield from _leaves(below, node[step], (*path, step), f"{named}/{name}")
        else:
            yield f"{named}/{name}", (*path, step)


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
