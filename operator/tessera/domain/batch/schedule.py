"""The capacity class of a batch, by the uniform-progress policy: cheap, and in time.

The schedule is the straight line from no rows at the start to all rows at the deadline. The batch
runs on spot while spot is available. Without spot it waits while it is ahead of schedule, and uses
on-demand or reserved hardware when it is behind. When the time left just suffices on that hardware,
it stays there to the end: a batch that could meet its deadline there from the beginning still does.
It returns to spot only when it is clearly ahead, since every move costs a start.
"""

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Literal

from tessera.api.batch_inference import SpotPolicy
from tessera.api.batch_reasons import BatchRunning
from tessera.api.text import counted

CapacityClass = Literal["spot", "non-spot"]

# Lead, as a share of the whole time, from which a batch may return to spot.
RETURN_TO_SPOT_LEAD = 0.1
# Allows for the reconcile that decides and for rows in flight that are sent again.
SAFETY_MARGIN = timedelta(seconds=60)
_MAX_SECONDS = 1e9


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """Progress of a batch in rows and in time."""

    start: datetime
    end: datetime
    at: datetime
    rows: int
    done: int

    @property
    def remaining_rows(self) -> int:
        return max(0, self.rows - self.done)

    def is_met_by(self, estimate: "Estimate") -> bool:
        """Return whether hardware meets the deadline, from now on and without interruption."""
        needed = estimate.time_needed_with_margin(self.remaining_rows) - SAFETY_MARGIN
        return needed <= self.time_left

    @property
    def time_left(self) -> timedelta:
        return self.end - self.at

    @property
    def duration(self) -> timedelta:
        return self.end - self.start

    @property
    def done_share(self) -> float:
        """Done rows as a share of all rows."""
        return self.done / self.rows if self.rows else 1.0

    @property
    def elapsed_share(self) -> float:
        """Elapsed time as a share of the time from start to deadline."""
        return min(1.0, max(0.0, (self.at - self.start) / self.duration))

    @property
    def lead(self) -> float:
        """Share of rows done ahead of schedule; negative when behind."""
        return self.done_share - self.elapsed_share


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """Expected speed, start time and availability of some hardware."""

    rate: float
    """Rows per second."""
    start: timedelta
    """From the decision for an attempt to its first rows."""
    start_elapsed: timedelta = timedelta()
    """Elapsed part of `start` for the current attempt."""
    available: bool = True
    """Capacity is expected to be available."""

    def time_needed_with_margin(self, rows: int) -> timedelta:
        """Return the time for so many rows from now on, without interruption."""
        return self.time_needed_from_start_with_margin(rows) - min(self.start_elapsed, self.start)

    def time_needed_from_start_with_margin(self, rows: int) -> timedelta:
        """Return the time for so many rows with a new attempt, without interruption."""
        return self.start + timedelta(seconds=min(rows / self.rate, _MAX_SECONDS)) + SAFETY_MARGIN


@dataclass(frozen=True, slots=True)
class CapacityDecision:
    """The capacity class to use, and why; None to wait."""

    capacity_class: CapacityClass | None
    reason: BatchRunning
    message: str


def choose_capacity(
    policy: SpotPolicy,
    schedule: Schedule,
    *,
    spot: Estimate | None,
    non_spot: Estimate | None,
    current: CapacityClass | None,
) -> CapacityDecision:
    """Choose the capacity class for now.

    An estimate is None when no hardware of its class fits; `current` is the class of the last
    attempt.
    """
    if policy == "Never":
        return _non_spot_only(schedule, non_spot)
    if policy == "Only":
        return _use_spot(
            schedule, spot, "spec.spot.policy is Only; Preferred allows other capacity"
        )
    if non_spot is None:
        return _use_spot(schedule, spot, "no on-demand or reserved hardware fits")
    if schedule.time_left <= non_spot.time_needed_with_margin(schedule.remaining_rows):
        return _decide_near_deadline(schedule, spot, non_spot, current)
    return _decide_with_slack(schedule, spot, non_spot, current)


