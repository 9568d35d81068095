"""A certificate is followed by the next one long before its end, and never unannounced."""

from datetime import datetime, timedelta

import pytest

from tessera.domain.serving_certificate import CertificateAction, CertificatePolicy, next_action
from tests.builders import NOW

TERMS = CertificatePolicy(
    host="a.b.svc", lifetime=timedelta(days=90), trust_delay=timedelta(minutes=1)
)


def days(count: float | None) -> datetime | None:
    return None if count is None else NOW + timedelta(days=count)


@pytest.mark.parametrize(
    ("serving", "coming", "known_for", "step"),
    [
        # end of the one that serves, end of the one that waits, seconds since callers trust both
        (None, None, 0, CertificateAction.ISSUE),
        (-1, None, 9999, CertificateAction.ISSUE),
        (-1, -1, 9999, CertificateAction.ISSUE),
        (-1, 90, 0, CertificateAction.PROMOTE),
        (None, 90, 0, CertificateAction.PROMOTE),
        (60, None, 9999, CertificateAction.KEEP),
        (90, None, 9999, CertificateAction.KEEP),
        (30, None, 9999, CertificateAction.PREPARE),
        (30, -1, 9999, CertificateAction.PREPARE),
        (30, 90, 59, CertificateAction.KEEP),
        (30, 90, 60, CertificateAction.PROMOTE),
        (3650, None, 9999, CertificateAction.PREPARE),
    ],
)
def test_the_next_step_follows_from_the_ends_and_from_who_knows(
    serving: float | None, coming: float | None, known_for: float, step: CertificateAction
) -> None:
    action = next_action(
        days(serving),
        days(coming),
        at=NOW,
        trusted_for=timedelta(seconds=known_for),
        policy=TERMS,
    )
    assert action is step
