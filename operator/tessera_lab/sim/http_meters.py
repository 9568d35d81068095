"""The `http_*` metrics of the engine's web server."""

from collections.abc import Mapping

from prometheus_client import CollectorRegistry, Counter, Histogram, Summary

from tessera.domain.vllm.facts import Metric

# Routes that are not counted.
UNCOUNTED = frozenset({"/metrics", "/health", "/load", "/ping", "/version"})
# Stands for a route that there is not.
UNKNOWN_ROUTE = "none"


class HttpMeters:
    """Counts requests by route, method and class of status."""

    def __init__(self, metrics: Mapping[str, Metric], registry: CollectorRegistry) -> None:
        def histogram(name: str) -> Histogram:
            metric = metrics[name]
            return Histogram(
                name, "", labelnames=metric.labels, buckets=metric.buckets, registry=registry
            )

        self._requests = Counter(
            "http_requests", "", labelnames=("method", "status", "handler"), registry=registry
        )
        self._request_bytes = Summary(
            "http_request_size_bytes", "", labelnames=("handler",), registry=registry
        )
        self._response_bytes = Summary(
            "http_response_size_bytes", "", labelnames=("handler",), registry=registry
        )
        self._duration_fine = histogram("http_request_duration_highr_seconds")
        self._duration_coarse = histogram("http_request_duration_seconds")

    def observe(
        self, route: str, method: str, status: int, seconds: float, sizes: tuple[int, int]
    ) -> None:
        """One request is through; `sizes` are bytes of its body and of the answer's."""
        if route in UNCOUNTED:
            return
        self._requests.labels(method, f"{status // 100}xx", route).inc()
        self._request_bytes.labels(route).observe(sizes[0])
        self._response_bytes.labels(route).observe(sizes[1])
        self._duration_fine.observe(seconds)
        self._duration_coarse.labels(handler=route, method=method).observe(seconds)
