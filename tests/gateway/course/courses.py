"""The courses that are recorded: the systematic ones, and others by chance."""

from collections.abc import Callable, Iterable, Mapping, Sequence

from tests.gateway.course.chance import by_chance
from tests.gateway.course.charges import charges
from tests.gateway.course.contents import contents
from tests.gateway.course.failures import failures
from tests.gateway.course.placements import placements
from tests.gateway.course.play import Course
from tests.gateway.course.reasons import reasons
from tests.gateway.course.stations import stations

_PARTS: Mapping[str, Callable[[], Iterable[Course]]] = {
    part.__name__: part
    for part in (placements, stations, failures, reasons, contents, by_chance, charges)
}


def courses() -> Sequence[Course]:
    """Return all courses, each with a name of its own."""
    return [course for part in _PARTS.values() for course in part()]


def parts_as_text() -> Mapping[str, Sequence[str]]:
    """Return the names of every seventh course, which stand in git as text, by their part."""
    return {name: [course.name for course in part()][::7] for name, part in _PARTS.items()}
