"""The series of a gateway: right figures, and no more of them than its bound."""

from collections.abc import Iterable
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from tessera.api.model_route import ModelRouteSpec
from tessera.api.ref import Ref
from tessera.domain.gateway.directory import ApiKey, Directory
from tessera.domain.gateway.usage_record import Phase, StreamLatency, UsageRecord
from tessera.gateway.usage import metrics
from tessera.gateway.usage.metrics import MAX_PAIRS, OTHER, GatewayMetrics, ServiceRequests
from tessera.gateway.usage.route_metrics import MAX_ROUTE_SERIES, MAX_ROUTES
from tests.builders import NOW
from tests.gateway.charging import INPUT, OUTPUT, an_outside_model, paying
from tests.gateway.harness import a_model
from tests.gateway.store.builders import SECOND, a_record

_KEY_ENDS = "key_expiration_timestamp_seconds"
NOW_S = int(NOW.timestamp())


def value(gateway: GatewayMetrics, name: str, **labels: str) -> float | None:
    return gateway.registry.get_sample_value(f"tessera_gateway_{name}", labels)


def pages(gateway: GatewayMetrics) -> list[str]:
    return gateway.page().decode().splitlines()


PAIR = {"tenant": "team-a", "service": "team-a/chat"}


def observe(gateway: GatewayMetrics, records: Iterable[UsageRecord]) -> None:
    for record in records:
        gateway.requests.observe(record)


def a_stream(*, started: int = 0, itl_ms: int = 33, **changes: Any) -> UsageRecord:
    fields = {name: changes.pop(name) for name in ("gaps", "late_gaps") if name in changes}
    latency = StreamLatency(ttft_target_ns=SECOND, itl_target_ns=itl_ms * 1_000_000, **fields)
    return a_record(started_at_ns=started, latency=latency, **changes)


def test_a_request_is_counted_with_its_times_and_tokens() -> None:
    gateway = GatewayMetrics()
    observe(
        gateway,
        [
            a_stream(
                queue_ns=SECOND // 4,
                ttft_ns=SECOND,
                total_ns=3 * SECOND,
                output_tokens=5,
                input_tokens=7,
                cached_tokens=3,
                predicted_cached_tokens=2,
                uncached_prefix_tokens=1,
                recomputed_tokens=6,
            )
        ],
    )

    assert value(gateway, "requests_total", **PAIR, code="200", reason="LeastLoaded") == 1
    assert value(gateway, "queue_duration_seconds_sum", **PAIR) == 0.25
    assert value(gateway, "time_to_first_token_seconds_sum", **PAIR) == 1
    assert value(gateway, "time_per_output_token_seconds_sum", **PAIR) == 0.5
    kinds = ("input", "cached", "predicted_cached", "uncached_prefix", "output", "recomputed")
    tokens = [value(gateway, "tokens_total", **PAIR, kind=kind) for kind in kinds]
    assert tokens == [7, 3, 2, 1, 5, 6]


def test_streams_that_went_on_are_counted_by_their_joints() -> None:
    gateway = GatewayMetrics()
    observe(gateway, [a_stream(resumed=3, unchecked_joints=1)])
    assert value(gateway, "streams_resumed_total", **PAIR, joint="Checked") == 2
    assert value(gateway, "streams_resumed_total", **PAIR, joint="Unchecked") == 1


def test_a_request_without_a_token_has_no_time_to_one() -> None:
    gateway = GatewayMetrics()
    observe(
        gateway,
        [
            a_stream(phase=Phase.FAILED, ttft_ns=None, output_tokens=0),
            a_stream(output_tokens=1),
        ],
    )

    assert value(gateway, "time_to_first_token_seconds_count", **PAIR) == 1
    assert value(gateway, "time_per_output_token_seconds_count", **PAIR) == 0


def test_streams_are_counted_at_the_targets_of_their_service() -> None:
    gateway = GatewayMetrics()
    observe(
        gateway,
        [
            a_stream(gaps=90, late_gaps=10, ttft_ns=SECOND, total_ns=3 * SECOND),
            a_stream(gaps=10, late_gaps=0, ttft_ns=SECOND + 1, total_ns=2 * SECOND),
        ],
    )

    assert value(gateway, "time_to_first_token_seconds_bucket", **PAIR, le="1.0") == 1
    assert value(gateway, "time_to_first_token_seconds_bucket", **PAIR, le="1.5") == 2
    assert value(gateway, "inter_token_latency_seconds_bucket", **PAIR, le="0.033") == 90
    assert value(gateway, "inter_token_latency_seconds_count", **PAIR) == 100


