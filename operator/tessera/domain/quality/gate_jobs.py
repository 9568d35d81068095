"""The Jobs of a gate: what each asks, and what their names and pods say of them."""

import hashlib
import re
from dataclasses import dataclass
from datetime import timedelta
from typing import Literal, TypeAlias

from tessera.api.quality_gate import QualityGateSpec
from tessera.api.ref import Ref
from tessera.domain.names import deployment_name
from tessera.domain.observed.gates import GateRole, ObservedGate

# It changes with each scorer that scores an answer otherwise.
_SCORERS = "v1"
_ATTEMPT = re.compile(r"-([1-9][0-9]?)$", re.ASCII)


# What prompts of a suite ask for.
PromptTask: TypeAlias = Literal["chat", "rerank", "embed"]


@dataclass(frozen=True, slots=True, kw_only=True)
class GateEndpoint:
    """Where a model is asked."""

    address: str
    """Host or IP address, without port."""
    model: str
    """Name in requests."""
    max_output_tokens: int | None = None
    """Those of the longest answer that users get."""
    variant: str = ""
    """Of the replica there; empty where any answers the same."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GateRun:
    """What one version is asked, and what its answers are compared with."""

    gate: ObservedGate
    spec: QualityGateSpec
    service: Ref
    role: GateRole
    digest: str
    """Of the version that is asked."""
    baseline: str = ""
    """Of the version whose answers are the baseline; empty where it is asked itself."""
    scorer: str
    """Version of scorers and judge."""

    @property
    def is_first(self) -> bool:
        """Whether it is a first version, which is judged without answers of another one."""
        return self.role == "Candidate" and not self.baseline

    @property
    def name(self) -> str:
        """Return what the names of its Jobs have in common: edits of the gate make another run."""
        spec = self.spec
        parts = [self.gate.uid, self.service.name, self.role, self.digest]
        parts += [self.scorer, spec.suite.model_dump_json(), str(spec.timeout)]
        if self.role == "Candidate":
            parts += [self.baseline, _terms_digest(spec)]
        return deployment_name(self.gate.ref.name[:36], _short_digest(*parts))


@dataclass(frozen=True, slots=True, kw_only=True)
class GateJobRequest:
    """A Job to create; an existing Job is never updated."""

    run: GateRun
    name: str
    endpoint: GateEndpoint
    judge: GateEndpoint | None = None
    task: PromptTask = "chat"
    has_tenant: bool = False
    """Gateways know who pays for what it asks."""
    answers_digest: str = ""
    """SHA-256 of the file that the last attempt left, if it said so; nothing else is gone on with,
    since others may write to the claim."""
    baseline_digest: str = ""
    """SHA-256 of the file of the baseline."""
    active_deadline: timedelta


def scorer_of(spec: QualityGateSpec, judge_digest: str) -> str:
    """Return what scores depend on besides version and suite, as a Job gets and reports it."""
    judge = f"-{judge_digest[:12]}" if spec.judge is not None else ""
    return f"{_SCORERS}-r{spec.repeats}{judge}"


def verdict_scorer(spec: QualityGateSpec, judge_digest: str) -> str:
    """Return what a verdict depends on: the same scores may be judged by other margins."""
    return f"{scorer_of(spec, judge_digest)}/{_terms_digest(spec)}"


def is_by_terms(scorer: str, spec: QualityGateSpec) -> bool:
    """Return whether a verdict is by the repeats and margins of a gate, by any judge."""
    scores, _, terms = scorer.partition("/")
    return scores.startswith(scorer_of(spec, "")) and terms == _terms_digest(spec)


def _terms_digest(spec: QualityGateSpec) -> str:
    terms = {"max_drop_points", "max_relative_drop", "min_prompts", "max_cost_increase"}
    terms |= {"min_score"}
    return _short_digest(spec.model_dump_json(include=terms, exclude_none=True))


def _short_digest(*parts: str) -> str:
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:10]


def attempt_name(run: str, attempt: int) -> str:
    """Return the name of the Job of one attempt.

    The last digit counts attempts from 1 on, and the one before it how often a device went back.
    """
    return f"{run}-{attempt}"


def run_of(job: str) -> str:
    """Return what the name of a Job has in common with those of its other attempts."""
    return _ATTEMPT.sub("", job)


def attempt_of(job: str) -> int:
    """Return the number of an attempt, by the name of its Job; 0 of any other name."""
    match = _ATTEMPT.search(job)
    return int(match[1]) if match else 0
