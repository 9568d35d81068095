"""The fleet as last seen. Objects that did not change keep their identity."""

from collections.abc import Iterable, Mapping
from dataclasses import replace

from tessera.ports import Listing, Seen
from tessera.resources.kinds import Kind
from tessera.resources.manifest import Key


class Store:
    """Everything seen, by kind."""

    def __init__(self, kinds: Iterable[Kind]) -> None:
        self._seen: dict[str, dict[Key, Seen]] = {kind.plural: {} for kind in kinds}
        self._awaited = set(self._seen)
        self._gone: dict[Key, int] = {}

    @property
    def complete(self) -> bool:
        """Every kind was listed once; before that, absence means nothing."""
        return not self._awaited

    def replace(self, kind: Kind, listing: Listing) -> bool:
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
        return old != new

    def put(self, kind: Kind, seen: Seen) -> bool:
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
        return known != seen

    def drop(self, kind: Kind, key: Key, version: int = 0) -> bool:
        """Forget one object; True when it was known."""
        known = self._seen[kind.plural].get(key)
        if known is not None and version and version < known.version:
            return False
        if version:
            self._gone[key] = version
        return self._seen[kind.plural].pop(key, None) is not None

    def all(self, kind: Kind) -> Mapping[Key, Seen]:
        """Every object of one kind."""
        return self._seen[kind.plural]


def _newer(known: Seen | None, seen: Seen) -> Seen:
    """The newer sight of an object, with the old value where both say the same."""
    if known is None or seen.version < known.version:
        return known or seen
    return replace(seen, value=known.value) if known == seen else seen
