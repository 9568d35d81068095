"""What a former process left in place is applied again by this one, but not all at once.

A process knows what it applied itself. What it finds is most likely as it should be, and applying
thousands of objects would keep everybody waiting; so some are applied in every turn. What is
touched meanwhile is applied at once.
"""

from collections.abc import Collection

from tessera.domain.allotment import ServicePlan
from tessera.domain.reasons import Progressing
from tessera.domain.snapshot import Ref
from tessera.ports import ClusterObject
from tessera.resources.manifest import Key

SERVICES_A_TURN = 60


class Inheritance:
    """Services whose objects this process found and has not applied yet."""

    def __init__(self) -> None:
        self._found: dict[Key, str | None] = {}
        self._waiting: dict[Ref, None] = {}
        self._due: Collection[Ref] = ()
        self._left = 0

    def turn(self) -> Collection[Ref]:
        """Begin a turn; whose objects are applied in it although nothing changed."""
        self._due = tuple(self._waiting)[:SERVICES_A_TURN]
        self._left = SERVICES_A_TURN - len(self._due)
        for ref in self._due:
            del self._waiting[ref]
        return self._due

    def take(self, ref: Ref, objects: Collection[ClusterObject]) -> bool:
        """May the objects of a service wait? Each is taken as it was when it was found first."""
        touched = [
            self._found.setdefault(one.key, one.owned_fields_digest) != one.owned_fields_digest
            for one in objects
        ]
        if any(touched) or ref in self._due:
            return False
        if ref in self._waiting:
            return True
        if self._left > 0:
            self._left -= 1
            return False
        self._waiting[ref] = None
        return True

    def forget(self, known: Collection[Ref]) -> None:
        """Services that are gone wait for nothing."""
        for ref in self._waiting.keys() - set(known):
            del self._waiting[ref]


def is_inherited(allotment: ServicePlan) -> bool:
    """A former process brought the service to where it is wanted now, as far as can be seen."""
    status, workload = allotment.service.status, allotment.workload
    failed = any(one.reason == Progressing.APPLY_FAILED for one in status.conditions)
    return (
        workload is not None
        and workload.replicas == allotment.drain.replicas
        and not allotment.removable_deployments
        and not failed
        and status.observed_generation == allotment.service.generation
        and allotment.template is not None
        and allotment.template.record == status.recipe
    )
