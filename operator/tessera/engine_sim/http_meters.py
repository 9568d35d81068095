"""The `http_*` metrics of the engine's web server."""

from collections.abc import Mapping

from prometheus_client import CollectorRegistry, Counter, Histogram, Summary

from tessera.domain.engine_facts import Metric

UNSEEN = frozenset({"/metrics", "/health", "/load", "/ping", "/version", "/server_info"})
"""Routes that are not counted."""
UNKNOWN = "none"
"""Stands for a route that there is not."""


class HttpMeters:
    """Counts requests by route, method and class of status."""

    def __init__(self, metrics: Mapping[str, Metric], registry: CollectorRegistry) -> None:
        def histogram(name: str) -> Histogram:
            known = metrics[name]
            return Histogram(
                name, "", labelnames=known.labels, buckets=known.buckets, registry=registry
            )

        self._requests = Counter(
            "http_requests", "", labelnames=("method", "status", "handler"), registry=registry
        )
        self._asked = Summary(
            "http_request_size_bytes", "", labelnames=("handler",), registry=registry
        )
        self._answered = Summary(
            "http_response_size_bytes", "", labelnames=("handler",), registry=registry
        )
        self._fine = histogram("http_request_duration_highr_seconds")
        self._coarse = histogram("http_request_duration_seconds")

    def answered(
        self, route: str, method: str, status: int, seconds: float, sizes: tuple[int, int]
    ) -> None:
        """One request is through; `sizes` are bytes of its body and of the answer's."""
        if route in UNSEEN:
            return
        self._requests.labels(method, f"{status // 100}xx", route).inc()
        self._asked.labels(route).observe(sizes[0])
        self._answered.labels(route).observe(sizes[1])
        self._fine.observe(seconds)
        self._coarse.labels(handler=route, method=method).observe(seconds)
