"""The series of routes: which targets answered, and which were skipped."""

from collections import OrderedDict

from prometheus_client import CollectorRegistry, Counter

from tessera.domain.gateway.requests import UsageRecord

# Routes with series of their own, whose names and targets are those of objects; of further ones the
# route that was not used for longest makes room.
MAX_ROUTES = 200
# Of one route, by target and reason: a route that is edited often has had many targets.
MAX_ROUTE_SERIES = 200


class RouteMetrics:
    """Counts the targets of requests that came to a route."""

    def __init__(self, registry: CollectorRegistry) -> None:
        """Take the registry of the gateway."""
        labels = ("route", "target", "reason")
        self._answered = Counter(
            "tessera_gateway_route_requests",
            "Requests for a ModelRoute by the target that was asked last, and why: RuleMatched, "
            "Weighted, LastTarget, NoDowngrade or Fallback.",
            labels,
            registry=registry,
        )
        self._skipped = Counter(
            "tessera_gateway_route_skipped",
            "Targets that gave no answer, so that requests for a ModelRoute went to another one, "
            "by reason.",
            labels,
            registry=registry,
        )
        self._routes = OrderedDict[str, set[tuple[Counter, str, str]]]()

    def observe(self, record: UsageRecord) -> None:
        """Count a request that ended, with the targets that it skipped."""
        if not record.requests or not (record.target or record.skipped_targets):
            return
        route = record.model_route
        series = self._routes.setdefault(route, set())
        self._routes.move_to_end(route)
        if record.target:
            self._count(series, self._answered, route, record.target, record.target_reason)
        for pair in filter(None, record.skipped_targets.split(",")):
            target, _, reason = pair.partition("=")
            self._count(series, self._skipped, route, target, reason)
        if len(self._routes) > MAX_ROUTES:
            self._remove(*self._routes.popitem(last=False))

    def _count(
        self,
        series: set[tuple[Counter, str, str]],
        counter: Counter,
        route: str,
        target: str,
        reason: str,
    ) -> None:
        if (counter, target, reason) not in series and len(series) >= MAX_ROUTE_SERIES:
            self._remove(route, series)
            series.clear()
        series.add((counter, target, reason))
        counter.labels(route, target, reason).inc()

    def _remove(self, route: str, series: set[tuple[Counter, str, str]]) -> None:
        for counter, target, reason in series:
            counter.remove(route, target, reason)
