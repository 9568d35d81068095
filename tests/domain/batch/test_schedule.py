"""Uniform progress: cheap while there is time, and never late where on-demand hardware is not."""

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
from tests.properties import examples

DAY = timedelta(days=1).total_seconds()


def a_schedule(passed: float = 0.5, share: float = 0.5, seconds: float = DAY) -> Schedule:
    """A thousand rows in a day; so much of the time has passed, so much is done."""
    return Schedule(
        start=NOW, end=at(seconds), at=at(passed * seconds), rows=1000, done=round(share * 1000)
    )


def an_estimate(
    rate: float = 1.0, start: float = 180, begun: float = 0, *, free: bool = True
) -> Estimate:
    """A thousand rows in a quarter of an hour, after three minutes."""
    spans = {"start": timedelta(seconds=start), "start_elapsed": timedelta(seconds=begun)}
    return Estimate(rate=rate, **spans, available=free)


FREE, FULL = an_estimate(), an_estimate(free=False)


def choose(
    schedule: Schedule,
    policy: SpotPolicy = "Preferred",
    *,
    spot: Estimate | None = FREE,
    non_spot: Estimate | None = FREE,
    current: CapacityClass | None = None,
) -> CapacityDecision:
    return choose_capacity(policy, schedule, spot=spot, non_spot=non_spot, current=current)


@pytest.mark.parametrize(
    ("policy", "schedule", "estimates", "current", "capacity", "reason"),
    [
        # Spot is available, and there is time.
        ("Preferred", a_schedule(), (FREE, FREE), None, "spot", "OnSpot"),
        ("Preferred", a_schedule(0.9, 0), (FREE, FREE), "spot", "spot", "OnSpot"),
        # It is not: wait above the line, leave below it.
        ("Preferred", a_schedule(0.5, 0.6), (FULL, FREE), "spot", "spot", "WaitingForSpot"),
        ("Preferred", a_schedule(0.5, 0.6), (None, FREE), None, None, "WaitingForSpot"),
        ("Preferred", a_schedule(0.5, 0.4), (FULL, FREE), "spot", "non-spot", "BehindSchedule"),
        ("Preferred", a_schedule(0.5, 0.4), (None, FREE), None, "non-spot", "BehindSchedule"),
        ("Preferred", a_schedule(0.5, 0.4), (FULL, FULL), "spot", "spot", "WaitingForSpot"),
        # On on-demand or reserved hardware until clearly ahead.
        ("Preferred", a_schedule(0.5, 0.4), (FREE, FREE), "non-spot", "non-spot", "BehindSchedule"),
        ("Preferred", a_schedule(0.5, 0.55), (FREE, FREE), "non-spot", "non-spot", "NotYetAhead"),
        ("Preferred", a_schedule(0.5, 0.61), (FREE, FREE), "non-spot", "spot", "OnSpot"),
        ("Preferred", a_schedule(0.5, 0.61), (FULL, FREE), "non-spot", "non-spot", "NotYetAhead"),
        ("Preferred", a_schedule(0.5, 0.4), (FREE, FULL), "non-spot", "spot", "OnSpot"),
        # The rest takes all the time that is left.
        ("Preferred", a_schedule(0.9905, 0.4), (FREE, FREE), "spot", "non-spot", "DeadlineNear"),
        ("Preferred", a_schedule(0.9905, 0.4), (FREE, FREE), None, "non-spot", "DeadlineNear"),
        ("Preferred", a_schedule(0.9905, 0.4), (FREE, FULL), "spot", "spot", "OnSpot"),
        ("Preferred", a_schedule(0.99, 0), (FREE, FULL), "spot", "spot", "DeadlineAtRisk"),
        ("Preferred", a_schedule(0.9905, 0.4), (FULL, FULL), "spot", "non-spot", "DeadlineNear"),
        ("Preferred", a_schedule(0.999, 0), (FREE, FREE), "spot", "non-spot", "DeadlineAtRisk"),
        # Only one capacity class is available, or allowed.
        ("Preferred", a_schedule(0.999, 0), (FREE, None), "spot", "spot", "DeadlineAtRisk"),
        ("Preferred", a_schedule(), (None, None), None, None, "WaitingForSpot"),
        ("Only", a_schedule(), (FREE, FREE), None, "spot", "OnSpot"),
        ("Only", a_schedule(0.5, 0), (FULL, FREE), "spot", "spot", "WaitingForSpot"),
        ("Only", a_schedule(0.999, 0), (FREE, FREE), "spot", "spot", "DeadlineAtRisk"),
        ("Only", a_schedule(), (None, FREE), None, None, "WaitingForSpot"),
        ("Never", a_schedule(), (FREE, FREE), None, "non-spot", "SpotDisabled"),
        ("Never", a_schedule(0.999, 0), (FREE, FREE), None, "non-spot", "DeadlineAtRisk"),
        ("Never", a_schedule(), (FREE, None), None, None, "SpotDisabled"),
    ],
)  # fmt: skip
def test_the_capacity_class_follows_the_schedule(
    policy: SpotPolicy,
    schedule: Schedule,
    estimates: tuple[Estimate | None, Estimate | None],
    current: CapacityClass | None,
    capacity: CapacityClass | None,
    reason: str,
) -> None:
    capacity_decision = choose(
        schedule, policy, spot=estimates[0], non_spot=estimates[1], current=current
    )
    assert (capacity_decision.capacity_class, capacity_decision.reason) == (capacity, reason)