def test_the_statuses_of_one_engine_take_few_series_and_all_are_counted() -> None:
    gateway = GatewayMetrics()
    refused: dict[str, Any] = {"phase": Phase.FAILED, "reason": "EngineRefused"}
    observe(gateway, (a_stream(status=status, **refused) for status in range(400, 500)))
    observe(gateway, [a_stream(status=429, reason="RateLimited")])

    counts = [line for line in pages(gateway) if line.startswith("tessera_gateway_requests_total{")]
    assert len(counts) == 26
    assert sum(float(line.split()[-1]) for line in counts) == 101
    assert value(gateway, "requests_total", **PAIR, code="429", reason="RateLimited") == 1
    assert value(gateway, "requests_total", **PAIR, code="4xx", reason="EngineRefused") == 76


def test_another_target_begins_the_histogram_again_and_later_records_of_the_last_are_left_out() -> (
    None
):
    gateway = GatewayMetrics()
    observe(
        gateway,
        [
            a_stream(started=1, itl_ms=33, gaps=50),
            a_stream(started=5, itl_ms=50, gaps=7),
            a_stream(started=4, itl_ms=33, gaps=50),
        ],
    )

    assert value(gateway, "inter_token_latency_seconds_bucket", **PAIR, le="0.033") is None
    assert value(gateway, "inter_token_latency_seconds_bucket", **PAIR, le="0.05") == 7


