"""Latencies for tests of the SLO."""

from tessera.domain.observed.latency import (
    EngineLatency,
    GatewayLatency,
    LatencyHistogram,
    ServiceLatency,
)


def a_histogram(total: float, **shares: float) -> LatencyHistogram:
    """Build a histogram from the shares at its edges, in ms: `at_25=0.4`."""
    points = sorted(
        (float(name.removeprefix("at_")) / 1000, share) for name, share in shares.items()
    )
    return LatencyHistogram(
        total=total, at_most=tuple((edge, share * total) for edge, share in points)
    )


def engine_latency(
    *, ttft: float = 1.0, requests: float = 300.0, fast: float = 1.0, slow: float = 1.0
) -> EngineLatency:
    """Build what engines counted: shares of TTFT within 1 s, of ITL within 25 and 50 ms."""
    return EngineLatency(
        variant="a100-1gpu",
        ttft=a_histogram(requests, at_1000=ttft),
        itl=a_histogram(requests * 100, at_25=min(fast, slow), at_50=slow),
    )


def of_engines(**shares: float) -> ServiceLatency:
    return ServiceLatency(engines=(engine_latency(**shares),))


def gateway_latency(
    *, ttft: float = 1.0, itl: float = 1.0, requests: float = 300.0, overdue: float = 0.0
) -> GatewayLatency:
    """Build what gateways counted at the targets of 1 s and 33 ms."""
    return GatewayLatency(
        ttft=a_histogram(requests, at_1000=ttft),
        itl=a_histogram(requests * 100, at_33=itl),
        overdue=overdue,
    )
