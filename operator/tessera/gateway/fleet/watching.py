"""What a gateway watches: services, routes, engines, pools, budgets, prices, providers, keys."""

import asyncio
import logging
import time
from collections.abc import Callable, Iterable, Mapping, Set
from typing import Any, NamedTuple

from tessera.api.api_resource import ApiResource
from tessera.api.ref import Ref
from tessera.domain.charge.price_book import PriceListBook, revised_book
from tessera.domain.gateway.build import GatewayObservations
from tessera.domain.kinds.kind import Process
from tessera.domain.kinds.kinds import (
    ACCELERATOR_POOLS,
    INFERENCE_SERVICES,
    MODEL_PROVIDERS,
    MODEL_ROUTES,
    PRICE_LISTS,
    TENANT_BUDGETS,
    USER_KINDS,
)
from tessera.domain.observed.providers import ProviderSecret
from tessera.domain.observed.tenant_keys import TenantKeys
from tessera.ports import Cluster
from tessera.reconcile.observe import Observations
from tessera.reconcile.reflector import Reflector, VersionRollbackError
from tessera.reconcile.store import Store
from tessera.resources.api_resources import (
    CONTROLLER_REVISIONS,
    ENGINE_PODS,
    KEY_SECRETS,
    PROVIDER_SECRETS,
)

log = logging.getLogger("tessera")

# Of GatewayObservations.
_FIELDS: Mapping[str, ApiResource] = {
    "services": INFERENCE_SERVICES,
    "routes": MODEL_ROUTES,
    "providers": MODEL_PROVIDERS,
    "revisions": CONTROLLER_REVISIONS,
    "pods": ENGINE_PODS,
    "budgets": TENANT_BUDGETS,
    "keys": KEY_SECRETS,
    "pools": ACCELERATOR_POOLS,
}
_FLEET: tuple[ApiResource, ...] = (
    *(kind for kind in USER_KINDS if Process.GATEWAY in kind.watched_by),
    CONTROLLER_REVISIONS,
    ENGINE_PODS,
)
_KEYS = (KEY_SECRETS,)


class ProviderSecrets(NamedTuple):
    """The Secrets with keys of outside providers, of an installation that has any."""

    cluster: Cluster
    """Sees their namespace."""
    update: Callable[[Iterable[ProviderSecret]], None]
    """Hears of all of them after each change."""


class FleetWatch:
    """Observes the cluster; while it cannot, the last observations stay."""

    KINDS = (*_FLEET, *_KEYS)

    def __init__(
        self,
        fleet: Cluster,
        keys: Cluster,
        changed: Callable[[], None],
        report: Callable[[TenantKeys], None],
        keys_namespace: str,
        providers: ProviderSecrets | None = None,
    ) -> None:
        """Call `changed` after each change; `keys` sees the namespaces of the Secrets of keys.

        Without `providers` neither ModelProviders nor their Secrets are watched.

        `report` hears of a Secret whose records that cannot be read are others than before. Secrets
        outside `keys_namespace` are logged, since the next version does not read them.
        """
        self._fleet, self._keys = fleet, keys
        self._changed, self._report = changed, report
        self._providers = providers
        self._fleet_kinds = tuple(
            kind for kind in _FLEET if kind is not MODEL_PROVIDERS or providers is not None
        )
        self._store = Store((*self._fleet_kinds, *_KEYS))
        self._keys_namespace = keys_namespace
        self._malformed: Mapping[Ref, Mapping[str, str]] = {}
        self._outside: Set[Ref] = frozenset()
        self._prices = PriceListBook()

    def observations(self) -> GatewayObservations | None:
        """Return what is observed; None until everything was listed."""
        if not self._store.complete:
            return None
        inputs: dict[str, Any] = {
            field: self._store.plan_inputs(kind)
            for field, kind in _FIELDS.items()
            if kind in self._fleet_kinds or kind in _KEYS
        }
        self._report_malformed(inputs["keys"])
        self._warn_of_outside(inputs["keys"])
        lists: Any = self._store.plan_inputs(PRICE_LISTS)
        self._prices = revised_book(self._prices, lists, time.time())
        return GatewayObservations(**inputs, prices=self._prices)

    async def run(self) -> None:
        """Watch until etcd is restored; the next run lists everything again."""
        # A loop here could miss its cancellation: up to Python 3.12 a TaskGroup that fails while it
        # is cancelled raises its errors alone.
        try:
            async with asyncio.TaskGroup() as group:
                watched = (self._fleet, self._fleet_kinds), (self._keys, _KEYS)
                for cluster, kinds in watched:
                    group.create_task(_watch(cluster, self._store, kinds, self._changed))
                if self._providers is not None:
                    group.create_task(_watch_secrets(self._providers))
        except* VersionRollbackError as errors:
            log.warning("%s", _first_cause(errors))
            self._store = Store((*self._fleet_kinds, *_KEYS))

    def _report_malformed(self, keys: tuple[TenantKeys, ...]) -> None:
        for secret in keys:
            if secret.malformed and self._malformed.get(secret.secret) != secret.malformed:
                self._report(secret)
        self._malformed = {secret.secret: secret.malformed for secret in keys}

    def _warn_of_outside(self, keys: tuple[TenantKeys, ...]) -> None:
        outside = {key.secret for key in keys if key.secret.namespace != self._keys_namespace}
        for secret in sorted(outside - self._outside):
            log.warning(
                "Secret/%s has keys outside namespace %s, which the next version does not read: "
                "move it as docs/tasks/upgrade.md says",
                secret,
                self._keys_namespace,
            )
        self._outside = outside


async def _watch(
    cluster: Cluster, store: Store, kinds: tuple[ApiResource, ...], changed: Callable[[], None]
) -> None:
    reflector = Reflector(cluster, store, Observations(), lambda _: changed(), kinds)
    await reflector.list_all()
    changed()
    await reflector.run()


async def _watch_secrets(providers: ProviderSecrets) -> None:
    # They have their own store: requests for services wait neither for them nor for their rights.
    store = Store((PROVIDER_SECRETS,))

    def changed() -> None:
        secrets = store.plan_inputs(PROVIDER_SECRETS)
        providers.update(each for each in secrets if isinstance(each, ProviderSecret))

    await _watch(providers.cluster, store, (PROVIDER_SECRETS,), changed)


def _first_cause(error: BaseException) -> BaseException:
    return _first_cause(error.exceptions[0]) if isinstance(error, BaseExceptionGroup) else error
