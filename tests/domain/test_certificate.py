"""A certificate is followed by the next one long before its end, and never unannounced."""

from datetime import datetime, timedelta

import pytest

from tessera.domain.certificate import Step, Terms, next_step
from tests.builders import NOW

TERMS = Terms(host="a.b.svc", life=timedelta(days=90), settle=timedelta(minutes=1))


def days(count: float | None) -> datetime | None:
    return None if count is None else NOW + timedelta(days=count)


@pytest.mark.parametrize(
    ("serving", "coming", "known_for", "step"),
    [
        # end of the one that serves, end of the one that waits, seconds since callers trust both
        (None, None, 0, Step.ISSUE),
        (-1, None, 9999, Step.ISSUE),
        (-1, -1, 9999, Step.ISSUE),
        (-1, 90, 0, Step.PROMOTE),
        (None, 90, 0, Step.PROMOTE),
        (60, None, 9999, Step.KEEP),
        (90, None, 9999, Step.KEEP),
        (30, None, 9999, Step.PREPARE),
        (30, -1, 9999, Step.PREPARE),
        (30, 90, 59, Step.KEEP),
        (30, 90, 60, Step.PROMOTE),
        (3650, None, 9999, Step.PREPARE),
    ],
)
def test_the_next_step_follows_from_the_ends_and_from_who_knows(
    serving: float | None, coming: float | None, known_for: float, step: Step
) -> None:
    got = next_step(
        days(serving),
        days(coming),
        at=NOW,
        known_for=timedelta(seconds=known_for),
        terms=TERMS,
    )
    assert got is step
