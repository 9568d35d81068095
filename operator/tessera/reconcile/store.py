"""The fleet as last observed; unchanged objects keep their identity."""

from collections import defaultdict
from collections.abc import Container, Iterable, Mapping, MutableMapping
from dataclasses import replace
from typing import Any

from tessera.api.api_resource import ApiResource
from tessera.domain.observed.snapshot import Ref
from tessera.ports import ClusterObject, ObjectList, ObjectValue
from tessera.resources.api_resources import AUTOSCALING, CHILDREN
from tessera.resources.manifest import ObjectKey

_CHILDREN = frozenset(kind.plural for kind in (*CHILDREN, *AUTOSCALING))


class Store:
    """All observed objects, by kind."""

    def __init__(self, kinds: Iterable[ApiResource]) -> None:
        self._objects: dict[str, dict[ObjectKey, ClusterObject]] = {
            kind.plural: {} for kind in kinds
        }
        self._unlisted = set(self._objects)
        self._deleted_versions: dict[ObjectKey, int] = {}
        self._plan_inputs: dict[str, tuple[ObjectValue, ...]] = {}
        self.malformed: dict[str, int] = {}
        """Objects that the last plan left out since they cannot be parsed, by kind."""
        self._children: Mapping[Ref | None, tuple[ClusterObject, ...]] | None = None
        self._previous_children: Mapping[Ref | None, tuple[ClusterObject, ...]] = {}

    @property
    def complete(self) -> bool:
        """Return whether every kind was listed once; before that, absence means nothing."""
        return not self._unlisted

    def replace(self, kind: ApiResource, listing: ObjectList) -> bool:
        """Store a full list, and drop what is not in it; return whether anything changed.

        Objects that events brought after the list was made stay.
        """
        previous = self._objects[kind.plural]
        current = {
            observed.key: _newer(previous.get(observed.key), observed) for observed in listing.items
        }
        current |= {
            key: observed
            for key, observed in previous.items()
            if observed.version > listing.version > 0
        }
        self._unlisted.discard(kind.plural)
        self._objects[kind.plural] = current
        for key in [key for key in self._deleted_versions if key.plural == kind.plural]:
            del self._deleted_versions[key]
        return self._changed(kind, previous != current)

    def put(self, kind: ApiResource, observed: ClusterObject) -> bool:
        """Store one object; return whether it changed.

        Responses to our own writes and watch events overtake each other. So an older version
        changes nothing, and a late response does not restore a deleted object.
        """
        objects = self._objects[kind.plural]
        known = objects.get(observed.key)
        if observed.version < max(
            known.version if known else 0, self._deleted_versions.get(observed.key, 0)
        ):
            return False
        self._deleted_versions.pop(observed.key, None)
        objects[observed.key] = _newer(known, observed)
        return self._changed(kind, known != observed)

    def drop(self, kind: ApiResource, key: ObjectKey, version: int = 0) -> bool:
        """Drop one object; return whether it was known."""
        known = self._objects[kind.plural].get(key)
        if known is None or (version and version < known.version):
            return False
        if version:
            self._deleted_versions[key] = version
        del self._objects[kind.plural][key]
        return self._changed(kind, changed=True)

    def plan_inputs(self, kind: ApiResource) -> tuple[ObjectValue, ...]:
        """Return what the plan reads of a kind; the same tuple as long as nothing changed."""
        if kind.plural not in self._plan_inputs:
            objects = self._objects[kind.plural].values()
            self.malformed[kind.plural] = sum(observed.malformed for observed in objects)
            plan_inputs = (observed.plan_input for observed in objects)
            self._plan_inputs[kind.plural] = tuple(
                value for value in plan_inputs if value is not None
            )
        return self._plan_inputs[kind.plural]

    def children_by_service(self) -> Mapping[Ref | None, tuple[ClusterObject, ...]]:
        """Return the applied objects of each service, and under None the shared ones.

        The mapping is the same object as long as nothing changed, and so is each service's tuple.
        """
        if self._children is None:
            objects: dict[Ref | None, list[ClusterObject]] = defaultdict(list)
            for plural in sorted(_CHILDREN & self._objects.keys()):
                for observed in self._objects[plural].values():
                    objects[observed.service].append(observed)
            previous = self._previous_children
            self._previous_children = self._children = {
                ref: previous[ref]
                if ref in previous and previous[ref] == tuple(seen_objects)
                else tuple(seen_objects)
                for ref, seen_objects in objects.items()
            }
        return self._children

    def _changed(self, kind: ApiResource, changed: bool) -> bool:
        if changed:
            self._plan_inputs.pop(kind.plural, None)
            if kind.plural in _CHILDREN:
                self._children = None
        return changed

    def all(self, kind: ApiResource) -> Mapping[ObjectKey, ClusterObject]:
        """Return every object of one kind."""
        return self._objects[kind.plural]


def forget_all_but(known: Container[object], *memories: MutableMapping[Any, Any]) -> None:
    """Delete what is remembered of anything that is not known."""
    for memory in memories:
        for key in [key for key in memory if key not in known]:
            del memory[key]


def _newer(known: ClusterObject | None, observed: ClusterObject) -> ClusterObject:
    """Return the newer version, with the old value's identity if both values are equal."""
    if known is None:
        return observed
    # Of one version every field is the same: to compare thousands takes a tenth of a second.
    if observed.version < known.version or observed.version == known.version > 0:
        return known
    return replace(observed, plan_input=known.plan_input) if known == observed else observed
