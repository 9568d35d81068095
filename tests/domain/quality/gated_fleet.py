"""A service with a gate in a cluster in memory, and who records its versions and verdicts."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import Any, get_args

from typing_extensions import override

from tessera.api.precision import CHECKPOINT, PrecisionName
from tessera.api.quality_gate import (
    QualityGateSpec,
    QualityGateStatus,
    SuiteStatus,
    VerdictStatus,
)
from tessera.api.ref import Ref
from tessera.api.rollout import RolloutRecord
from tessera.api.service_status import CandidateStatus
from tessera.api.template_version import PodTemplateVersionStatus
from tessera.domain.incremental import Incremental
from tessera.domain.observed.gates import ObservedGate, ServiceRevision
from tessera.domain.observed.snapshot import ObservedService, Pod, Snapshot
from tessera.domain.planning.plan import plan
from tessera.domain.planning.service_plan import GatedPlan, ServicePlan
from tessera.domain.quality.change import gated_digest
from tessera.domain.quality.gate_jobs import verdict_scorer
from tessera.domain.quality.rollout_state import VersionState, digest_of, tried_precisions
from tessera.domain.status.service import service_status
from tests.builders import (
    NOW,
    a_node,
    a_pool,
    a_service,
    a_spec,
    a_template_workload,
    readings_of,
)
from tests.domain.variant_fleet import CHAT, VariantFleet

GATE = Ref("team-a", "answers")
SUITE = "a" * 64
A_CHANGE: dict[str, Any] = {"engine": {"extraArgs": ["--seed=7"]}}


def an_always_open_window() -> dict[str, Any]:
    return {"gateWindow": {"cron": "0 * * * *", "duration": "1h"}}


def precision_of(variant: str) -> str:
    return next(
        (name for name in get_args(PrecisionName) if variant.endswith(f"-{name}")), CHECKPOINT
    )


def version_of(record: PodTemplateVersionStatus | None) -> str:
    return ((record.gated if record is not None else None) or "").split("/")[0]


def a_gated_spec(floor: int = 2, **fields: Any) -> Any:
    rollout = {"strategy": "Gated", "gateRef": GATE.name, **fields.pop("rollout", {})}
    bounds = {"minReplicas": floor, "maxReplicas": max(floor, 8), "idle": {"after": "10m"}}
    scaling = {**bounds, **fields.pop("scaling", {})}
    return a_spec(rollout=rollout, scaling=scaling, **fields)


def a_gate_spec(**fields: Any) -> QualityGateSpec:
    return QualityGateSpec.model_validate({"suite": {"configMap": {"name": "suite"}}, **fields})


def a_first_revision(service: ObservedService, **fields: Any) -> ServiceRevision:
    """Return the version of a service that is in force, without what a change wrote since."""
    spec = a_gated_spec() if service.spec is None else service.spec
    stable = spec.model_copy(update={"engine": type(spec.engine)()})
    return ServiceRevision(
        **{
            "ref": Ref(service.ref.namespace, f"{service.ref.name}-1"),
            "service": service.ref,
            "service_uid": service.uid,
            "number": 1,
            "digest": gated_digest(stable),
            "spec": stable,
            **fields,
        }
    )


@dataclass
class GatedVariantFleet(VariantFleet):
    """A cluster with a service whose changes wait for a gate."""

    require: str = "NotWorse"
    has_gate: bool = True
    revisions: dict[Ref, ServiceRevision] = field(default_factory=dict)
    verdicts: tuple[VerdictStatus, ...] = ()
    records: tuple[RolloutRecord, ...] = ()
    promoted: set[str] = field(default_factory=set)
    """Digests of the versions that were in force."""
    waiting: float | None = None
    """Requests that wait at each replica; None while no metrics are read."""
    allowed: set[str] = field(default_factory=set)
    """The same with the precisions that may serve."""
    served: set[str] = field(default_factory=set)
    """The same with the precisions that served."""

    @property
    def gated(self) -> GatedPlan:
        gated = self.plans[CHAT].gated
        assert gated is not None
        return gated

    @property
    def state(self) -> VersionState:
        return self.gated.state

    @override
    def snapshot(self) -> Snapshot:
        spec = a_gate_spec(require=self.require)
        status = QualityGateStatus(
            suite=SuiteStatus(digest=SUITE, prompts={"all": 40}), verdicts=self.verdicts
        )
        gate = ObservedGate(ref=GATE, uid="uid-gate", generation=1, spec=spec, status=status)
        snapshot = super().snapshot()
        if self.waiting is not None:
            readings = readings_of(snapshot.pods, at=snapshot.at, waiting=self.waiting)
            snapshot = replace(snapshot, readings=readings)
        return replace(
            snapshot,
            gates=(gate,) if self.has_gate else (),
            revisions=tuple(self.revisions.values()),
        )

    @override
    def cycle(self, seconds: float = 5) -> ServicePlan:
        service_plan = super().cycle(seconds)
        self._record(service_plan)
        self.serving()
        assert self.served <= self.allowed or not self.allowed, self.describe()
        return service_plan

    def edit(self, **fields: Any) -> None:
        self.service = replace(
            self.service,
            generation=self.service.generation + 1,
            spec=a_gated_spec(**fields),
        )

    def tried_precision(self) -> str:
        """Return the precision of the replica that is tried."""
        return next((precision_of(pod.variant) for pod in self.tried_pods()), CHECKPOINT)

    def decide_on_candidate(self, reason: str) -> None:
        """Let the gate decide on the version that waits."""
        candidate, stable = self.state.candidate, self.state.stable
        assert candidate is not None, self.state.phase
        assert stable is not None
        verdict = VerdictStatus(
            service=CHAT.name,
            candidate=digest_of(candidate, self.tried_precision()),
            baseline=digest_of(stable, min(tried_precisions(stable))),
            suite=SUITE,
            scorer=verdict_scorer(a_gate_spec(require=self.require), ""),
            reason=reason,
            message="",
            decided_at=NOW,
        )
        self.verdicts = (verdict, *self.verdicts)

    def describe(self) -> str:
        """Describe versions and replicas for the message of a failed test."""
        lines = [f"{self.now} {self.gated}", *map(str, self.workloads.values())]
        return "\n".join([*lines, *map(str, self.pods.values())])

    def restart_operator(self) -> None:
        """Lose what the process knows."""
        self.memory = type(self.memory)()

    def lose_status(self) -> None:
        self.service = replace(self.service, status=type(self.service.status)())

    def tried_pods(self) -> list[Pod]:
        """Return the replicas of the version that is tried."""
        candidate = self.plans[CHAT].candidate
        if candidate is None:
            return []
        digests = {variant.template.digest for variant in candidate.variants}
        return [pod for pod in self.pods.values() if pod.template_digest in digests]

    def serving(self) -> Mapping[str, int]:
        """Return the replicas that take requests, by the digest of their version."""
        counts = dict[str, int]()
        by_template = {
            (each.variant, each.template_digest): each.record for each in self.workloads.values()
        }
        for pod in self.pods.values():
            if pod.takes_requests and pod.draining_since is None:
                record = by_template.get((pod.variant, pod.template_digest))
                version = version_of(record)
                if pod.service == CHAT:
                    self.served.add(f"{version}/{precision_of(pod.variant)}")
                counts[version] = counts.get(version, 0) + 1
        return counts

    @override
    def _apply(self, service_plan: ServicePlan) -> None:
        candidate = service_plan.candidate
        tried = {pod.ref: pod for pod in (candidate.pods if candidate is not None else ())}
        before = {ref: self.pods[ref] for ref in tried if ref in self.pods}
        super()._apply(service_plan)
        # Pods that the plan did not see yet keep a gate that never opened.
        known = {pod.ref for pod in service_plan.pods}
        for ref, pod in list(self.pods.items()):
            if ref in before:
                self.pods[ref] = replace(before[ref], serving=False, leaving=True)
            elif ref not in known:
                self.pods[ref] = replace(pod, serving=None, ready_since=None)
            else:
                self.pods[ref] = replace(pod, leaving=pod.draining_since is not None)
        if candidate is None:
            return
        for variant in candidate.variants:
            hardware = variant.choice.offer.hardware
            self.devices[variant.choice.variant] = hardware.resource, hardware.devices
            if variant.waits or candidate.pinned_revision.query is not None:
                continue
            workload = variant.workload or a_template_workload(
                variant.template.record,
                0,
                CHAT.name,
                variant=variant.choice.variant,
                created=NOW + self.now,
            )
            self.workloads[workload.ref] = replace(
                self.workloads.get(workload.ref, workload),
                record=variant.template.record,
                replicas=variant.replicas,
            )
        for ref in candidate.removable_deployments:
            for pod in self._pods_of(self.workloads.pop(ref)):
                self._delete(pod)

    @override
    def _run_controllers(self) -> None:
        super()._run_controllers()
        at = NOW + self.now
        for ref, pod in self.pods.items():
            if pod.bound is None or pod.containers_ready or pod.terminating:
                continue
            record = next(
                (each.record for each in self.workloads.values() if pod in self._pods_of(each)),
                None,
            )
            if at - pod.bound >= self.start and not self.is_broken(record):
                self.pods[ref] = replace(pod, containers_ready=True)

    @override
    def _gets_ready(self, pod: Pod, at: Any) -> bool:
        # The operator opens the gate of a replica whose containers are ready.
        return False

    def _record(self, service_plan: ServicePlan) -> None:
        """Record versions, and what is known of the one that is tried, as the operator does."""
        gated = service_plan.gated
        if gated is None:
            return
        state = gated.state
        if gated.is_resolved and state.edited is None:
            resolved = service_plan.candidate or service_plan
            status = service_status.function(self.snapshot(), resolved, None, None)
            ref = Ref(CHAT.namespace, state.revision_name)
            self.revisions[ref] = ServiceRevision(
                ref=ref,
                service=CHAT,
                service_uid=self.service.uid,
                number=1 if state.phase == "First" else 0,
                digest=state.digest,
                spec=state.spec,
                update=state.update,
                model=status.model,
                precisions=status.precisions,
                builder_version=gated.builder_version,
                tried=service_plan.served_precisions if state.phase == "First" else None,
            )
        if (promoted := state.promoted) is not None:
            self.revisions[promoted.ref] = promoted
        self.promoted |= {each.digest for each in self.revisions.values() if each.number}
        self.allowed |= {
            f"{each.digest}/{name}"
            for each in self.revisions.values()
            if each.number
            for name in tried_precisions(each)
        }
        for ref in state.obsolete:
            self.revisions.pop(ref, None)
        if gated.is_overdue and not any(each.digest == state.digest for each in self.records):
            record = RolloutRecord(
                revision=state.revision_name,
                digest=state.digest,
                reason="ProgressDeadlineExceeded",
                ended_at=NOW + self.now,
                is_refused=True,
            )
            self.records = (record, *self.records)
        candidate = None
        if service_plan.candidate is not None:
            status = service_status(self.snapshot(), service_plan.candidate, None, None)
            candidate = CandidateStatus(
                revision=state.revision_name,
                digest=state.digest,
                since=NOW,
                model=status.model,
                precisions=status.precisions,
                variant=status.variant,
                pod_template_version=status.pod_template_version,
                templates=status.templates,
            )
        self.service = replace(
            self.service,
            status=self.service.status.model_copy(
                update={"candidate": candidate, "rollouts": self.records}
            ),
        )


def a_gated_fleet(devices: int = 3, floor: int = 2, **fields: Any) -> GatedVariantFleet:
    """Return a service that has its first version in force, on a pool of so many GPUs."""
    incremental = Incremental()
    fleet = GatedVariantFleet(
        service=a_service(spec=a_gated_spec(floor, **fields)),
        pools=[a_pool("a100")],
        nodes=[a_node("a100", whole=devices)],
        start=timedelta(seconds=10),
        stop=timedelta(seconds=5),
        decide=lambda config, snapshot, memory: incremental.run(plan, config, snapshot, memory),
    )
    fleet.run(40)
    return fleet
