"""What writing raised: each defect costs the object that it was raised for, and is told there."""

from collections.abc import Container

from tessera.reconcile.writing.writer import defect_text
from tessera.resources.manifest import ObjectKey


class Defects:
    """What ordering and running the work of objects raised."""

    def __init__(self) -> None:
        self._last: dict[ObjectKey, Exception] = {}
        """Until work of the object ends well."""
        self._new: list[Exception] = []

    def report(self, owner: ObjectKey, error: Exception) -> None:
        """Keep what the work of an object raised."""
        self._last[owner] = error
        self._new.append(error)

    def resolve(self, owner: ObjectKey) -> None:
        """Forget what was raised for an object whose work ended well."""
        self._last.pop(owner, None)

    def forget_all_but(self, owners: Container[ObjectKey]) -> None:
        """Forget objects that have no work."""
        self._last = {owner: error for owner, error in self._last.items() if owner in owners}

    def texts(self, owner: ObjectKey) -> list[str]:
        """Return what was raised for an object last, for its status."""
        error = self._last.get(owner)
        return [] if error is None else [defect_text("the write queue", error)]

    def take(self) -> list[Exception]:
        """Return what was raised since the last call."""
        taken, self._new = self._new, []
        return taken
