"""The last target of each route, and what it is charged: what routes save is seen beside it."""

from collections.abc import Callable, Mapping

from tessera.domain.charges.prices import RequestPrice
from tessera.domain.gateway.directory import Directory, OfferedModel
from tessera.domain.limits.charges import price_for


class LastTargets:
    """Those of the routes in the directory of now."""

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
