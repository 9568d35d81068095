"""The courses that are recorded: the systematic ones, and others by chance."""

from collections.abc import Sequence

from tests.gateway.course.chance import by_chance
from tests.gateway.course.charges import charges
from tests.gateway.course.contents import contents
from tests.gateway.course.failures import failures
from tests.gateway.course.placements import placements
from tests.gateway.course.play import Course
from tests.gateway.course.reasons import reasons
from tests.gateway.course.stations import stations


def courses() -> Sequence[Course]:
    """Return all courses, each with a name of its own."""
    return [
        *placements(),
        *stations(),
        *failures(),
        *reasons(),
        *contents(),
        *by_chance(),
        *charges(),
    ]
