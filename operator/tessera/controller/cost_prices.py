"""The prices by cost of PriceLists: measured once a day, and written before their day begins."""

import asyncio
import logging
from collections.abc import Sequence
from datetime import date, timedelta

from tessera.adapters.prometheus.metrics import PrometheusMetrics
from tessera.adapters.prometheus.statements import read_statements
from tessera.adapters.prometheus.usage import token_queries, tokens_of
from tessera.domain.budget.budgets import grants_in_force, namespace_claims
from tessera.domain.cost.cost_prices import (
    DAY,
    ServiceDay,
    day_begin,
    lacks_price,
    next_status,
    service_days,
)
from tessera.domain.gateway.name_rights import name_rights
from tessera.domain.kinds.kinds import INFERENCE_SERVICES, TENANT_BUDGETS
from tessera.domain.observed.price_lists import ObservedPriceList
from tessera.domain.observed.snapshot import Budget, ObservedService
from tessera.ports import Clock, Cluster, ClusterError, MetricsError
from tessera.reconcile.observe import plan_inputs
from tessera.reconcile.store import Store
from tessera.reconcile.writing.writer import Writer, attempt
from tessera.resources.api_resources import PRICED_LISTS
from tessera.resources.manifest import partial_manifest, wire_format

log = logging.getLogger("tessera")

_INTERVAL_SECONDS = 60.0
# So long after its end a day has all its scrapes.
_CLOSING = timedelta(minutes=5)


class CostPricing:
    """Writes into PriceLists what their entries with `fromCost` cost tomorrow."""

    def __init__(
        self,
        cluster: Cluster,
        store: Store,
        writer: Writer,
        metrics: PrometheusMetrics,
        clock: Clock,
    ) -> None:
        self._cluster = cluster
        self._store = store
        self._writer = writer
        self._metrics = metrics
        self._clock = clock
        self._measured: tuple[date, Sequence[ServiceDay]] | None = None
        """The last day that was read, so that each is read once."""

    async def run(self) -> None:
        """Write forever."""
        while True:
            await asyncio.sleep(_INTERVAL_SECONDS)
            await self.write()

    async def write(self) -> None:
        """Write the prices of tomorrow that are missing; what fails is logged and tried again."""
        now = self._clock()
        today = now.date()
        if now < day_begin(today) + _CLOSING:
            return
        try:
            listing = await self._cluster.list(PRICED_LISTS)
            lists = [
                (each.plan_input, each.uid)
                for each in (listing.items if listing is not None else ())
                if isinstance(each.plan_input, ObservedPriceList)
                and lacks_price(each.plan_input, today)
            ]
            days = await self._days(today - DAY) if lists else ()
        except (ClusterError, MetricsError) as error:
            log.warning("no prices by cost: %s", error)
            return
        budgets = plan_inputs(self._store, TENANT_BUDGETS, Budget)
        rights = name_rights(grants_in_force(namespace_claims(budgets)))
        for price_list, uid in lists:
            status = next_status(price_list, today, days, rights)
            if status != price_list.status:
                manifest = partial_manifest(
                    PRICED_LISTS,
                    {"name": price_list.name, "uid": uid},
                    status=wire_format(status),
                )
                for refusal in await attempt(self._writer.send(manifest, "status")):
                    log.error("prices by cost refused: %s", refusal)

    async def _days(self, day: date) -> Sequence[ServiceDay]:
        """Return what services cost on a day; raises MetricsError on failure."""
        if self._measured is None or self._measured[0] != day:
            begin, end = day_begin(day), day_begin(day) + DAY
            statement, _ = await read_statements(self._metrics, begin, end)
            queries = token_queries(self._metrics.gateway_target, begin, end)
            tokens = tokens_of(await self._metrics.query_union(queries, end))
            services = plan_inputs(self._store, INFERENCE_SERVICES, ObservedService)
            self._measured = day, service_days(day, statement, tokens, services)
        return self._measured[1]
