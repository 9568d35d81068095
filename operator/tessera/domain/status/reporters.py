"""What is reported of kinds on which no other decision waits: a row for each."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, NamedTuple

from pydantic import BaseModel

from tessera.api.model_provider import ModelProviderStatus
from tessera.api.model_route import ModelRouteStatus
from tessera.api.ref import Ref
from tessera.domain.config import Config
from tessera.domain.kinds.kind import Kind
from tessera.domain.kinds.kinds import MODEL_PROVIDERS, MODEL_ROUTES
from tessera.domain.observed.object import ObservedT
from tessera.domain.observed.providers import ObservedProvider
from tessera.domain.observed.routes import ObservedRoute
from tessera.domain.observed.snapshot import Snapshot
from tessera.domain.planning.plan import Plan
from tessera.domain.status.providers import provider_status
from tessera.domain.status.routes import route_statuses


class Report(NamedTuple):
    """The status of an object, which it may have already."""

    kind: Kind[Any]
    observed: Any
    status: BaseModel


@dataclass(frozen=True, slots=True)
class Reporter(Generic[ObservedT]):
    """Says what the status of each object of a kind is."""

    kind: Kind[ObservedT]
    statuses: Callable[[Sequence[ObservedT], Snapshot, Plan, Config], Mapping[Ref, BaseModel]]


def _providers(
    providers: Sequence[ObservedProvider], snapshot: Snapshot, _: Plan, config: Config
) -> Mapping[Ref, ModelProviderStatus]:
    return {
        each.ref: provider_status(each, snapshot.at, enabled=config.providers) for each in providers
    }


def _routes(
    routes: Sequence[ObservedRoute], snapshot: Snapshot, plan: Plan, config: Config
) -> Mapping[Ref, ModelRouteStatus]:
    return route_statuses(
        *(routes, snapshot.services, plan.budgets, snapshot.at),
        gateways=config.gateways,
        providers=snapshot.of(MODEL_PROVIDERS) if config.providers else None,
    )


REPORTERS: tuple[Reporter[Any], ...] = (
    Reporter(MODEL_PROVIDERS, _providers),
    Reporter(MODEL_ROUTES, _routes),
)


def reports(snapshot: Snapshot, plan: Plan, config: Config) -> Iterator[Report]:
    """Yield the status of each object of these kinds."""
    for reporter in REPORTERS:
        if objects := snapshot.of(reporter.kind):
            statuses = reporter.statuses(objects, snapshot, plan, config)
            for each in objects:
                yield Report(reporter.kind, each, statuses[each.ref])
