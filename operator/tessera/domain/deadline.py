"""Where a batch runs, so that it is cheap and not late: uniform progress.

The line from nothing at the start to everything at the deadline says how much should be done by
now. On spot while spot is to be had; when it is not, waiting costs nothing as long as the batch is
above the line, and below it steady hardware (on-demand or reserved) takes over. When the time left
only just suffices on steady hardware, it takes the rest, whatever spot does: a batch that could
make its deadline there from the beginning still makes it. The way back to spot is open only to a
batch that is clearly ahead, since every move costs a start.
"""

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Literal

from tessera.api.batch_inference import SpotPolicy
from tessera.domain.batch.reasons import BatchRunning

Way = Literal["spot", "steady"]

CLEARLY = 0.1
"""So far above the line, as a share of the whole time, a batch may return to spot."""
MARGIN = timedelta(seconds=60)
"""Time for what no rate says: the turn that decides, and rows in flight that are asked again."""
_LONGEST_SECONDS = 1e9


@dataclass(frozen=True, slots=True, kw_only=True)
class Course:
    """How far a batch has come, of rows and of time."""

    start: datetime
    end: datetime
    at: datetime
    rows: int
    done: int

    @property
    def undone(self) -> int:
        return max(0, self.rows - self.done)

    @property
    def left(self) -> timedelta:
        return self.end - self.at

    @property
    def whole(self) -> timedelta:
        return self.end - self.start

    @property
    def share(self) -> float:
        """Of the rows, what is done."""
        return self.done / self.rows if self.rows else 1.0

    @property
    def passed(self) -> float:
        """Of the time, what has passed."""
        return min(1.0, max(0.0, (self.at - self.start) / self.whole))

    @property
    def ahead(self) -> float:
        """Height above the line; negative below it."""
        return self.share - self.passed


@dataclass(frozen=True, slots=True, kw_only=True)
class Lane:
    """Hardware of one way, as it is expected to carry the batch."""

    rate: float
    """Rows in a second."""
    start: timedelta
    """From the decision for an attempt until its first rows."""
    begun: timedelta = timedelta()
    """What has passed of that for the attempt that is there now."""
    free: bool = True
    """It is to be had, as far as anybody knows."""

    def need(self, rows: int) -> timedelta:
        """Time for so many rows from now on, without interruption."""
        return self.anew(rows) - min(self.begun, self.start)

    def anew(self, rows: int) -> timedelta:
        """The same for an attempt that has yet to begin."""
        return self.start + timedelta(seconds=min(rows / self.rate, _LONGEST_SECONDS)) + MARGIN


@dataclass(frozen=True, slots=True)
class Lot:
    """The way to take, and why; None is to wait."""

    way: Way | None
    reason: BatchRunning
    message: str


def choose(
    policy: SpotPolicy,
    course: Course,
    *,
    spot: Lane | None,
    steady: Lane | None,
    current: Way | None,
) -> Lot:
    """Choose the way for now; a lane is None when no hardware of it fits.

    `current` is where the last attempt ran or runs.
    """
    if policy == "never":
        return _steady_only(course, steady)
    if policy == "only":
        return _on_spot(course, spot, "spec.spot.policy is only, and preferred would go elsewhere")
    if steady is None:
        return _on_spot(course, spot, "no on-demand or reserved hardware fits")
    if course.left <= steady.need(course.undone):
        return _near(course, spot, steady, current)
    return _with_time(course, spot, steady, current)


def _near(course: Course, spot: Lane | None, steady: Lane, current: Way | None) -> Lot:
    """Steady hardware for the rest, unless it is taken and spot is at work."""
    if current == "spot" and spot is not None and spot.free and not steady.free:
        return _on_spot(course, spot, "on-demand and reserved hardware is taken")
    if (late := _late(course, steady)) is not None:
        return Lot("steady", BatchRunning.DEADLINE_AT_RISK, f"{late}; only a later one helps")
    return Lot(
        "steady",
        BatchRunning.DEADLINE_NEAR,
        f"spec.deadline: {_needs(course, steady)}; no spot for the rest",
    )


def _with_time(course: Course, spot: Lane | None, steady: Lane, current: Way | None) -> Lot:
    """On spot while it is to be had, or above the line; else on steady hardware."""
    waits = spot is None or not spot.free
    if current == "steady":
        slack = course.left - steady.anew(course.undone)
        clearly = course.ahead >= CLEARLY and slack >= CLEARLY * course.whole
        back = not waits and (clearly or not steady.free)
        return _on_spot(course, spot, "") if back else _stay(course)
    if waits and course.ahead < 0 and (steady.free or spot is None):
        return _stay(course)
    return _on_spot(course, spot, "")


def _stay(course: Course) -> Lot:
    """Steady hardware, until the batch is clearly ahead."""
    behind = course.ahead < 0
    why = "spot was not to be had, so on-demand or reserved hardware is used; " if behind else ""
    return Lot(
        "steady",
        BatchRunning.BEHIND_SCHEDULE if behind else BatchRunning.NOT_YET_AHEAD,
        f"spec.deadline: {_line(course)}; {why}the way back to spot opens when it is to be had and "
        f"the batch is {CLEARLY:.0%} of the time ahead",
    )


def _steady_only(course: Course, steady: Lane | None) -> Lot:
    if steady is not None and (late := _late(course, steady)) is not None:
        return Lot("steady", BatchRunning.DEADLINE_AT_RISK, f"{late}; only a later one helps")
    way: Way | None = None if steady is None else "steady"
    return Lot(way, BatchRunning.SPOT_DISABLED, f"spec.spot.policy is never; {_line(course)}")


def _on_spot(course: Course, spot: Lane | None, alone: str) -> Lot:
    """On spot, or waiting for it; `alone` says why nothing else would do."""
    late = None if spot is None or not alone else _late(course, spot)
    told = f"{late}; {alone}" if late else f"spec.spot.policy allows spot; {_line(course)}"
    if spot is None or not spot.free:
        told = f"{told}; no spot hardware is free, so it is waited for"
        return Lot(None if spot is None else "spot", BatchRunning.WAITING_FOR_SPOT, told)
    return Lot("spot", BatchRunning.DEADLINE_AT_RISK if late else BatchRunning.ON_SPOT, told)


def _late(course: Course, lane: Lane) -> str | None:
    """What tells that a lane will miss the deadline; None when it will not."""
    if lane.need(course.undone) - MARGIN <= course.left:
        return None
    return f"spec.deadline: it will be missed: {_needs(course, lane)}"


def _needs(course: Course, lane: Lane) -> str:
    need, left = (_minutes(span) for span in (lane.need(course.undone), course.left))
    return (
        f"{course.undone} rows need {need} min without interruption, {left} min are left until "
        f"{course.end:%Y-%m-%dT%H:%MZ}"
    )


def _line(course: Course) -> str:
    return (
        f"{course.done} of {course.rows} rows are done ({course.share:.0%}) and "
        f"{course.passed:.0%} of the time has passed"
    )


def _minutes(span: timedelta) -> int:
    return max(0, round(span.total_seconds() / 60))
