"""What a former process left in place is applied again by this one, but not all at once.

A process knows what it applied itself. What it finds is most likely as it should be, and applying
thousands of objects would keep everybody waiting; so some are applied in every turn. What is
touched meanwhile is applied at once.
"""

from collections.abc import Collection

from tessera.api.reasons import Progressing
from tessera.domain.observed.snapshot import Ref
from tessera.domain.service_plan import ServicePlan
from tessera.ports import ClusterObject
from tessera.resources.manifest import ObjectKey

SERVICES_PER_CYCLE = 60


class StartupResync:
    """Services whose objects this process found and has not applied yet."""

    def __init__(self) -> None:
        self._initial: dict[ObjectKey, str | None] = {}
        self._deferred: dict[Ref, None] = {}
        self._due: Collection[Ref] = ()
        self._remaining = 0

    def begin_cycle(self) -> Collection[Ref]:
        """Begin a turn; whose objects are applied in it although nothing changed."""
        self._due = tuple(self._deferred)[:SERVICES_PER_CYCLE]
        self._remaining = SERVICES_PER_CYCLE - len(self._due)
        for ref in self._due:
            del self._deferred[ref]
        return self._due

    def defer(self, ref: Ref, objects: Collection[ClusterObject]) -> bool:
        """May the objects of a service wait? Each is taken as it was when it was found first."""
        changed = [
            self._initial.setdefault(observed.key, observed.owned_fields_digest)
            != observed.owned_fields_digest
            for observed in objects
        ]
        if any(changed) or ref in self._due:
            return False
        if ref in self._deferred:
            return True
        if self._remaining > 0:
            self._remaining -= 1
            return False
        self._deferred[ref] = None
        return True

    def forget(self, known: Collection[Ref]) -> None:
        """Services that are gone wait for nothing."""
        for ref in self._deferred.keys() - set(known):
            del self._deferred[ref]


def was_reconciled_before(service_plan: ServicePlan) -> bool:
    """A former process brought the service to where it is wanted now, as far as can be seen."""
    status, workload = service_plan.service.status, service_plan.workload
    failed = any(condition.reason == Progressing.APPLY_FAILED for condition in status.conditions)
    return (
        workload is not None
        and workload.replicas == service_plan.drain.replicas
        and not service_plan.removable_deployments
        and not failed
        and status.observed_generation == service_plan.service.generation
        and service_plan.template is not None
        and service_plan.template.record == status.recipe
    )
