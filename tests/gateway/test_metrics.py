"""The series of a gateway: right figures, and no more of them than its bound."""

from tessera.domain.gateway.requests import Phase
from tessera.gateway import metrics
from tessera.gateway.metrics import MAX_PAIRS, OTHER, GatewayMetrics
from tests.gateway.store.builders import SECOND, a_record


def value(gateway: GatewayMetrics, name: str, **labels: str) -> float | None:
    return gateway.registry.get_sample_value(f"tessera_gateway_{name}", labels)


PAIR = {"tenant": "team-a", "service": "team-a/chat"}


def test_a_request_is_counted_with_its_times_and_tokens() -> None:
    gateway = GatewayMetrics()
    gateway.observe(
        [
            a_record(
                queue_ns=SECOND // 4,
                ttft_ns=SECOND,
                total_ns=3 * SECOND,
                output_tokens=5,
                input_tokens=7,
                cached_tokens=3,
            )
        ]
    )

    assert value(gateway, "requests_total", **PAIR, code="200", reason="LeastLoaded") == 1
    assert value(gateway, "queue_duration_seconds_sum", **PAIR) == 0.25
    assert value(gateway, "time_to_first_token_seconds_sum", **PAIR) == 1
    assert value(gateway, "time_per_output_token_seconds_sum", **PAIR) == 0.5
    tokens = [
        value(gateway, "tokens_total", **PAIR, kind=kind) for kind in ("input", "cached", "output")
    ]
    assert tokens == [7, 3, 5]


def test_a_request_without_a_token_has_no_time_to_one() -> None:
    gateway = GatewayMetrics()
    gateway.observe(
        [
            a_record(phase=Phase.FAILED, ttft_ns=None, output_tokens=0),
            a_record(output_tokens=1),
        ]
    )

    assert value(gateway, "time_to_first_token_seconds_count", **PAIR) == 1
    assert value(gateway, "time_per_output_token_seconds_count", **PAIR) == 0


def test_pairs_above_the_bound_share_one_series() -> None:
    gateway = GatewayMetrics()
    gateway.observe(a_record(tenant=f"team-{number}") for number in range(MAX_PAIRS + 2))
    gateway.observe([a_record(tenant="team-0")])

    first = {"tenant": "team-0", "service": "team-a/chat"}
    other = {"tenant": OTHER, "service": OTHER}
    assert value(gateway, "queue_duration_seconds_count", **first) == 2
    assert value(gateway, "queue_duration_seconds_count", **other) == 2


def test_services_without_requests_lose_their_series() -> None:
    gateway = GatewayMetrics()
    gateway.set_load({"team-a/chat": 2}, {"team-a/chat": 1})
    gateway.set_load({"team-b/chat": 5}, {})

    assert value(gateway, "requests_in_flight", service="team-a/chat") is None
    assert value(gateway, "requests_in_flight", service="team-b/chat") == 5
    assert value(gateway, "requests_queued", service="team-a/chat") is None


def test_the_page_has_the_store_from_the_start() -> None:
    page = GatewayMetrics().page().decode()

    assert 'tessera_gateway_usage_records_total{outcome="Lost"} 0.0' in page
    assert 'tessera_gateway_store_failing_seconds{operation="borrow"} 0.0' in page
    assert metrics.OTHER not in page
