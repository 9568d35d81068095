"""Observations for tests of scaling policies."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from tessera.domain.perf.step import StepTime
from tessera_lab.fleet.observation import (
    EngineSample,
    Observation,
    Policy,
    ReplicaModel,
    Settings,
    total,
)
from tessera_lab.fleet.policies.families import FAMILIES

# An 8B model on an H100.
A_REPLICA = ReplicaModel(
    step=StepTime(weights=6.29e-3, kv_token=4.09e-8, token=1.749e-5, pair=7.9e-10),
    kv_tokens=448_000,
    max_num_seqs=256,
    max_num_batched_tokens=8192,
    max_model_len=32_768,
    ttft=1.0,
    itl=0.05,
    lead=110.0,
    input_tokens=1_150,
    output_tokens=250,
)


def a_policy(name: str, model: ReplicaModel = A_REPLICA, /, **changes: float) -> Policy:
    family = FAMILIES[name]
    settings: Settings = family.published | changes
    return family.create(settings, model)


def an_engine(waiting: int = 0, running: int = 0, **changes: Any) -> EngineSample:
    return replace(EngineSample(running=running, waiting=waiting), **changes)


def an_observation(
    at: float,
    engines: Sequence[EngineSample | None] = (),
    replicas: int | None = None,
    **changes: Any,
) -> Observation:
    """All engines are ready; more replicas than engines are starting."""
    observation = Observation(
        at=at,
        replicas=len(engines) if replicas is None else replicas,
        ready=len(engines),
        scraped_at=at,
        engines=tuple(engines),
    )
    return replace(observation, **changes)


def replica_path(
    policy: Policy, engine: EngineSample, *, start: int, seconds: float
) -> list[tuple[float, int]]:
    """Return the changes of the replicas while each engine shows the same and starts at once."""
    replicas, at, changes = start, 0.0, []
    while at <= seconds:
        desired = total(policy.decide(an_observation(at, [engine] * replicas)))
        if desired != replicas:
            replicas = desired
            changes.append((at, replicas))
        at += policy.interval
    return changes
