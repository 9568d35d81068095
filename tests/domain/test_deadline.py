"""Uniform progress: cheap while there is time, and never late where steady hardware is not."""

from dataclasses import dataclass, replace
from datetime import timedelta
from itertools import cycle, groupby

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tessera.api.batch_inference import SpotPolicy
from tessera.domain.batch.schedule import (
    CapacityClass,
    CapacityDecision,
    Estimate,
    Schedule,
    choose_capacity,
)
from tests.builders import NOW, at

DAY = timedelta(days=1).total_seconds()


def a_course(passed: float = 0.5, share: float = 0.5, seconds: float = DAY) -> Schedule:
    """A thousand rows in a day; so much of the time has passed, so much is done."""
    return Schedule(
        start=NOW, end=at(seconds), at=at(passed * seconds), rows=1000, done=round(share * 1000)
    )


def a_lane(
    rate: float = 1.0, start: float = 180, begun: float = 0, *, free: bool = True
) -> Estimate:
    """A thousand rows in a quarter of an hour, after three minutes."""
    spans = {"start": timedelta(seconds=start), "start_elapsed": timedelta(seconds=begun)}
    return Estimate(rate=rate, **spans, available=free)


FREE, FULL = a_lane(), a_lane(free=False)


def lot(
    course: Schedule,
    policy: SpotPolicy = "preferred",
    *,
    spot: Estimate | None = FREE,
    steady: Estimate | None = FREE,
    current: CapacityClass | None = None,
) -> CapacityDecision:
    return choose_capacity(policy, course, spot=spot, steady=steady, current=current)


@pytest.mark.parametrize(
    ("policy", "course", "lanes", "current", "way", "reason"),
    [
        # Spot is to be had, and there is time.
        ("preferred", a_course(), (FREE, FREE), None, "spot", "OnSpot"),
        ("preferred", a_course(0.9, 0), (FREE, FREE), "spot", "spot", "OnSpot"),
        # It is not: wait above the line, leave below it.
        ("preferred", a_course(0.5, 0.6), (FULL, FREE), "spot", "spot", "WaitingForSpot"),
        ("preferred", a_course(0.5, 0.6), (None, FREE), None, None, "WaitingForSpot"),
        ("preferred", a_course(0.5, 0.4), (FULL, FREE), "spot", "steady", "BehindSchedule"),
        ("preferred", a_course(0.5, 0.4), (None, FREE), None, "steady", "BehindSchedule"),
        ("preferred", a_course(0.5, 0.4), (FULL, FULL), "spot", "spot", "WaitingForSpot"),
        # On steady hardware until clearly ahead.
        ("preferred", a_course(0.5, 0.4), (FREE, FREE), "steady", "steady", "BehindSchedule"),
        ("preferred", a_course(0.5, 0.55), (FREE, FREE), "steady", "steady", "NotYetAhead"),
        ("preferred", a_course(0.5, 0.61), (FREE, FREE), "steady", "spot", "OnSpot"),
        ("preferred", a_course(0.5, 0.61), (FULL, FREE), "steady", "steady", "NotYetAhead"),
        ("preferred", a_course(0.5, 0.4), (FREE, FULL), "steady", "spot", "OnSpot"),
        # The rest takes all the time that is left.
        ("preferred", a_course(0.9905, 0.4), (FREE, FREE), "spot", "steady", "DeadlineNear"),
        ("preferred", a_course(0.9905, 0.4), (FREE, FREE), None, "steady", "DeadlineNear"),
        ("preferred", a_course(0.9905, 0.4), (FREE, FULL), "spot", "spot", "OnSpot"),
        ("preferred", a_course(0.99, 0), (FREE, FULL), "spot", "spot", "DeadlineAtRisk"),
        ("preferred", a_course(0.9905, 0.4), (FULL, FULL), "spot", "steady", "DeadlineNear"),
        ("preferred", a_course(0.999, 0), (FREE, FREE), "spot", "steady", "DeadlineAtRisk"),
        # Only one way is there, or allowed.
        ("preferred", a_course(0.999, 0), (FREE, None), "spot", "spot", "DeadlineAtRisk"),
        ("preferred", a_course(), (None, None), None, None, "WaitingForSpot"),
        ("only", a_course(), (FREE, FREE), None, "spot", "OnSpot"),
        ("only", a_course(0.5, 0), (FULL, FREE), "spot", "spot", "WaitingForSpot"),
        ("only", a_course(0.999, 0), (FREE, FREE), "spot", "spot", "DeadlineAtRisk"),
        ("only", a_course(), (None, FREE), None, None, "WaitingForSpot"),
        ("never", a_course(), (FREE, FREE), None, "steady", "SpotExcluded"),
        ("never", a_course(0.999, 0), (FREE, FREE), None, "steady", "DeadlineAtRisk"),
        ("never", a_course(), (FREE, None), None, None, "SpotExcluded"),
    ],
)  # fmt: skip
def test_the_way_follows_the_line(
    policy: SpotPolicy,
    course: Schedule,
    lanes: tuple[Estimate | None, Estimate | None],
    current: CapacityClass | None,
    way: CapacityClass | None,
    reason: str,
) -> None:
    got = lot(course, policy, spot=lanes[0], steady=lanes[1], current=current)
    assert (got.capacity_class, got.reason) == (way, reason)


