"""Write what gates decide: their statuses, Jobs and claims, and the versions of services."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from functools import partial

from tessera.api.ref import Ref
from tessera.domain.config import Config
from tessera.domain.kinds.kinds import QUALITY_GATES
from tessera.domain.observed.gates import ObservedGate, ServiceRevision
from tessera.domain.observed.snapshot import Snapshot
from tessera.domain.planning.plan import Plan
from tessera.domain.planning.service_plan import GatedPlan, ServicePlan
from tessera.domain.quality.gates import GatePlan
from tessera.domain.quality.rollout_state import NUMBERED_PHASES
from tessera.domain.status.rollouts import gate_status, is_recorded
from tessera.domain.status.service import service_status
from tessera.reconcile.store import forget_all_but
from tessera.reconcile.writing.shared_objects import Installation
from tessera.reconcile.writing.write_order import Stage, Work, work_key
from tessera.reconcile.writing.writer import Writer, WriteStep, attempt
from tessera.resources.api_resources import CONTROLLER_REVISIONS, JOBS
from tessera.resources.children import namespace_owners
from tessera.resources.gate_job import (
    answers_claim_manifest,
    gate_job_manifest,
    gateway_of,
    shared_manifests,
)
from tessera.resources.manifest import ObjectKey
from tessera.resources.revisions import revision_manifest


class GateApplier:
    """Carries out the plans of gates."""

    def __init__(self, writer: Writer, config: Config, installation: Installation) -> None:
        self._writer = writer
        self._config = config
        self._installation = installation
        self.problems: dict[Ref, list[str]] = {}
        """What was refused when a gate or the versions of a service were written last."""

    def work(self, snapshot: Snapshot, plan: Plan) -> Iterator[Work]:
        """Yield the work of gates, and of services whose versions are not recorded as planned."""
        forget_all_but({*plan.gates, *plan.service_plans}, self.problems)
        by_namespace = defaultdict[str, list[ObservedGate]](list)
        for ref in sorted(plan.gates):
            by_namespace[ref.namespace].append(plan.gates[ref].gate)
        for ref, gate_plan in plan.gates.items():
            status = gate_status(gate_plan, snapshot.at)
            if gate_plan.create or gate_plan.delete or status != gate_plan.gate.status:
                apply = partial(self._apply, snapshot, plan, gate_plan, by_namespace[ref.namespace])
                stage = Stage.CHILDREN if gate_plan.create else Stage.STATUS
                yield Work(work_key(QUALITY_GATES, ref, stage), apply)
        for ref, service_plan in plan.service_plans.items():
            gated = service_plan.gated
            if gated is not None and _has_changes(snapshot, service_plan, gated):
                record = partial(self._record, snapshot, service_plan, gated)
                yield Work(work_key(CONTROLLER_REVISIONS, ref, Stage.CHILDREN), record)

    async def _apply(
        self, snapshot: Snapshot, plan: Plan, gate_plan: GatePlan, gates: Sequence[ObservedGate]
    ) -> None:
        self.problems[gate_plan.gate.ref] = await self.write_gate(snapshot, plan, gate_plan, gates)

    @WriteStep
    async def write_gate(
        self, snapshot: Snapshot, plan: Plan, gate_plan: GatePlan, gates: Sequence[ObservedGate]
    ) -> list[str]:
        """Write what Jobs said, then delete these and create the next; return what was refused."""
        gate, problems = gate_plan.gate, list[str]()
        status = gate_status(gate_plan, snapshot.at)
        if status != gate.status:
            problems += await self._writer.apply_status(QUALITY_GATES, gate.ref, status, gate.uid)
        # A verdict that is not written is read from its Job again.
        for ref in () if problems else gate_plan.delete:
            key = ObjectKey(JOBS.plural, ref.namespace, ref.name)
            problems += await attempt(self._writer.delete(JOBS, key))
        if problems or gate_plan.create is None:
            return problems
        shared_by = namespace_owners(plan.service_plans, {})
        namespace = gate.ref.namespace
        closed = next((each.closed for each in shared_by if each.namespace == namespace), ())
        image = self._installation.batch_image
        gateway = gateway_of(gate_plan.create, image)
        shared = shared_manifests(gates, closed, self._installation.namespace, gateway=gateway)
        claim, platform = answers_claim_manifest(gate), self._installation.platform
        manifests = (*shared, *((claim,) if claim is not None else ()))
        refusals, _ = await self._writer.apply_changed(manifests)
        if refusals:
            return refusals
        job = gate_job_manifest(gate_plan.create, image, platform)
        return await attempt(self._writer.apply(job))

    async def _record(
        self, snapshot: Snapshot, service_plan: ServicePlan, gated: GatedPlan
    ) -> None:
        ref = service_plan.service.ref
        self.problems[ref] = await self.write_versions(snapshot, service_plan, gated)

    @WriteStep
    async def write_versions(
        self, snapshot: Snapshot, service_plan: ServicePlan, gated: GatedPlan
    ) -> list[str]:
        """Record the edited version, and which one is in force; delete those of long ago."""
        state, problems = gated.state, list[str]()
        if state.edited is None and gated.is_resolved:
            revision = _new_revision(snapshot, service_plan, gated)
            problems += await attempt(self._writer.apply(revision_manifest(revision)))
        elif state.promoted is not None and _is_due(snapshot, service_plan, gated):
            problems += await attempt(self._writer.apply(revision_manifest(state.promoted)))
        elif (changed := gated.changed_revision) is not None:
            problems += await attempt(self._writer.apply(revision_manifest(changed)))
        for ref in state.obsolete:
            key = ObjectKey(CONTROLLER_REVISIONS.plural, ref.namespace, ref.name)
            problems += await attempt(self._writer.delete(CONTROLLER_REVISIONS, key))
        return problems


def _is_due(snapshot: Snapshot, service_plan: ServicePlan, gated: GatedPlan) -> bool:
    """Return whether the edited version gets a number now."""
    status = service_plan.service.status
    return gated.state.phase in NUMBERED_PHASES and is_recorded(gated, status, snapshot.at)


def _has_changes(snapshot: Snapshot, service_plan: ServicePlan, gated: GatedPlan) -> bool:
    state = gated.state
    return (
        (state.edited is None and gated.is_resolved)
        or (state.promoted is not None and _is_due(snapshot, service_plan, gated))
        or gated.changed_revision is not None
        or bool(state.obsolete)
    )


def _new_revision(
    snapshot: Snapshot, service_plan: ServicePlan, gated: GatedPlan
) -> ServiceRevision:
    """Return the edited version as it is recorded: all that its templates are made from."""
    state, service = gated.state, service_plan.service
    # What it was resolved to, as the status says it.
    resolved = service_status(snapshot, service_plan.candidate or service_plan, None, None)
    return ServiceRevision(
        ref=Ref(service.ref.namespace, state.revision_name),
        service=service.ref,
        service_uid=service.uid,
        number=state.next_number if _is_due(snapshot, service_plan, gated) else 0,
        digest=state.digest,
        spec=state.spec,
        update=state.update,
        model=resolved.model,
        precisions=resolved.precisions,
        builder_version=gated.builder_version,
        readiness="Pending",
        tried=service_plan.served_precisions if state.phase == "First" else None,
    )
