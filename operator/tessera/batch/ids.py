"""Is every custom_id unique? In 16 to 24 bytes per row, whatever the ids are."""

from array import array
from collections.abc import Callable

Mark = Callable[[str], int]
_MANY = 10_000
"""So many suspects are looked at again; a file with more of them has true ones for certain."""


def mark_of(custom_id: str) -> int:
    """64 bits that nobody can aim at, since Python salts them anew in every process; never 0."""
    return hash(custom_id) & 0xFFFF_FFFF_FFFF_FFFF or 1


class Ids:
    """Marks seen so far, in an open table; marks that came twice are suspects."""

    def __init__(self, mark: Mark = mark_of) -> None:
        self._mark = mark
        self._slots = array("Q", bytes(8 * 1024))
        self._count = 0
        self._suspects: set[int] = set()
        self.surplus = 0
        """Repeated marks past those that are looked at again."""

    def take(self, custom_id: str) -> None:
        """Remember an id."""
        mark = self._mark(custom_id)
        if self._added(mark):
            if self._count * 3 > len(self._slots) * 2:
                self._grow()
        elif len(self._suspects) < _MANY:
            self._suspects.add(mark)
        elif mark not in self._suspects:
            self.surplus += 1

    def repeats(self) -> "Repeats | None":
        """What a second look over the file needs; None when all ids are unique already."""
        return Repeats(self._mark, frozenset(self._suspects)) if self._suspects else None

    def _added(self, mark: int) -> bool:
        slots, last = self._slots, len(self._slots) - 1
        place = mark & last
        while found := slots[place]:
            if found == mark:
                return False
            place = (place + 1) & last
        slots[place] = mark
        self._count += 1
        return True

    def _grow(self) -> None:
        old, self._count = self._slots, 0
        self._slots = array("Q", bytes(2 * len(old) * 8))
        for mark in old:
            if mark:
                self._added(mark)


class Repeats:
    """The second look: exact comparison, but only of ids whose mark came twice."""

    def __init__(self, mark: Mark, suspects: frozenset[int]) -> None:
        self._mark = mark
        self._suspects = suspects
        self._first: dict[str, int] = {}

    def first(self, custom_id: str, line: int) -> int:
        """The first line with this id, which may be this one."""
        if self._mark(custom_id) not in self._suspects:
            return line
        return self._first.setdefault(custom_id, line)
