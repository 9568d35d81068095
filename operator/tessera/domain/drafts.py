"""The drafts of all services, in the order in which they choose their hardware."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from tessera.domain import autoscale
from tessera.domain.autoscale import Memory
from tessera.domain.draft import (
    Draft,
    Held,
    Holding,
    Taken,
    drafted,
    held_by,
    remembered,
    take,
)
from tessera.domain.kept import Last
from tessera.domain.load import grown_up, read
from tessera.domain.model.facts import ErrandJob
from tessera.domain.model.prepare import recalled
from tessera.domain.pools import PoolView
from tessera.domain.reasons import Accepted
from tessera.domain.snapshot import Node, Pod, PodReading, Ref, Service, Snapshot, Workload


@dataclass(frozen=True, slots=True, kw_only=True)
class _KeptDraft:
    """A draft, and all that it was made of."""

    service: Service
    draft: Draft
    views: Sequence[PoolView]
    readings: tuple[PodReading | None, ...]
    until: datetime | None
    """From then on time alone may change it."""


class KeptDrafts:
    """What earlier turns found, by the identity of what it was made of."""

    def __init__(self) -> None:
        self.at: datetime | None = None
        """When the last plan was made."""
        self.recalled = Last(self._recalled)
        self.holdings = Last(self._holdings)
        self.ranked = Last(_ranked)
        self.known: dict[Ref, _KeptDraft] = {}
        self._held: Mapping[Ref, tuple[Held, Holding]] = {}
        self._services: Mapping[Ref, tuple[Service, Service]] = {}

    def _recalled(self, services: tuple[Service, ...]) -> tuple[Service, ...]:
        """With the shapes that were read; a service that did not change is the same object."""
        old = self._services
        self._services = {
            one.ref: old[one.ref]
            if one.ref in old and old[one.ref][0] is one
            else (one, recalled(one))
            for one in services
        }
        found = tuple([self._services[one.ref][1] for one in services])
        same = all(new is one for new, one in zip(found, services, strict=True))
        return services if same else found

    def _holdings(
        self,
        services: Sequence[Service],
        pods: Sequence[Pod],
        workloads: Sequence[Workload],
        nodes: Sequence[Node],
        errands: Sequence[ErrandJob],
    ) -> Mapping[Ref, Holding]:
        old = self._held
        self._held = {
            ref: (old[ref] if ref in old and old[ref][0] == held else (held, held.sorted))
            for ref, held in held_by(services, pods, workloads, nodes, errands).items()
        }
        return {ref: holding for ref, (_, holding) in self._held.items()}


def drafts(
    snapshot: Snapshot, views: Sequence[PoolView], taken: Taken, kept: KeptDrafts
) -> Mapping[Ref, Draft]:
    """In the order in which they choose."""
    holdings = kept.holdings(
        snapshot.services, snapshot.pods, snapshot.workloads, snapshot.nodes, snapshot.errands
    )
    believed = read(snapshot.readings, snapshot.at)
    found, known = {}, {}
    for service in kept.ranked(snapshot.services, holdings):
        ref, holding = service.ref, holdings[service.ref]
        readings = tuple([believed.get(pod.ref) for pod in holding.pods])
        old = kept.known.get(ref)
        if old is None or not _still_holds(old, snapshot, service, holding, views, readings):
            memory = _memory(snapshot, service, old, kept)
            draft = drafted(snapshot, service, holding, views, taken, memory)
            until = _until(snapshot, draft)
            old = _KeptDraft(
                service=service, draft=draft, views=views, readings=readings, until=until
            )
        known[ref] = old
        found[ref] = old.draft
        take(taken, old.draft)
    kept.known = known
    return found


def _still_holds(
    old: _KeptDraft,
    snapshot: Snapshot,
    service: Service,
    holding: Holding,
    views: Sequence[PoolView],
    readings: tuple[PodReading | None, ...],
) -> bool:
    draft = old.draft
    return (
        old.service is service
        and draft.holding is holding
        and old.views is views
        and snapshot.memory.get(service.ref) is draft.scale.memory
        and (old.until is None or snapshot.at < old.until)
        and old.readings == readings
    )


def _until(snapshot: Snapshot, draft: Draft) -> datetime | None:
    """How long equal input makes the same draft; no time where others' devices count too."""
    choice, workloads = draft.placement.choice, draft.holding.workloads
    if draft.accepted.reason is Accepted.PLANNER_ERROR:
        return snapshot.at
    if draft.preparation is not None and draft.preparation.pending:
        return snapshot.at
    if choice is None:
        return None
    moving = not workloads or workloads[0].variant != choice.variant
    if moving or not autoscale.is_steady(draft.scale, snapshot.at):
        return snapshot.at
    return grown_up(draft.holding.pods, snapshot.at)


def _memory(
    snapshot: Snapshot, service: Service, old: _KeptDraft | None, kept: KeptDrafts
) -> Memory:
    """What is remembered; while a draft was kept, its last wish was repeated until now."""
    memory = snapshot.memory.get(service.ref) or remembered(service.status)
    if old is None or kept.at is None or memory is not old.draft.scale.memory:
        return memory
    return autoscale.held(memory, kept.at)


def _ranked(services: Sequence[Service], holdings: Mapping[Ref, Holding]) -> Sequence[Service]:
    """In the order in which they choose: those that run before new ones."""
    return sorted(
        services,
        key=lambda one: (not holdings[one.ref].workloads, one.ref),
    )
