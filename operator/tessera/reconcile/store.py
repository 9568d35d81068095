"""The fleet as last seen. Objects that did not change keep their identity."""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import replace

from tessera.domain.snapshot import Ref
from tessera.ports import ClusterObject, ObjectList, ObjectValue
from tessera.resources.kinds import CHILDREN, Kind
from tessera.resources.manifest import Key

_CHILDREN = frozenset(kind.plural for kind in CHILDREN)


class Store:
    """Everything seen, by kind."""

    def __init__(self, kinds: Iterable[Kind]) -> None:
        self._seen: dict[str, dict[Key, ClusterObject]] = {kind.plural: {} for kind in kinds}
        self._awaited = set(self._seen)
        self._gone: dict[Key, int] = {}
        self._values: dict[str, tuple[ObjectValue, ...]] = {}
        self._belongings: Mapping[Ref | None, tuple[ClusterObject, ...]] | None = None
        self._before: Mapping[Ref | None, tuple[ClusterObject, ...]] = {}

    @property
    def complete(self) -> bool:
        """Every kind was listed once; before that, absence means nothing."""
        return not self._awaited

    def replace(self, kind: Kind, listing: ObjectList) -> bool:
        """Take a full listing; what is not in it is gone. True when anything changed.

        What events brought after the listing was made stays.
        """
        old = self._seen[kind.plural]
        new = {seen.key: _newer(old.get(seen.key), seen) for seen in listing.items}
        new |= {key: seen for key, seen in old.items() if seen.version > listing.version > 0}
        self._awaited.discard(kind.plural)
        self._seen[kind.plural] = new
        for key in [key for key in self._gone if key.plural == kind.plural]:
            del self._gone[key]
        return self._changed(kind, old != new)

    def put(self, kind: Kind, seen: ClusterObject) -> bool:
        """Take one object; True when it changed.

        Answers to our own writes and watch events overtake each other, so what is older than what
        is known changes nothing, and what was deleted does not come back by an old answer.
        """
        objects = self._seen[kind.plural]
        known = objects.get(seen.key)
        if seen.version < max(known.version if known else 0, self._gone.get(seen.key, 0)):
            return False
        self._gone.pop(seen.key, None)
        objects[seen.key] = _newer(known, seen)
        return self._changed(kind, known != seen)

    def drop(self, kind: Kind, key: Key, version: int = 0) -> bool:
        """Forget one object; True when it was known."""
        known = self._seen[kind.plural].get(key)
        if known is not None and version and version < known.version:
            return False
        if version:
            self._gone[key] = version
        return self._changed(kind, self._seen[kind.plural].pop(key, None) is not None)

    def values(self, kind: Kind) -> tuple[ObjectValue, ...]:
        """What the plan reads of them; the same tuple as long as none of them changed."""
        if kind.plural not in self._values:
            found = (seen.value for seen in self._seen[kind.plural].values())
            self._values[kind.plural] = tuple(value for value in found if value is not None)
        return self._values[kind.plural]

    def belongings(self) -> Mapping[Ref | None, tuple[ClusterObject, ...]]:
        """The objects that we applied for each service, and under None those that are shared; the
        same mapping as long as none changed, and the same tuples for whom none changed."""
        if self._belongings is None:
            found: dict[Ref | None, list[ClusterObject]] = defaultdict(list)
            for plural in sorted(_CHILDREN):
                for seen in self._seen[plural].values():
                    found[seen.service].append(seen)
            old = self._before
            self._before = self._belongings = {
                ref: old[ref] if ref in old and old[ref] == tuple(one) else tuple(one)
                for ref, one in found.items()
            }
        return self._belongings

    def _changed(self, kind: Kind, changed: bool) -> bool:
        if changed:
            self._values.pop(kind.plural, None)
            if kind.plural in _CHILDREN:
                self._belongings = None
        return changed

    def all(self, kind: Kind) -> Mapping[Key, ClusterObject]:
        """Every object of one kind."""
        return self._seen[kind.plural]


def _newer(known: ClusterObject | None, seen: ClusterObject) -> ClusterObject:
    """The newer sight of an object, with the old value where both say the same."""
    if known is None or seen.version < known.version:
        return known or seen
    return replace(seen, value=known.value) if known == seen else seen
