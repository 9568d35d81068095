"""Sums of usage records: what they keep exact, and what they tell apart."""

from typing import Any

import pytest

from tessera.domain.gateway.requests import Phase
from tessera.domain.usage.sums import UsageSums
from tests.gateway.store.builders import SECOND, START_NS, a_record

MINUTE = 60 * SECOND
MINUTE_NS = START_NS // MINUTE * MINUTE


def test_tokens_times_and_requests_are_added() -> None:
    sums = UsageSums(MINUTE)
    sums.add(a_record(record_id="first", started_at_ns=MINUTE_NS + 9, request_id="x", tags="a=b"))
    sums.add(a_record(requests=41, started_at_ns=MINUTE_NS + 5, replica="chat-1"))

    (total,) = sums

    assert total == a_record(
        record_id="first",
        request_id="",
        replica=None,
        ttft_ns=None,
        started_at_ns=MINUTE_NS + 5,
        requests=42,
        input_tokens=200,
        cached_tokens=80,
        output_tokens=40,
        reasoning_tokens=10,
        queue_ns=2_000_000,
        total_ns=1_800_000_000,
    )


@pytest.mark.parametrize(
    "difference",
    [
        *({name: "another"} for name in ("tenant", "team", "user", "key", "service", "model")),
        *({name: "another"} for name in ("variant", "price_version", "route", "reason")),
        {"phase": Phase.ABORTED},
        {"status": 499},
        {"stream": False},
        {"estimated": True},
        {"started_at_ns": MINUTE_NS + MINUTE},
    ],
    ids=lambda difference: next(iter(difference)),
)
def test_what_a_bill_or_a_report_tells_apart_is_not_added(difference: dict[str, Any]) -> None:
    sums = UsageSums(MINUTE)
    sums.add(a_record(started_at_ns=MINUTE_NS))
    sums.add(a_record(**{"started_at_ns": MINUTE_NS} | difference))
    assert [total.requests for total in sums] == [1, 1]
