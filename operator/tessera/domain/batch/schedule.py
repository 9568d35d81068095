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
from tessera.api.batch_reasons import BatchRunning

CapacityClass = Literal["spot", "steady"]

# So far above the line, as a share of the whole time, a batch may return to spot.
RETURN_TO_SPOT_LEAD = 0.1
# Time for what no rate says: the turn that decides, and rows in flight that are asked again.
SAFETY_MARGIN = timedelta(seconds=60)
_MAX_SECONDS = 1e9


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """How far a batch has come, of rows and of time."""

    start: datetime
    end: datetime
    at: datetime
    rows: int
    done: int

    @property
    def remaining_rows(self) -> int:
        return max(0, self.rows - self.done)

    @property
    def time_left(self) -> timedelta:
        return self.end - self.at

    @property
    def duration(self) -> timedelta:
        return self.end - self.start

    @property
    def done_share(self) -> float:
        """Of the rows, what is done."""
        return self.done / self.rows if self.rows else 1.0

    @property
    def elapsed_share(self) -> float:
        """Of the time, what has passed."""
        return min(1.0, max(0.0, (self.at - self.start) / self.duration))

    @property
    def lead(self) -> float:
        """Height above the line; negative below it."""
        return self.done_share - self.elapsed_share


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """Hardware of one way, as it is expected to carry the batch."""

    rate: float
    """Rows in a second."""
    start: timedelta
    """From the decision for an attempt until its first rows."""
    start_elapsed: timedelta = timedelta()
    """What has passed of that for the attempt that is there now."""
    available: bool = True
    """It is to be had, as far as anybody knows."""

    def time_needed(self, rows: int) -> timedelta:
        """Time for so many rows from now on, without interruption."""
        return self.time_needed_from_start(rows) - min(self.start_elapsed, self.start)

    def time_needed_from_start(self, rows: int) -> timedelta:
        """The same for an attempt that has yet to begin."""
        return self.start + timedelta(seconds=min(rows / self.rate, _MAX_SECONDS)) + SAFETY_MARGIN


@dataclass(frozen=True, slots=True)
class CapacityDecision:
    """The way to take, and why; None is to wait."""

    capacity_class: CapacityClass | None
    reason: BatchRunning
    message: str


def choose_capacity(
    policy: SpotPolicy,
    schedule: Schedule,
    *,
    spot: Estimate | None,
    steady: Estimate | None,
    current: CapacityClass | None,
) -> CapacityDecision:
    """Choose the way for now; a lane is None when no hardware of it fits.

    `current` is where the last attempt ran or runs.
    """
    if policy == "never":
        return _steady_only(schedule, steady)
    if policy == "only":
        return _use_spot(
            schedule, spot, "spec.spot.policy is only, and preferred would go elsewhere"
        )
    if steady is None:
        return _use_spot(schedule, spot, "no on-demand or reserved hardware fits")
    if schedule.time_left <= steady.time_needed(schedule.remaining_rows):
        return _decide_near_deadline(schedule, spot, steady, current)
    return _decide_with_slack(schedule, spot, steady, current)


def _decide_near_deadline(
    schedule: Schedule, spot: Estimate | None, steady: Estimate, current: CapacityClass | None
) -> CapacityDecision:
    """Steady hardware for the rest, unless it is taken and spot is at work."""
    if current == "spot" and spot is not None and spot.available and not steady.available:
        return _use_spot(schedule, spot, "on-demand and reserved hardware is taken")
    if (late := _late_message(schedule, steady)) is not None:
        return CapacityDecision(
            "steady", BatchRunning.DEADLINE_AT_RISK, f"{late}; only a later one helps"
        )
    return CapacityDecision(
        "steady",
        BatchRunning.DEADLINE_NEAR,
        f"spec.deadline: {_time_message(schedule, steady)}; no spot for the rest",
    )


