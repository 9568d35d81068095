"""Apply the objects of each service, and drain Deployments whose service is gone."""

from collections.abc import Collection, Sequence

from tessera.domain.observed.snapshot import Ref, Snapshot
from tessera.domain.planning.plan import Plan
from tessera.domain.planning.service_plan import ServicePlan
from tessera.domain.service.removed import RemovedWorkload
from tessera.ports import ClusterObject
from tessera.reconcile.store import forget_all_but
from tessera.reconcile.writing.service_work import (
    ServiceInputs,
    ServiceWork,
    inputs_unchanged,
    obsolete_objects,
    outdated_marks,
    resizes,
)
from tessera.reconcile.writing.startup_resync import StartupResync, was_reconciled_before
from tessera.reconcile.writing.writer import Writer, WriteStep, attempt
from tessera.resources import children
from tessera.resources.api_resources import DEPLOYMENTS
from tessera.resources.manifest import ObjectKey, ObjectManifest


class ChildrenApplier:
    """Keeps the objects of services as planned, and opens and closes the gates of replicas."""

    def __init__(self, writer: Writer) -> None:
        self._writer = writer
        self._manifest_cache: dict[Ref, tuple[tuple[object, ...], tuple[ObjectManifest, ...]]] = {}
        self._in_place: dict[Ref, ServiceInputs] = {}
        """The inputs of services whose objects are all in place."""
        self._startup_resync = StartupResync()

    def begin_cycle(self) -> Collection[Ref]:
        """Return the services of a previous process whose objects are applied in this cycle."""
        due = self._startup_resync.begin_cycle()
        for ref in due:
            self._in_place.pop(ref, None)
        return due

    def are_in_place(self, ref: Ref, inputs: ServiceInputs) -> bool:
        """Return whether the objects of a service are as planned."""
        return inputs_unchanged(inputs, self._in_place.get(ref))

    def were_applied(self, service_plan: ServicePlan) -> bool:
        """Return whether the objects of a service are as planned, and no replica leaves."""
        cached = self._manifest_cache.get(service_plan.service.ref)
        return (
            cached is not None
            and cached[0] == children.service_inputs(service_plan)
            and self._writer.are_in_place(cached[1])
            and not service_plan.drain.draining
            and not service_plan.previous_deployments
            and not service_plan.removable_deployments
        )

    @WriteStep
    async def apply_objects(self, work: ServiceWork) -> None:
        ref, service_plan, problems = work.ref, work.service_plan, work.problems
        if not problems and self.are_in_place(ref, work.inputs):
            return
        self._in_place.pop(ref, None)
        # Of a service that was set aside nothing is known, so its replicas stay as they are.
        pods = () if work.is_set_aside else service_plan.pods
        for manifest, subresource in outdated_marks(work.snapshot.at, pods, service_plan.drain):
            problems += await attempt(self._writer.apply(manifest, subresource))
        manifests, existing = self._manifests(service_plan), work.inputs[1]
        if not work.may_change_deployments:
            others = [item for item in manifests if item.kind is not DEPLOYMENTS]
            refusals, _ = await self._writer.apply_changed(others)
            problems += refusals
            work.in_place = False
        elif not self._may_defer(service_plan, manifests, existing):
            refusals, work.in_place = await self._writer.apply_changed(manifests)
            problems += refusals
        for deployment, replicas in sorted(resizes(work)):
            problems += await attempt(self._writer.scale(deployment, replicas))
        for kind, key in obsolete_objects(service_plan, manifests, existing):
            work.in_place = False
            problems += await attempt(self._writer.delete(kind, key))
        if work.in_place and not problems:
            # Not after a repair: the same field may be changed again before its event arrives.
            self._in_place[ref] = work.inputs

    @WriteStep
    async def drain_removed(self, snapshot: Snapshot, removed: RemovedWorkload) -> None:
        """Drain a Deployment without a service; what is refused is repeated in the next cycle."""
        for manifest, subresource in outdated_marks(snapshot.at, removed.pods, removed.drain):
            await attempt(self._writer.apply(manifest, subresource))
        if removed.workload.replicas != removed.drain.replicas:
            await attempt(self._writer.scale(removed.workload.ref, removed.drain.replicas))

    def forget(self, plan: Plan) -> set[ObjectKey]:
        """Forget services that do not exist anymore; return the keys of their objects."""
        forgotten = set[ObjectKey]()
        for ref in self._manifest_cache.keys() - plan.service_plans.keys():
            _, manifests = self._manifest_cache.pop(ref)
            forgotten |= {manifest.key for manifest in manifests}
        forget_all_but(plan.service_plans, self._in_place)
        self._startup_resync.forget(plan.service_plans.keys())
        return forgotten

    def _manifests(self, service_plan: ServicePlan) -> tuple[ObjectManifest, ...]:
        """Return the manifests of a service, rebuilt only when one of their inputs changed."""
        ref, inputs = service_plan.service.ref, children.service_inputs(service_plan)
        if ref not in self._manifest_cache or self._manifest_cache[ref][0] != inputs:
            self._manifest_cache[ref] = (inputs, children.service_manifests(service_plan))
        return self._manifest_cache[ref][1]

    def _may_defer(
        self,
        service_plan: ServicePlan,
        manifests: Sequence[ObjectManifest],
        existing: Collection[ClusterObject],
    ) -> bool:
        """Return whether the objects, applied by a previous process, may wait for a later cycle."""
        existing_keys = {observed.key for observed in existing}
        return (
            all(
                manifest.key in existing_keys and not self._writer.has_applied(manifest.key)
                for manifest in manifests
            )
            and was_reconciled_before(service_plan)
            and self._startup_resync.defer(service_plan.service.ref, existing)
        )
