"""Is every custom_id unique? In 16 to 24 bytes per row, whatever the ids are."""

from array import array
from collections.abc import Callable

IdHasher = Callable[[str], int]
# So many suspects are looked at again; a file with more of them has true ones for certain.
_MAX_SUSPECTS = 10_000


def id_hash(custom_id: str) -> int:
    """64 bits that nobody can aim at, since Python salts them anew in every process; never 0."""
    return hash(custom_id) & 0xFFFF_FFFF_FFFF_FFFF or 1


class IdSet:
    """Marks seen so far, in an open table; marks that came twice are suspects."""

    def __init__(self, hash_id: IdHasher = id_hash) -> None:
        self._hash_id = hash_id
        self._slots = array("Q", bytes(8 * 1024))
        self._count = 0
        self._suspects: set[int] = set()
        self.surplus = 0
        """Repeated marks past those that are looked at again."""

    def add(self, custom_id: str) -> None:
        """Remember an id."""
        hash_value = self._hash_id(custom_id)
        if self._insert(hash_value):
            if self._count * 3 > len(self._slots) * 2:
                self._grow()
        elif len(self._suspects) < _MAX_SUSPECTS:
            self._suspects.add(hash_value)
        elif hash_value not in self._suspects:
            self.surplus += 1

    def duplicate_finder(self) -> "DuplicateFinder | None":
        """What a second look over the file needs; None when all ids are unique already."""
        return DuplicateFinder(self._hash_id, frozenset(self._suspects)) if self._suspects else None

    def _insert(self, hash_value: int) -> bool:
        slots, mask = self._slots, len(self._slots) - 1
        slot = hash_value & mask
        while existing := slots[slot]:
            if existing == hash_value:
                return False
            slot = (slot + 1) & mask
        slots[slot] = hash_value
        self._count += 1
        return True

    def _grow(self) -> None:
        old_slots, self._count = self._slots, 0
        self._slots = array("Q", bytes(2 * len(old_slots) * 8))
        for hash_value in old_slots:
            if hash_value:
                self._insert(hash_value)


class DuplicateFinder:
    """The second look: exact comparison, but only of ids whose mark came twice."""

    def __init__(self, hash_id: IdHasher, suspects: frozenset[int]) -> None:
        self._hash_id = hash_id
        self._suspects = suspects
        self._first_lines: dict[str, int] = {}

    def first_line(self, custom_id: str, line: int) -> int:
        """The first line with this id, which may be this one."""
        if self._hash_id(custom_id) not in self._suspects:
            return line
        return self._first_lines.setdefault(custom_id, line)