def test_a_stream_that_ends_without_a_token_counts_once_it_waited_too_long() -> None:
    gateway = GatewayMetrics()
    lost: dict[str, Any] = {"phase": Phase.ABORTED, "ttft_ns": None, "output_tokens": 0}
    observe(
        gateway, [a_stream(total_ns=SECOND // 2, **lost), a_stream(total_ns=9 * SECOND, **lost)]
    )

    assert value(gateway, "time_to_first_token_seconds_bucket", **PAIR, le="1.0") == 0
    assert value(gateway, "time_to_first_token_seconds_count", **PAIR) == 1


def test_an_answer_that_is_no_stream_has_no_time_to_its_first_token() -> None:
    gateway = GatewayMetrics()
    observe(gateway, [a_record(stream=False, latency=None)])

    assert value(gateway, "time_to_first_token_seconds_count", **PAIR) == 0
    assert value(gateway, "time_per_output_token_seconds_count", **PAIR) == 0


def a_use(tenant: str, number: int = 0, *, minute: int = 0, **changes: Any) -> UsageRecord:
    at = {"started_at_ns": (NOW_S + 60 * minute) * SECOND, "total_ns": SECOND}
    return a_record(tenant=tenant, service=f"{tenant}/s{number}", **at, **changes)


def queued(gateway: GatewayMetrics, tenant: str, service: int | str = 0) -> float | None:
    name = service if isinstance(service, str) else f"{tenant}/s{service}"
    return value(gateway, "queue_duration_seconds_count", tenant=tenant, service=name)


def series(gateway: GatewayMetrics, tenant: str) -> int:
    """Return how many services of a tenant have series of their own."""
    return sum(
        sample.name == "tessera_gateway_queue_duration_seconds_count"
        and sample.labels["tenant"] == tenant
        and sample.labels["service"] not in ("", OTHER)
        for family in gateway.families()
        for sample in family.samples
    )


@pytest.fixture
def few_pairs(monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(metrics, "MAX_PAIRS", 20)
    return 20


def test_refused_requests_take_no_series_and_count_for_their_tenant() -> None:
    gateway = GatewayMetrics()
    refused: dict[str, Any] = {"phase": Phase.REFUSED, "status": 503, "reason": "NoReadyReplica"}
    observe(gateway, (a_use("evil", number, **refused) for number in range(MAX_PAIRS)))
    observe(gateway, [a_use("evil", minute=1), a_use("evil", minute=1, **refused)])
    observe(gateway, [a_record(tenant="evil", service="", phase=Phase.REFUSED)])

    counts = [queued(gateway, "evil", service) for service in (0, OTHER, "")]
    assert (series(gateway, "evil"), counts) == (1, [2, MAX_PAIRS, 1])


def test_tokens_of_a_service_are_counted_whoever_sent_them(
    few_pairs: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prices by cost divide by them, also where its senders are many."""
    monkeypatch.setattr(metrics, "MAX_SERVICES", 2)
    gateway = GatewayMetrics()
    senders = range(2 * few_pairs)
    for service in ("team-p/gone", "team-p/chat", "team-p/new"):
        use = (a_record(tenant=f"tenant-{n}", service=service) for n in senders)
        observe(gateway, use)
    counted = [
        value(gateway, "service_tokens_total", service=f"team-p/{name}")
        for name in ("gone", "chat", "new")
    ]
    assert counted == [None, 120 * len(senders), 120 * len(senders)]


def test_pairs_of_one_tenant_cost_no_other_its_series(few_pairs: int) -> None:
    gateway = GatewayMetrics()
    observe(gateway, (a_use("evil", number) for number in range(few_pairs)))
    for minute in range(1, 4):
        observe(gateway, [a_use("team-b", number, minute=minute) for number in range(9)])
        observe(gateway, (a_use("evil", number, minute=minute) for number in range(few_pairs)))

    assert [queued(gateway, "team-b", number) for number in range(9)] == [3.0] * 9
    assert series(gateway, "evil") == few_pairs - 9
    assert queued(gateway, "evil", OTHER) == 3 * 9


def test_tenants_with_as_many_pairs_displace_each_other_only_when_idle(few_pairs: int) -> None:
    gateway = GatewayMetrics()
    tenants = [f"team-{number}" for number in range(few_pairs + 2)]
    observe(gateway, map(a_use, tenants))
    first, *_, last = tenants
    observe(gateway, [a_use(first, minute=14)])
    assert (queued(gateway, first), queued(gateway, last)) == (2, None)

    observe(gateway, [a_use(last, minute=15)])
    assert (queued(gateway, first), queued(gateway, tenants[1])) == (2, None)
    assert (queued(gateway, last), queued(gateway, last, OTHER)) == (1, 1)


def test_series_that_leave_are_gone_and_begin_again_at_0(few_pairs: int) -> None:
    gateway = GatewayMetrics()
    stream: dict[str, Any] = {
        "ttft_ns": SECOND // 2,
        "output_tokens": 5,
        "latency": a_stream(gaps=4).latency,
    }
    observe(gateway, [a_use("team-a", **stream), a_use("team-a", **stream, status=500)])
    assert {'service="team-a/s0"' in line for line in pages(gateway)} == {True, False}
    observe(gateway, (a_use(f"team-{number}", minute=20) for number in range(few_pairs)))
    # The tokens of a service outlive its pairs: prices by cost are measured by them.
    left = [line for line in pages(gateway) if 'service="team-a/s0"' in line]
    assert all("service_tokens" in line for line in left)

    observe(gateway, [a_use("team-a", minute=40, **stream)])
    back = {"tenant": "team-a", "service": "team-a/s0"}
    assert value(gateway, "requests_total", **back, code="200", reason="LeastLoaded") == 1
    assert value(gateway, "tokens_total", **back, kind="output") == 5
    assert value(gateway, "time_to_first_token_seconds_bucket", **back, le="1.0") == 1
    assert value(gateway, "inter_token_latency_seconds_count", **back) == 4


def test_what_services_share_follows_no_target(few_pairs: int) -> None:
    gateway = GatewayMetrics()
    observe(gateway, (a_use("team-a", number) for number in range(few_pairs)))
    observe(
        gateway,
        (
            a_stream(
                started=number, itl_ms=number, gaps=9, service=f"team-a/t{number}", ttft_ns=SECOND
            )
            for number in range(1, 4)
        ),
    )

    other = {"tenant": "team-a", "service": OTHER}
    assert value(gateway, "time_to_first_token_seconds_count", **other) == 3
    assert value(gateway, "inter_token_latency_seconds_count", **other) == 0


def test_services_without_requests_lose_their_series() -> None:
    gateway = GatewayMetrics()
    gateway.set_load({"team-a/chat": ServiceRequests(in_flight=2, queued=1, overdue=1)})
    gateway.set_load({"team-b/chat": ServiceRequests(in_flight=5, oldest_seconds=2.5)})

    assert value(gateway, "requests_in_flight", service="team-a/chat") is None
    assert value(gateway, "requests_in_flight", service="team-b/chat") == 5
    assert value(gateway, "requests_queued", service="team-a/chat") is None
    assert value(gateway, "requests_overdue", service="team-a/chat") is None
    assert value(gateway, "oldest_request_seconds", service="team-b/chat") == 2.5


def test_keys_that_end_within_two_weeks_have_a_series_unless_a_rotation_replaced_them() -> None:
    gateway, soon = GatewayMetrics(), NOW + timedelta(days=3)
    ends = {
        "ci": soon,
        "ci.of-a-name": soon,
        "app": None,
        "app.0123abcd": soon,
        "next": NOW + timedelta(days=15),
        "old": NOW - timedelta(days=1),
    }

    gateway.set_keys(
        [
            ApiKey(name=name, digest=name.rpartition(".")[2], tenant="team-a", expires=expires)
            for name, expires in ends.items()
        ],
        NOW,
    )

    series = {name: value(gateway, _KEY_ENDS, tenant="team-a", key=name) for name in ends}
    lone = {"ci": soon.timestamp(), "ci.of-a-name": soon.timestamp()}
    assert series == dict.fromkeys(ends) | lone
    gateway.set_keys([], NOW)
    assert value(gateway, _KEY_ENDS, tenant="team-a", key="ci") is None


def test_the_page_has_the_store_from_the_start() -> None:
    page = GatewayMetrics().page().decode()

    assert 'tessera_gateway_usage_records_total{outcome="Lost"} 0.0' in page
    assert 'tessera_gateway_store_failing_seconds{operation="borrow"} 0.0' in page
    assert OTHER not in page


def test_charges_are_summed_by_tenant_and_currency() -> None:
    gateway = GatewayMetrics()
    charges: list[tuple[str, int | None, str | None]] = [
        ("team-a", 37_000, "USD"),
        ("team-a", 3, "USD"),
        ("team-b", 5, "EUR"),
        ("team-b", None, None),
    ]
    for tenant, nanos, currency in charges:
        observe(gateway, [a_record(tenant=tenant, charge_nanos=nanos, currency=currency)])
    lines = [line for line in pages(gateway) if line.startswith("tessera_charge_nanos_total{")]
    assert sorted(lines) == [
        'tessera_charge_nanos_total{currency="EUR",tenant="team-b"} 5.0',
        'tessera_charge_nanos_total{currency="USD",tenant="team-a"} 37003.0',
    ]


ROUTED: dict[str, Any] = {"model_route": "team-a/assistant", "target": "large"}
ASSISTANT = {"tenant": "team-a", "route": "team-a/assistant"}


def test_a_route_counts_who_answered_and_who_was_skipped() -> None:
    gateway = GatewayMetrics()
    skipped = "small=EngineFailed,medium=TargetNotFound"
    call = {**ROUTED, "target": "small", "phase": Phase.FAILED, "status": 500}
    observe(
        gateway,
        [
            a_record(**call, reason="EngineFailed", requests=0, charge_nanos=5, currency="USD"),
            a_record(**ROUTED, target_reason="Fallback", skipped_targets=skipped),
            a_record(**ROUTED, target_reason="LastTarget"),
            # No target was left.
            a_record(
                **{**ROUTED, "target": ""},
                **{"service": "", "phase": Phase.REFUSED, "skipped_targets": "small=QueueFull"},
            ),
            # It was refused before any was asked.
            a_record(**{**ROUTED, "target": ""}, service="", phase=Phase.REFUSED),
        ],
    )

    counts = {
        (name, *labels): value(
            gateway,
            f"route_{name}_total",
            **dict(zip(("target", "reason"), labels, strict=True)),
            **ASSISTANT,
        )
        for name, *labels in (
            ("requests", "large", "Fallback"),
            ("requests", "large", "LastTarget"),
            ("skipped", "small", "EngineFailed"),
            ("skipped", "medium", "TargetNotFound"),
            ("skipped", "small", "QueueFull"),
        )
    }
    assert set(counts.values()) == {1}
    counters = [line for line in pages(gateway) if "gateway_route_" in line and "_total{" in line]
    assert len(counters) == len(counts)
    # The call that did not answer is no request, and what it used counts.
    assert value(gateway, "requests_total", **PAIR, code="200", reason="LeastLoaded") == 2
    assert value(gateway, "requests_total", **PAIR, code="500", reason="EngineFailed") is None
    assert value(gateway, "tokens_total", **PAIR, kind="input") == 300
    assert value(gateway, "queue_duration_seconds_count", **PAIR) == 2
    charged = {"tenant": "team-a", "currency": "USD"}
    assert gateway.registry.get_sample_value("tessera_charge_nanos_total", charged) == 5


def test_routes_and_edits_of_one_route_take_a_bounded_number_of_series() -> None:
    gateway = GatewayMetrics()
    observe(gateway, [a_record(**ROUTED, tenant="team-b", target_reason="Weighted")])
    for number in range(5 * MAX_ROUTES):
        edited = a_record(**{**ROUTED, "target": f"t{number}"}, target_reason="Weighted")
        new = a_record(**{**ROUTED, "model_route": f"team-a/r{number}"}, target_reason="Weighted")
        observe(gateway, [edited, new])
        observe(gateway, [a_record(**ROUTED, target_reason="Weighted")])

    lines = [line for line in pages(gateway) if "gateway_route_requests_total{" in line]
    assert len(lines) < MAX_ROUTES + MAX_ROUTE_SERIES
    assert not [line for line in lines if 'route="team-a/r0"' in line]
    assert [line for line in lines if f'route="team-a/r{number}"' in line]
    # A tenant's routes take no series of another one's.
    large = {line.partition('tenant="')[2][:6] for line in lines if 'target="large"' in line}
    assert large == {"team-a", "team-b"}


def test_without_prices_a_route_counts_what_providers_bill() -> None:
    gateway = GatewayMetrics()
    frontier = {"name": "frontier", "provider": {"name": "acme", "model": "Big"}}
    spec = ModelRouteSpec.model_validate({"targets": [{"service": "small"}, frontier]})
    route = replace(a_model(), service=Ref("team-a", "assistant"), uid="route", route=spec)
    directory = Directory(models=(route,), outside={("acme", "Big"): an_outside_model()})
    gateway.requests.routes.last.directory = lambda: directory
    plain: dict[str, Any] = {"cached_tokens": 0, "reasoning_tokens": 0}
    bill = {"cost_nanos": 30, "cost_currency": "USD", "provider": "acme/Small"}
    # Of a service it is not known what a request costs.
    observe(gateway, [a_record(**ROUTED), a_record(**ROUTED, **plain, **bill)])
    figures = [
        value(gateway, f"route_{name}_total", **ASSISTANT, target="large", currency="USD")
        for name in ("charge_nanos", "tokens", "last_target_nanos")
    ]
    assert figures == [30, 120, 100 * 2 * INPUT + 20 * 2 * OUTPUT]


def test_a_route_counts_what_its_last_target_would_be_charged() -> None:
    gateway = GatewayMetrics()
    spec = ModelRouteSpec.model_validate({"targets": [{"service": "small"}, {"service": "chat"}]})
    route = replace(a_model(), service=Ref("team-a", "assistant"), uid="route", route=spec)
    directory = Directory(models=(a_model(), route), **paying())
    paid: dict[str, Any] = {"currency": "USD", "cached_tokens": 0, "reasoning_tokens": 0}
    failed = {**paid, "phase": Phase.FAILED, "waste_nanos": 40}
    small = {**ROUTED, "target": "small"}
    observe(gateway, [a_record(**small, **paid, charge_nanos=30)])
    assert not [line for line in pages(gateway) if "route_tokens_total{" in line]
    gateway.requests.routes.last.directory = lambda: directory
    observe(
        gateway,
        [
            a_record(**small, **paid, charge_nanos=30),
            a_record(**small, **failed, charge_nanos=2, requests=0),
            # No other target answered it, so the last one would have answered nothing.
            a_record(**small, **failed, charge_nanos=0),
            a_record(**ROUTED, **paid, charge_nanos=300),
            a_record(**ROUTED, **{**paid, "currency": "EUR"}, charge_nanos=7),
            a_record(**ROUTED, **paid, charge_nanos=None),
        ],
    )
    names = ("charge_nanos", "last_target_nanos", "failed_nanos", "tokens")
    figures = {
        target: [
            value(gateway, f"route_{name}_total", **ASSISTANT, target=target, currency="USD")
            for name in names
        ]
        for target in ("small", "large")
    }
    # 100 tokens of input and 20 of output each.
    at_last = 100 * INPUT + 20 * OUTPUT
    assert figures == {"small": [30, at_last, 82, 120], "large": [300, at_last, None, 120]}