def _decide_with_slack(
    schedule: Schedule, spot: Estimate | None, steady: Estimate, current: CapacityClass | None
) -> CapacityDecision:
    """On spot while it is to be had, or above the line; else on steady hardware."""
    spot_unavailable = spot is None or not spot.available
    if current == "steady":
        slack = schedule.time_left - steady.time_needed_from_start(schedule.remaining_rows)
        well_ahead = (
            schedule.lead >= RETURN_TO_SPOT_LEAD
            and slack >= RETURN_TO_SPOT_LEAD * schedule.duration
        )
        return_to_spot = not spot_unavailable and (well_ahead or not steady.available)
        return _use_spot(schedule, spot, "") if return_to_spot else _use_steady(schedule)
    if spot_unavailable and schedule.lead < 0 and (steady.available or spot is None):
        return _use_steady(schedule)
    return _use_spot(schedule, spot, "")


def _use_steady(schedule: Schedule) -> CapacityDecision:
    """Steady hardware, until the batch is clearly ahead."""
    behind = schedule.lead < 0
    explanation = (
        "spot was not to be had, so on-demand or reserved hardware is used; " if behind else ""
    )
    return CapacityDecision(
        "steady",
        BatchRunning.BEHIND_SCHEDULE if behind else BatchRunning.NOT_YET_AHEAD,
        f"spec.deadline: {_progress_message(schedule)}; {explanation}the way back to spot opens "
        "when it is to be had and "
        f"the batch is {RETURN_TO_SPOT_LEAD:.0%} of the time ahead",
    )


def _steady_only(schedule: Schedule, steady: Estimate | None) -> CapacityDecision:
    if steady is not None and (late := _late_message(schedule, steady)) is not None:
        return CapacityDecision(
            "steady", BatchRunning.DEADLINE_AT_RISK, f"{late}; only a later one helps"
        )
    capacity_class: CapacityClass | None = None if steady is None else "steady"
    return CapacityDecision(
        capacity_class,
        BatchRunning.SPOT_DISABLED,
        f"spec.spot.policy is never; {_progress_message(schedule)}",
    )


def _use_spot(schedule: Schedule, spot: Estimate | None, constraint: str) -> CapacityDecision:
    """On spot, or waiting for it; `alone` says why nothing else would do."""
    late = None if spot is None or not constraint else _late_message(schedule, spot)
    message = (
        f"{late}; {constraint}"
        if late
        else f"spec.spot.policy allows spot; {_progress_message(schedule)}"
    )
    if spot is None or not spot.available:
        message = f"{message}; no spot hardware is free, so it is waited for"
        return CapacityDecision(
            None if spot is None else "spot", BatchRunning.WAITING_FOR_SPOT, message
        )
    return CapacityDecision(
        "spot", BatchRunning.DEADLINE_AT_RISK if late else BatchRunning.ON_SPOT, message
    )


def _late_message(schedule: Schedule, estimate: Estimate) -> str | None:
    """What tells that a lane will miss the deadline; None when it will not."""
    if estimate.time_needed(schedule.remaining_rows) - SAFETY_MARGIN <= schedule.time_left:
        return None
    return f"spec.deadline: it will be missed: {_time_message(schedule, estimate)}"


def _time_message(schedule: Schedule, estimate: Estimate) -> str:
    need, remaining = (
        _minutes(span)
        for span in (estimate.time_needed(schedule.remaining_rows), schedule.time_left)
    )
    return (
        f"{schedule.remaining_rows} rows need {need} min without interruption, {remaining} min are "
        "left until "
        f"{schedule.end:%Y-%m-%dT%H:%MZ}"
    )


def _progress_message(schedule: Schedule) -> str:
    return (
        f"{schedule.done} of {schedule.rows} rows are done ({schedule.done_share:.0%}) and "
        f"{schedule.elapsed_share:.0%} of the time has passed"
    )


def _minutes(span: timedelta) -> int:
    return max(0, round(span.total_seconds() / 60))
