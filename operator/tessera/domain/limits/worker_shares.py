"""How the workers of a gateway divide the replicas of a model while requests wait.

Each worker has a queue of its own. A place that becomes free is taken by the worker whose request
ended, so without this division a worker would keep the places that it once got, whatever waits at
the others.
"""

from collections import Counter
from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import TypeVar

WorkerT = TypeVar("WorkerT", bound=Hashable)


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerShare:
    """What of a model one worker may use."""

    places: float
    """Its share of the model's places."""
    tenants: Mapping[str, float]
    """Its share of the requests of each tenant that has one here."""


def worker_shares(
    requests: Mapping[WorkerT, Mapping[str, int]], weights: Mapping[str, float]
) -> Mapping[WorkerT, WorkerShare]:
    """Return the shares of all workers; those of the places add up to 1.

    `requests` are those that wait or run, by worker and tenant. The tenants share by their weights,
    1 where none is given, and each has its share where its requests are.
    """
    totals = Counter[str]()
    for of_worker in requests.values():
        totals.update(of_worker)
    tenant_weights = {tenant: weights.get(tenant, 1.0) for tenant, count in totals.items() if count}
    weight = sum(tenant_weights.values())
    shares = {}
    for worker, of_worker in requests.items():
        tenants = {tenant: count / totals[tenant] for tenant, count in of_worker.items() if count}
        places = sum(tenant_weights[tenant] * share for tenant, share in tenants.items())
        shares[worker] = WorkerShare(places=places / weight if weight else 0.0, tenants=tenants)
    return shares
