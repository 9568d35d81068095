"""Write the statuses of ModelRoutes and ModelProviders."""

from collections.abc import Iterator
from functools import partial

from tessera.api.model_provider import ModelProviderStatus
from tessera.api.model_route import ModelRouteStatus
from tessera.domain.config import Config
from tessera.domain.incremental import Incremental
from tessera.domain.observed.providers import ObservedProvider
from tessera.domain.observed.routes import ObservedRoute
from tessera.domain.observed.snapshot import Snapshot
from tessera.domain.planning.plan import Plan
from tessera.domain.status.providers import provider_status
from tessera.domain.status.routes import route_statuses
from tessera.reconcile.observe import plan_inputs
from tessera.reconcile.store import Store
from tessera.reconcile.writing.write_order import Stage, Work, work_key
from tessera.reconcile.writing.writer import Writer, WriteStep
from tessera.resources.api_resources import MODEL_PROVIDERS, MODEL_ROUTES


class RouteApplier:
    """Writes the status of each route and provider that changed; nothing else is decided here."""

    def __init__(self, writer: Writer, store: Store, config: Config) -> None:
        self._writer, self._store, self._config = writer, store, config
        self._incremental = Incremental()

    def work(self, snapshot: Snapshot, plan: Plan) -> Iterator[Work]:
        """Yield the work of objects whose status is not as it is in the cluster."""
        enabled = self._config.providers
        for provider in snapshot.providers:
            known = provider_status(provider, snapshot.at, enabled=enabled)
            if known != provider.status:
                write = partial(self.write_provider_status, provider, known)
                yield Work(work_key(MODEL_PROVIDERS, provider.ref, Stage.STATUS), write)
        routes = plan_inputs(self._store, MODEL_ROUTES, ObservedRoute)
        if not routes:
            return
        statuses = self._incremental.run(
            route_statuses,
            *(routes, snapshot.services, plan.budgets, snapshot.at),
            gateways=self._config.gateways,
            providers=snapshot.providers if enabled else None,
        )
        for route in routes:
            status = statuses[route.ref]
            if status != route.status:
                write = partial(self.write_route_status, route, status)
                yield Work(work_key(MODEL_ROUTES, route.ref, Stage.STATUS), write)

    @WriteStep
    async def write_provider_status(
        self, provider: ObservedProvider, status: ModelProviderStatus
    ) -> list[str]:
        """Write a status; return what was refused."""
        return await self._writer.apply_status(MODEL_PROVIDERS, provider.ref, status, provider.uid)

    @WriteStep
    async def write_route_status(self, route: ObservedRoute, status: ModelRouteStatus) -> list[str]:
        """Write a status; return what was refused."""
        return await self._writer.apply_status(MODEL_ROUTES, route.ref, status, route.uid)
