"""Resync after a start: objects of a previous process are applied again, a few per cycle.

A process knows only what it applied itself. Existing objects are most likely in place, and applying
thousands of them at once would delay every change; so each cycle applies some. Objects that change
meanwhile are applied at once.
"""

from collections.abc import Collection

from tessera.api.reasons import Progressing
from tessera.domain.observed.snapshot import Ref
from tessera.domain.planning.service_plan import ServicePlan
from tessera.ports import ClusterObject
from tessera.reconcile.store import forget_all_but
from tessera.resources.manifest import ObjectKey

SERVICES_PER_CYCLE = 60


class StartupResync:
    """Services whose objects existed at the start and that this process has not applied yet."""

    def __init__(self) -> None:
        self._initial: dict[ObjectKey, str | None] = {}
        self._deferred: dict[Ref, None] = {}
        self._due: Collection[Ref] = ()
        self._remaining = 0

    def begin_cycle(self) -> Collection[Ref]:
        """Begin a cycle; return the services whose unchanged objects are applied in it."""
        self._due = tuple(self._deferred)[:SERVICES_PER_CYCLE]
        self._remaining = SERVICES_PER_CYCLE - len(self._due)
        for ref in self._due:
            del self._deferred[ref]
        return self._due

    def defer(self, ref: Ref, objects: Collection[ClusterObject]) -> bool:
        """Return whether a service's objects may wait, given that they are as first observed."""
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
        """Forget services that do not exist anymore."""
        forget_all_but(known, self._deferred)


def was_reconciled_before(service_plan: ServicePlan) -> bool:
    """Return whether the status shows that a previous process reached the desired state."""
    status, variants = service_plan.service.status, service_plan.variants
    failed = any(condition.reason == Progressing.APPLY_FAILED for condition in status.conditions)
    return (
        bool(variants)
        and all(
            variant.workload is not None and variant.workload.replicas == variant.replicas
            for variant in variants
        )
        and not service_plan.removable_deployments
        and not failed
        and status.observed_generation == service_plan.service.generation
        and service_plan.template is not None
        and service_plan.template.record == status.pod_template_version
    )