def _decide_near_deadline(
    schedule: Schedule, spot: Estimate | None, non_spot: Estimate, current: CapacityClass | None
) -> CapacityDecision:
    # An attempt that runs on spot is worth more than hardware without room.
    if current == "spot" and spot is not None and spot.available and not non_spot.available:
        return _use_spot(schedule, spot, "on-demand and reserved hardware has no free capacity")
    if (late := _late_message(schedule, non_spot)) is not None:
        return CapacityDecision(
            "non-spot", BatchRunning.DEADLINE_AT_RISK, f"{late}; set a later deadline"
        )
    message = f"spec.deadline: {_time_message(schedule, non_spot)}; spot is not used for the rest"
    return CapacityDecision("non-spot", BatchRunning.DEADLINE_NEAR, message)


def _decide_with_slack(
    schedule: Schedule, spot: Estimate | None, non_spot: Estimate, current: CapacityClass | None
) -> CapacityDecision:
    spot_unavailable = spot is None or not spot.available
    if current == "non-spot":
        slack = schedule.time_left - non_spot.time_needed_from_start_with_margin(
            schedule.remaining_rows
        )
        well_ahead = (
            schedule.lead >= RETURN_TO_SPOT_LEAD
            and slack >= RETURN_TO_SPOT_LEAD * schedule.duration
        )
        return_to_spot = not spot_unavailable and (well_ahead or not non_spot.available)
        return _use_spot(schedule, spot, "") if return_to_spot else _use_non_spot(schedule)
    if spot_unavailable and schedule.lead < 0 and (non_spot.available or spot is None):
        return _use_non_spot(schedule)
    return _use_spot(schedule, spot, "")


def _use_non_spot(schedule: Schedule) -> CapacityDecision:
    behind = schedule.lead < 0
    explanation = (
        "spot was unavailable, so on-demand or reserved hardware is used; " if behind else ""
    )
    return CapacityDecision(
        "non-spot",
        BatchRunning.BEHIND_SCHEDULE if behind else BatchRunning.NOT_YET_AHEAD,
        f"spec.deadline: {_progress_message(schedule)}; {explanation}returns "
        f"to spot when it is available and the lead is {RETURN_TO_SPOT_LEAD:.0%} of the time",
    )


def _non_spot_only(schedule: Schedule, non_spot: Estimate | None) -> CapacityDecision:
    if non_spot is not None and (late := _late_message(schedule, non_spot)) is not None:
        return CapacityDecision(
            "non-spot", BatchRunning.DEADLINE_AT_RISK, f"{late}; set a later deadline"
        )
    capacity_class: CapacityClass | None = None if non_spot is None else "non-spot"
    message = f"spec.spot.policy is Never; {_progress_message(schedule)}"
    return CapacityDecision(capacity_class, BatchRunning.SPOT_DISABLED, message)


def _use_spot(schedule: Schedule, spot: Estimate | None, constraint: str) -> CapacityDecision:
    """Use spot or wait for it; `constraint` says why no other capacity is an option."""
    late = None if spot is None or not constraint else _late_message(schedule, spot)
    message = (
        f"{late}; {constraint}"
        if late
        else f"spec.spot.policy allows spot; {_progress_message(schedule)}"
    )
    if spot is None or not spot.available:
        message = f"{message}; waiting for spot capacity"
        return CapacityDecision(
            None if spot is None else "spot", BatchRunning.WAITING_FOR_SPOT, message
        )
    reason = BatchRunning.DEADLINE_AT_RISK if late else BatchRunning.ON_SPOT
    return CapacityDecision("spot", reason, message)


def _late_message(schedule: Schedule, estimate: Estimate) -> str | None:
    """Return the message that an estimate misses the deadline; None when it meets it."""
    if schedule.is_met_by(estimate):
        return None
    return f"spec.deadline will be missed: {_time_message(schedule, estimate)}"


def _time_message(schedule: Schedule, estimate: Estimate) -> str:
    need, remaining = (
        max(0, round(span.total_seconds() / 60))
        for span in (estimate.time_needed_with_margin(schedule.remaining_rows), schedule.time_left)
    )
    return (
        f"{counted(schedule.remaining_rows, 'row')} left, {need} min needed without interruption, "
        f"{remaining} min left until {schedule.end:%Y-%m-%dT%H:%MZ}"
    )


def _progress_message(schedule: Schedule) -> str:
    return (
        f"{schedule.done} of {counted(schedule.rows, 'row')} done ({schedule.done_share:.0%}) in "
        f"{schedule.elapsed_share:.0%} of the time"
    )