@pytest.mark.parametrize(
    ("got", "says"),
    [
        (lot(a_course()), ("spec.spot.policy", "500 of 1000 rows", "50%")),
        (lot(a_course(0.5, 0.4), spot=FULL), ("spec.deadline", "400 of 1000", "10%")),
        (lot(a_course(0.9905, 0.4)), ("spec.deadline", "600 rows need 14 min", "14 min are left")),
        (lot(a_course(0.999, 0)), ("spec.deadline", "will be missed", "1000 rows", "later")),
        (lot(a_course(0.999, 0), "only"), ("spec.deadline", "spec.spot.policy is only")),
        (lot(a_course(), "never"), ("spec.spot.policy is never", "50%")),
    ],
)
def test_every_lot_says_its_numbers(got: CapacityDecision, says: tuple[str, ...]) -> None:
    for part in says:
        assert part in got.message


def test_who_would_have_to_start_anew_too_late_stays() -> None:
    warm = a_lane(start=DAY / 4, begun=DAY / 4)
    assert lot(a_course(0.6, 0.9), steady=warm, current="steady").capacity_class == "spot"
    assert lot(a_course(0.7, 0.9), steady=warm, current="steady").capacity_class == "steady"


def test_a_batch_that_returns_to_spot_has_time_to_come_back() -> None:
    slow = a_lane(rate=1000 / (1.05 * DAY))
    assert lot(a_course(0.1, 0.21), steady=slow, current="steady").capacity_class == "steady"
    assert lot(a_course(0.1, 0.21), steady=FREE, current="steady").capacity_class == "spot"


@given(
    passed=st.floats(0, 1),
    share=st.floats(0, 1),
    policy=st.sampled_from(["only", "never"]),
    current=st.sampled_from([None, "spot", "steady"]),
    free=st.tuples(st.booleans(), st.booleans()),
)
def test_a_policy_is_never_broken(
    passed: float,
    share: float,
    policy: SpotPolicy,
    current: CapacityClass | None,
    free: tuple[bool, bool],
) -> None:
    lanes = {"spot": a_lane(free=free[0]), "steady": a_lane(free=free[1])}
    got = lot(a_course(passed, share), policy, **lanes, current=current)
    assert got.capacity_class == ("spot" if policy == "only" else "steady")


@dataclass
class Run:
    """A batch on hardware that comes and goes, followed from decision to decision."""

    rows: int
    window: float
    rate: float
    start: float
    lost: float
    """Seconds of work that are in flight and done again when an attempt ends."""
    done: float = 0.0
    way: CapacityClass | None = None
    warm: float = 0.0
    """When the engine is up."""
    time: float = 0.0

    def turn(self, seconds: float, *, spot: bool) -> None:
        if self.way == "spot" and not spot:
            self._fall()
            self.warm = self.time + self.start
        begun = self.start - max(0.0, self.warm - self.time)
        got = choose_capacity(
            "preferred",
            Schedule(
                start=NOW,
                end=at(self.window),
                at=at(self.time),
                rows=self.rows,
                done=int(self.done),
            ),
            spot=a_lane(self.rate, self.start, begun if self.way == "spot" else 0, free=spot),
            steady=a_lane(self.rate, self.start, begun if self.way == "steady" else 0),
            current=self.way,
        )
        if got.capacity_class != self.way:
            self._fall()
            self.way, self.warm = got.capacity_class, self.time + self.start
        at_work = self.way == "steady" or (self.way == "spot" and spot)
        if at_work:
            self.done += self.rate * max(0.0, self.time + seconds - max(self.time, self.warm))
        self.time += seconds

    def _fall(self) -> None:
        if self.time > self.warm:
            self.done = max(0.0, self.done - self.rate * self.lost)

    @property
    def finished(self) -> float:
        """When the last row was done, exactly."""
        return self.time - (self.done - self.rows) / self.rate


@settings(max_examples=200)
@given(
    rows=st.integers(1, 3000),
    rate=st.floats(0.5, 50),
    start=st.floats(10, 600),
    slack=st.floats(1.0, 6.0),
    seconds=st.floats(5, 30),
    spells=st.lists(st.tuples(st.booleans(), st.integers(1, 60)), min_size=1, max_size=12),
)
def test_a_deadline_that_steady_hardware_alone_would_make_is_made_whatever_spot_does(
    rows: int,
    rate: float,
    start: float,
    slack: float,
    seconds: float,
    spells: list[tuple[bool, int]],
) -> None:
    alone = rows / rate + start
    run = Run(rows=rows, window=alone * slack, rate=rate, start=start, lost=20)
    weather = cycle([spot for spot, turns in spells for _ in range(turns)])
    while run.done < run.rows - 1e-6:
        assert run.time < run.window, "it is late and not even done"
        run.turn(seconds, spot=next(weather))
    assert run.finished <= run.window + 1e-6


def test_with_spot_always_there_nothing_else_is_bought() -> None:
    run = Run(rows=3600, window=2 * 3600, rate=1.0, start=180, lost=20)
    ways = set()
    while run.done < run.rows:
        run.turn(5, spot=True)
        ways.add(run.way)
    assert ways == {"spot"}


def test_the_line_is_kept_by_as_little_steady_hardware_as_needed() -> None:
    run = Run(rows=3600, window=4 * 3600, rate=1.0, start=180, lost=20)
    ways = []
    while run.done < run.rows:
        run.turn(5, spot=False)
        ways.append(run.way)
    assert run.finished <= run.window
    assert [way for way, _ in groupby(ways)] == ["spot", "steady"]
    assert ways.count("steady") * 5 <= 3600 + 180 + 5


def test_no_rows_are_done_at_once() -> None:
    empty = replace(a_course(0.2, 0), rows=0, done=0)
    assert (empty.done_share, lot(empty).capacity_class) == (1.0, "spot")
