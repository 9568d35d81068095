"""How long requests and tokens took in the last five minutes, as Prometheus counts them."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class LatencyHistogram:
    """How many values of five minutes are at most as large as each edge of a bucket.

    Prometheus extrapolates, so counts are not whole.
    """

    total: float
    at_most: tuple[tuple[float, float], ...] = ()
    """Edge in seconds and count, by edge; the infinite edge is `total`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineLatency:
    """What the engines of one variant of a service counted. None is "not known"."""

    variant: str | None = None
    """None if the series has no variant label."""
    ttft: LatencyHistogram | None = None
    """Without the time that a request waited at a gateway."""
    prefill: LatencyHistogram | None = None
    """Time that computing its prompt took of each finished request, which no replica shortens."""
    itl: LatencyHistogram | None = None
    waiting: float | None = None
    """Requests without a first token, mean of the last minute."""
    waiting_growth: float = 0.0
    """By how many these became more within five minutes; negative if fewer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GatewayLatency:
    """What the gateways counted of the streams of a service."""

    ttft: LatencyHistogram | None = None
    """From the arrival of a request to its first token."""
    itl: LatencyHistogram | None = None
    overdue: float = 0.0
    """Streams that wait for their first token longer than `spec.slo.ttftP95`."""
    oldest_seconds: float = 0.0
    """For how long the oldest of those without a token has waited."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceLatency:
    """The latency of one service, as counted by its engines and by the gateways."""

    engines: tuple[EngineLatency, ...] = ()
    """By variant."""
    gateway: GatewayLatency | None = None
    """None where no gateway has its series."""
    budget_burn: float | None = None
    """Share of the error budget of three days that is used; above 1 it is exceeded. None without
    the recording rules of the chart."""
