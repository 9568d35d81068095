"""A gate with one change in a world of values: Jobs run, end and report as a test says."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any

from tessera.api.inference_service import Slo
from tessera.api.quality_gate import QualityGateSpec, QualityGateStatus
from tessera.api.ref import Ref
from tessera.domain.money import money
from tessera.domain.observed.gates import GateJob, GateJobRun, GateRole, ObservedGate
from tessera.domain.observed.model_reports import FetchProgress
from tessera.domain.quality.gate_jobs import GateEndpoint, GateJobRequest
from tessera.domain.quality.gates import GatePlan, TrialDecision, plan_gate
from tessera.domain.quality.trial import ChangeTrial, GateJobs, TriedVersion
from tests.builders import NOW

CHAT, GATE = Ref("team-a", "chat"), Ref("team-a", "answers")
STABLE, CHANGED = "a" * 32, "b" * 32
SUITE = "5" * 64


def a_gate_spec(**fields: Any) -> QualityGateSpec:
    suite = {"configMap": {"name": "suite"}}
    return QualityGateSpec.model_validate({"suite": suite, **fields})


def a_gate(spec: QualityGateSpec | None = None, **fields: Any) -> ObservedGate:
    return ObservedGate(
        **{
            "ref": GATE,
            "uid": "uid-gate",
            "generation": 1,
            "spec": a_gate_spec() if spec is None and "problem" not in fields else spec,
            **fields,
        }
    )


def a_version(
    digest: str = STABLE, address: str | None = "10.0.0.1", **fields: Any
) -> TriedVersion:
    return TriedVersion(
        **{
            "digest": digest,
            "endpoint": GateEndpoint(address=address, model="chat") if address else None,
            "hardware": "A100 1g.10gb",
            "variant": "a100-1g-10gb",
            "per_million_tokens": money(Decimal("0.40"), "USD"),
            **fields,
        }
    )


def a_trial(**fields: Any) -> ChangeTrial:
    return ChangeTrial(
        **{
            "at": NOW,
            "service": CHAT,
            "slo": Slo(ttft_p95=timedelta(milliseconds=500), itl_p95=timedelta(milliseconds=50)),
            "gate_ref": GATE.name,
            "gate": a_gate(),
            "baseline": a_version(),
            "candidate": a_version(CHANGED, "10.0.0.2"),
            "since": NOW,
            **fields,
        }
    )


def shares(mean_tokens: float = 100, ttft: float = 0.3, itl: float = 0.03) -> list[float]:
    return [0, 0, 0, mean_tokens, ttft, itl]


def a_stratum(name: str = "total", candidate: float = 0.8, loss: float = 0) -> list[Any]:
    return [name, 400, 0.8, candidate, loss, None, 4, False]


def a_report(request: GateJobRequest, **fields: Any) -> dict[str, Any]:
    """Return the report of a Job that ended well."""
    run = request.run
    is_judged = run.role == "Candidate"
    judged = {"verdict": "Passed", "strata": [a_stratum()]} if is_judged else {}
    return {
        "phase": "gate",
        "state": "judged" if is_judged else "answered",
        "version": run.digest,
        "baseline": run.baseline,
        "suite": SUITE,
        "scorer": run.scorer,
        "answered": 400,
        "prompts": {"all": 400},
        "answers": shares(),
        "message": "a loss of 0 points, at most 1.9.",
        **judged,
        **fields,
    }


@dataclass(slots=True)
class GateWorld:
    """What lasts beside the plan of a gate: its status, Jobs and pods."""

    trial: ChangeTrial = field(default_factory=a_trial)
    jobs: dict[str, GateJob] = field(default_factory=dict)
    runs: dict[str, GateJobRun] = field(default_factory=dict)
    requests: dict[str, GateJobRequest] = field(default_factory=dict)
    created: int = 0
    answered: Mapping[Ref, FetchProgress] = field(default_factory=dict)
    """What Jobs that run say of their progress."""

    @property
    def at(self) -> datetime:
        return self.trial.at

    @property
    def status(self) -> QualityGateStatus:
        gate = self.trial.gate
        assert gate is not None
        return gate.status

    def plan(self) -> GatePlan:
        gate = self.trial.gate
        assert gate is not None
        jobs = GateJobs(jobs=tuple(self.jobs.values()), runs=self.runs, answered=self.answered)
        return plan_gate(gate, [self.trial], jobs)

    def cycle(self, seconds: float = 5) -> TrialDecision:
        """Plan, and write what was planned; return what was decided for the change."""
        self.trial = replace(self.trial, at=self.at + timedelta(seconds=seconds))
        plan = self.plan()
        self.edit_gate(status=plan.status)
        for ref in plan.delete:
            self.delete(ref.name)
        if plan.create is not None:
            self.create(plan.create)
        return plan.decisions[CHAT]

    def ask(self, role: GateRole) -> GateJobRequest:
        """Go on until a Job asks a version in this role; return what it was created for."""
        for _ in range(6):
            if self.jobs and self.runs[self.jobs[self.job].uid].exit_code is None:
                request = self.requests[self.job]
                if request.run.role == role:
                    return request
                self.end()
            self.cycle()
        raise AssertionError(self.jobs)

    def create(self, request: GateJobRequest) -> None:
        assert request.name not in self.jobs
        self.created += 1
        uid = f"uid-job-{self.created}"
        self.requests[request.name] = request
        self.jobs[request.name] = GateJob(
            ref=Ref(GATE.namespace, request.name),
            uid=uid,
            gate=GATE,
            service=request.run.service,
            role=request.run.role,
            digest=request.run.digest,
            created=self.at,
        )
        self.runs[uid] = GateJobRun(job_uid=uid, address="10.0.0.9")

    def delete(self, name: str) -> None:
        self.runs.pop(self.jobs.pop(name).uid, None)

    def edit_gate(self, **fields: Any) -> None:
        assert self.trial.gate is not None
        self.trial = replace(self.trial, gate=replace(self.trial.gate, **fields))

    @property
    def job(self) -> str:
        """Return the name of the newest Job."""
        return max(self.jobs, key=lambda name: int(self.jobs[name].uid.rpartition("-")[2]))

    def end(self, report: Mapping[str, Any] | str | None = None, code: int = 0) -> None:
        """End the newest Job with a report, by default with one that all went well."""
        name = self.job
        if report is None:
            report = a_report(self.requests[name])
        text = report if isinstance(report, str) else json.dumps(report)
        uid = self.jobs[name].uid
        self.runs[uid] = GateJobRun(job_uid=uid, exit_code=code, report=text[:4096])

    def evict(self) -> None:
        """Take the pod of the newest Job, whose controller makes no other."""
        job = self.jobs[self.job]
        self.runs.pop(job.uid, None)
        self.jobs[job.ref.name] = replace(job, failed=True)
