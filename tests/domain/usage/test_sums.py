"""Sums of usage records: what they keep exact, and what they tell apart."""

from typing import Any

import pytest

from tessera.domain.gateway.reasons import RequestReason
from tessera.domain.gateway.usage_record import Phase
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
        *({name: "another"} for name in ("tenant", "team", "key", "service", "model")),
        *({name: "another"} for name in ("variant", "price_version", "path", "reason")),
        *({name: "another"} for name in ("currency", "price_list", "owner", "service_class")),
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


def test_an_engine_chooses_no_sum_and_the_gateway_says_its_status() -> None:
    sums = UsageSums(MINUTE)
    for status in (*range(400, 500), 429):
        sums.add(a_record(status=status, reason=RequestReason.ENGINE_REFUSED))
    for status in (502, 504):
        sums.add(a_record(status=status, reason=RequestReason.ENGINE_FAILED))
    assert [(total.status, total.requests) for total in sums] == [(400, 101), (502, 1), (504, 1)]


def test_ids_make_no_sum_and_users_and_tags_none_where_no_bill_needs_them() -> None:
    sums = UsageSums(MINUTE)
    for number in range(100):
        sums.add(a_record(user=f"user-{number}", request_id=f"{number}", replica=f"{number}"))
    (total,) = sums
    assert (total.user, total.request_id, total.replica, total.requests) == (None, "", None, 100)


@pytest.mark.parametrize("field", ["user", "tags"])
def test_users_and_tags_are_exact_until_there_are_too_many_sums(field: str) -> None:
    sums = UsageSums(MINUTE, max_detailed=3)
    sums.add(a_record())
    for number in range(10):
        for _ in range(2):
            sums.add(a_record(**{field: f"case={number}"}))
    exact = {getattr(total, field): total.requests for total in sums}
    assert exact == {getattr(a_record(), field): 1, "case=0": 2, "case=1": 2, "other": 16}
    assert (len(sums), sums.detailed) == (4, 2)


def test_charges_are_added_by_their_accounts() -> None:
    sums = UsageSums(MINUTE)
    for nanos, charges in (
        (None, ()),
        (5, (("team-a/month", 0, 5), ("team-a/hour", 3600, 5))),
        (7, (("team-a/hour", 3600, 3), ("team-a/hour", 7200, 4), ("team-a/month", 0, 7))),
    ):
        sums.add(a_record(charge_nanos=nanos, charges=charges))
    (total,) = sums
    assert total.charge_nanos == 12
    assert set(total.charges) == {
        ("team-a/month", 0, 12),
        ("team-a/hour", 3600, 8),
        ("team-a/hour", 7200, 4),
    }


def test_a_sum_of_requests_without_a_price_has_no_charge() -> None:
    sums = UsageSums(MINUTE)
    sums.add(a_record())
    sums.add(a_record())
    assert [total.charge_nanos for total in sums] == [None]