@pytest.mark.parametrize(
    ("got", "says"),
    [
        (choose(a_schedule()), ("spec.spot.policy", "500 of 1000 rows", "50%")),
        (choose(a_schedule(0.5, 0.4), spot=FULL), ("spec.deadline", "400 of 1000", "10%")),
        (choose(a_schedule(0.9905, 0.4)), ("spec.deadline", "600 rows", "14 min left")),
        (choose(a_schedule(0.999, 0)), ("spec.deadline", "will be missed", "1000 rows", "later")),
        (choose(a_schedule(0.999, 0), "Only"), ("spec.deadline", "spec.spot.policy is Only")),
        (choose(a_schedule(), "Never"), ("spec.spot.policy is Never", "50%")),
    ],
)
def test_every_capacity_decision_says_its_numbers(
    got: CapacityDecision, says: tuple[str, ...]
) -> None:
    for part in says:
        assert part in got.message


def test_a_batch_that_would_restart_too_late_stays() -> None:
    warm = an_estimate(start=DAY / 4, begun=DAY / 4)
    assert choose(a_schedule(0.6, 0.9), non_spot=warm, current="non-spot").capacity_class == "spot"
    assert (
        choose(a_schedule(0.7, 0.9), non_spot=warm, current="non-spot").capacity_class == "non-spot"
    )


def test_a_batch_that_returns_to_spot_has_time_to_come_back() -> None:
    slow = an_estimate(rate=1000 / (1.05 * DAY))
    assert (
        choose(a_schedule(0.1, 0.21), non_spot=slow, current="non-spot").capacity_class
        == "non-spot"
    )
    assert choose(a_schedule(0.1, 0.21), non_spot=FREE, current="non-spot").capacity_class == "spot"


@given(
    passed=st.floats(0, 1),
    share=st.floats(0, 1),
    policy=st.sampled_from(["Only", "Never"]),
    current=st.sampled_from([None, "spot", "non-spot"]),
    free=st.tuples(st.booleans(), st.booleans()),
)
def test_a_policy_is_never_broken(
    passed: float,
    share: float,
    policy: SpotPolicy,
    current: CapacityClass | None,
    free: tuple[bool, bool],
) -> None:
    estimates = {"spot": an_estimate(free=free[0]), "non_spot": an_estimate(free=free[1])}
    capacity_decision = choose(a_schedule(passed, share), policy, **estimates, current=current)
    assert capacity_decision.capacity_class == ("spot" if policy == "Only" else "non-spot")


