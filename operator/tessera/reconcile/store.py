"""The fleet as last seen. Objects that did not change keep their identity."""

from collections.abc import Iterable, Mapping

from tessera.ports import Seen
from tessera.resources.kinds import Kind
from tessera.resources.manifest import Key


class Store:
    """Everything seen, by kind."""

    def __init__(self, kinds: Iterable[Kind]) -> None:
        self._seen: dict[str, dict[Key, Seen]] = {kind.plural: {} for kind in kinds}
        self._awaited = set(self._seen)

    @property
    def complete(self) -> bool:
        """Every kind was listed once; before that, absence means nothing."""
        return not self._awaited

    def replace(self, kind: Kind, listed: Iterable[Seen]) -> bool:
        """Take a full listing; what is not in it is gone. True when anything changed."""
        old = self._seen[kind.plural]
        new = {seen.key: seen for seen in listed}
        self._awaited.discard(kind.plural)
        self._seen[kind.plural] = {
            key: old[key] if old.get(key) == seen else seen for key, seen in new.items()
        }
        return old != new

    def put(self, kind: Kind, seen: Seen) -> bool:
        """Take one object; True when it changed."""
        objects = self._seen[kind.plural]
        if objects.get(seen.key) == seen:
            return False
        objects[seen.key] = seen
        return True

    def drop(self, kind: Kind, key: Key) -> bool:
        """Forget one object; True when it was known."""
        return self._seen[kind.plural].pop(key, None) is not None

    def all(self, kind: Kind) -> Mapping[Key, Seen]:
        """Every object of one kind."""
        return self._seen[kind.plural]
