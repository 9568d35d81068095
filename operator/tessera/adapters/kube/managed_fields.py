"""Who set which field of an object, as the API server records it in `metadata.managedFields`."""

import contextlib
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from tessera.domain import names
from tessera.domain.observed.snapshot import ForeignField

JsonObject = Mapping[str, Any]

# Of one Deployment; a message names the first.
_MAX_FIELDS = 5
_MAX_PATH = 200
# Others set labels and annotations there without harm, such as `kubectl rollout restart`.
_POD_METADATA = "spec.template.metadata"


def owned_fields_digest(body: JsonObject) -> str | None:
    """Return a digest of the fields that Tessera owns by apply; None if it owns none.

    A field that another manager changes or removes leaves the set. Equal digests mean that
    everything applied is still in place, however the server normalizes the values.
    """
    for entry in body["metadata"].get("managedFields", ()):
        is_own_apply = (
            entry.get("manager") == names.FIELD_MANAGER and entry.get("operation") == "Apply"
        )
        if is_own_apply and not entry.get("subresource"):
            text = json.dumps(entry.get("fieldsV1", {}), sort_keys=True)
            return hashlib.sha256(text.encode()).hexdigest()[:16]
    return None


def foreign_fields(body: JsonObject) -> tuple[ForeignField, ...]:
    """Return the fields of a spec that others set and Tessera does not own, by manager and path.

    A field below which Tessera owns nothing is named alone, without those in it.
    """
    own, others = list[JsonObject](), list[tuple[str, JsonObject]]()
    for entry in body["metadata"].get("managedFields", ()):
        fields, manager = entry.get("fieldsV1", {}).get("f:spec"), entry.get("manager", "")
        if manager == names.FIELD_MANAGER and fields is not None:
            own.append(fields)
        elif fields is not None and entry.get("subresource") != "status":
            others.append((manager, fields))
    foreign = {
        ForeignField(manager, path[:_MAX_PATH])
        for manager, fields in others
        for path in _paths_beside(fields, own, "spec")
    }
    return tuple(sorted(foreign)[:_MAX_FIELDS])


def _paths_beside(fields: JsonObject, own: Sequence[JsonObject], prefix: str) -> Iterator[str]:
    for name, children in fields.items():
        path = prefix + _path_step(name)
        if name == "." or path == _POD_METADATA:
            continue
        own_children = [owned[name] for owned in own if name in owned]
        if own_children:
            yield from _paths_beside(children, own_children, path)
        else:
            yield path


def _path_step(name: str) -> str:
    """Return a step of a path: a field, or an item of a list by its keys, value or index."""
    kind, _, rest = name.partition(":")
    if kind == "f":
        return f".{rest}"
    if kind == "k":
        with contextlib.suppress(ValueError, AttributeError):
            rest = ",".join(str(key) for key in json.loads(rest).values())
    return f"[{rest}]"