@dataclass
class BatchOnSpot:
    """A batch on hardware that comes and goes, followed from decision to decision."""

    rows: int
    window: float
    rate: float
    start: float
    lost: float
    """Seconds of work that are in flight and done again when an attempt ends."""
    done: float = 0.0
    used: CapacityClass | None = None
    warm: float = 0.0
    """When the engine is up."""
    time: float = 0.0

    def advance(self, seconds: float, *, spot: bool) -> None:
        if self.used == "spot" and not spot:
            self._lose_work()
            self.warm = self.time + self.start
        begun = self.start - max(0.0, self.warm - self.time)
        capacity_decision = choose_capacity(
            "Preferred",
            Schedule(
                start=NOW,
                end=at(self.window),
                at=at(self.time),
                rows=self.rows,
                done=int(self.done),
            ),
            spot=an_estimate(self.rate, self.start, begun if self.used == "spot" else 0, free=spot),
            non_spot=an_estimate(self.rate, self.start, begun if self.used == "non-spot" else 0),
            current=self.used,
        )
        if capacity_decision.capacity_class != self.used:
            self._lose_work()
            self.used, self.warm = capacity_decision.capacity_class, self.time + self.start
        at_work = self.used == "non-spot" or (self.used == "spot" and spot)
        if at_work:
            self.done += self.rate * max(0.0, self.time + seconds - max(self.time, self.warm))
        self.time += seconds

    def _lose_work(self) -> None:
        if self.time > self.warm:
            self.done = max(0.0, self.done - self.rate * self.lost)

    @property
    def finished(self) -> float:
        """When the last row was done, exactly."""
        return self.time - (self.done - self.rows) / self.rate


@settings(max_examples=examples(200))
@given(
    rows=st.integers(1, 3000),
    rate=st.floats(0.5, 50),
    start=st.floats(10, 600),
    slack=st.floats(1.0, 6.0),
    seconds=st.floats(5, 30),
    spells=st.lists(st.tuples(st.booleans(), st.integers(1, 60)), min_size=1, max_size=12),
)
def test_a_deadline_that_on_demand_hardware_alone_would_make_is_made_whatever_spot_does(
    rows: int,
    rate: float,
    start: float,
    slack: float,
    seconds: float,
    spells: list[tuple[bool, int]],
) -> None:
    alone = rows / rate + start
    run = BatchOnSpot(rows=rows, window=alone * slack, rate=rate, start=start, lost=20)
    weather = cycle([spot for spot, turns in spells for _ in range(turns)])
    while run.done < run.rows - 1e-6:
        assert run.time < run.window, "it is late and not even done"
        run.advance(seconds, spot=next(weather))
    assert run.finished <= run.window + 1e-6


def test_with_spot_always_there_nothing_else_is_bought() -> None:
    run = BatchOnSpot(rows=3600, window=2 * 3600, rate=1.0, start=180, lost=20)
    classes = set()
    while run.done < run.rows:
        run.advance(5, spot=True)
        classes.add(run.used)
    assert classes == {"spot"}


def test_the_line_is_kept_by_as_little_on_demand_hardware_as_needed() -> None:
    run = BatchOnSpot(rows=3600, window=4 * 3600, rate=1.0, start=180, lost=20)
    classes = []
    while run.done < run.rows:
        run.advance(5, spot=False)
        classes.append(run.used)
    assert run.finished <= run.window
    assert [capacity for capacity, _ in groupby(classes)] == ["spot", "non-spot"]
    assert classes.count("non-spot") * 5 <= 3600 + 180 + 5


def test_no_rows_are_done_at_once() -> None:
    empty = replace(a_schedule(0.2, 0), rows=0, done=0)
    assert (empty.done_share, choose(empty).capacity_class) == (1.0, "spot")
