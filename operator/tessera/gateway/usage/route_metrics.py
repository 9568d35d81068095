"""The series of routes: which targets answered, which were skipped, and what that saved."""

from collections import OrderedDict, defaultdict
from collections.abc import Callable, Mapping

from prometheus_client import CollectorRegistry, Counter

from tessera.domain.charge.prices import RequestPrice, charge_of
from tessera.domain.gateway.directory import Directory, OfferedModel
from tessera.domain.gateway.usage_record import Phase, UsageRecord
from tessera.domain.limits.charges import price_for

# Routes of one tenant with series of their own, whose names and targets are those of objects; of
# further ones the route that it did not use for longest makes room.
MAX_ROUTES = 50
# Of one tenant and route: a route that is edited often has had many targets.
MAX_ROUTE_SERIES = 200
_TARGET = ("tenant", "route", "target")
# By counter and labels, which take a microsecond each time that they are looked up.
_Series = dict[tuple[Counter, tuple[str, ...]], Counter]


class LastTargets:
    """The last targets of the routes in the directory of now, and what they are charged."""

    def __init__(self) -> None:
        self.directory: Callable[[], Directory | None] = lambda: None
        """Returns the directory, and None before the first."""
        self._directory = Directory()
        self._models: Mapping[str, OfferedModel | None] = {}
        self._names: Mapping[str, str] = {}

    def names(self) -> Mapping[str, str]:
        """Return the name of the last target of each route."""
        self._follow()
        return self._names

    def price(self, tenant: str, route: str, at: float) -> RequestPrice | None:
        """Return what a tenant pays at the last target of a route, at a time in Unix seconds.

        None where it has no price, or is not there.
        """
        self._follow()
        model = self._models.get(route)
        if model is None:
            return None
        return price_for(self._directory, tenant, model, model.names[0], at)

    def cost(self, route: str) -> RequestPrice | None:
        """Return what the provider of the last target of a route bills; None of a service."""
        self._follow()
        model = self._models.get(route)
        return model.outside.cost if model is not None and model.outside is not None else None

    def _follow(self) -> None:
        directory = self.directory()
        if directory is None or directory is self._directory:
            return
        self._directory, models, names = directory, dict[str, OfferedModel | None](), {}
        services = {model.service: model for model in directory.models if model.route is None}
        for model in directory.models:
            if model.route is None:
                continue
            route, target = str(model.service), model.route.targets[-1]
            names[route] = target.target_name
            if (service := target.service_ref(model.service.namespace)) is not None:
                models[route] = services.get(service)
            elif (provider := target.provider) is not None:
                models[route] = directory.outside.get((provider.name, provider.model))
        self._models, self._names = models, names


class RouteMetrics:
    """Counts the targets of requests that came to a route, and what they are charged."""

    def __init__(self, registry: CollectorRegistry) -> None:
        """Take the registry of the gateway."""
        self.last = LastTargets()

        def counter(name: str, text: str, *labels: str) -> Counter:
            names = (*_TARGET, *labels)
            return Counter(f"tessera_gateway_route_{name}", text, names, registry=registry)

        self._answered = counter(
            "requests",
            "Requests for a ModelRoute by the target that was asked last, and why: RuleMatched, "
            "Weighted, LastTarget, NoDowngrade or Fallback.",
            "reason",
        )
        self._skipped = counter(
            "skipped",
            "Targets that gave no answer, so that requests for a ModelRoute went to another one, "
            "by reason.",
            "reason",
        )
        self._tokens = counter(
            "tokens",
            "Input and output tokens of answers to requests for a ModelRoute. Of these, as of "
            "charges, count those with a price whose route has one at its last target.",
            "currency",
        )
        self._charges = counter(
            "charge_nanos",
            "What answers to requests for a ModelRoute are charged, in nano-units; of tenants "
            "without prices, what providers bill for them.",
            "currency",
        )
        self._at_last = counter(
            "last_target_nanos",
            "What the last target of a ModelRoute would be charged for the tokens of the answers "
            "of each target, in nano-units.",
            "currency",
        )
        self._failed = counter(
            "failed_nanos",
            "Calls for a ModelRoute that gave no answer, in nano-units: what they are charged, and "
            "what engines computed for them that no sender pays.",
            "currency",
        )
        self._routes = defaultdict[str, OrderedDict[str, _Series]](OrderedDict)
        """By tenant, which is an object of the platform."""

    def observe(self, record: UsageRecord) -> None:
        """Count a request that ended, with the targets that it skipped, or a call of one."""
        if not (record.target or record.skipped_targets):
            return
        routes, names = self._routes[record.tenant], (record.tenant, record.model_route)
        series = routes.setdefault(record.model_route, {})
        routes.move_to_end(record.model_route)
        target = (*names, record.target)
        if record.requests and record.target:
            self._count(series, self._answered, (*target, record.target_reason))
        for pair in record.skipped_targets.split(",") if record.requests else ():
            skipped, _, reason = pair.partition("=")
            if skipped:
                self._count(series, self._skipped, (*names, skipped, reason))
        self._count_money(series, target, record)
        if len(routes) > MAX_ROUTES:
            _remove(routes.popitem(last=False)[1])

    def _count_money(self, series: _Series, target: tuple[str, ...], record: UsageRecord) -> None:
        route, paid, currency = record.model_route, record.charge_nanos, record.currency
        if paid is not None:
            price = self.last.price(record.tenant, route, record.started_at_ns / 1e9)
        else:
            # Without prices there is what providers bill.
            paid, currency = record.cost_nanos, record.cost_currency
            price = self.last.cost(route)
        if not record.target or price is None or price.currency != currency:
            return
        names = (*target, price.currency)
        if not record.requests or record.phase is Phase.FAILED:
            self._count(series, self._failed, names, paid + record.waste_nanos)
            return
        tokens = record.input_tokens + record.output_tokens
        at_last = charge_of(
            price,
            input_tokens=record.input_tokens,
            cached=record.cached_tokens,
            output=record.output_tokens,
            reasoning=record.reasoning_tokens,
        )
        self._count(series, self._tokens, names, tokens)
        self._count(series, self._charges, names, paid)
        # Where nothing was used, nothing is charged for the request either.
        self._count(series, self._at_last, names, at_last if tokens else 0)

    @staticmethod
    def _count(series: _Series, counter: Counter, labels: tuple[str, ...], amount: int = 1) -> None:
        child = series.get((counter, labels))
        if child is None:
            if len(series) >= MAX_ROUTE_SERIES:
                _remove(series)
            child = series[counter, labels] = counter.labels(*labels)
        child.inc(amount)


def _remove(series: _Series) -> None:
    for counter, labels in series:
        counter.remove(*labels)
    series.clear()
