"""How long replicas take to start, which phase takes longest, and what shortens it."""

from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta

from tessera.api.inference_service import InferenceServiceSpec
from tessera.api.text import counted
from tessera.domain.hardware.pools import PoolView
from tessera.domain.planning.service_plan import ServicePlan
from tessera.domain.reporting.decision import Numbers
from tessera.domain.scaling.starts import (
    DEFAULT_LEAD,
    ReplicaStart,
    StartPhase,
    lead_of,
    phase_now,
    typical_start,
)
from tessera.domain.vllm.startup_log import engine_phases


def start_numbers(service_plan: ServicePlan, at: datetime, log: str) -> Numbers:
    """Return what starts take, and in which phase the longest is that goes on.

    `log` is that of the replica in `status.start`.
    """
    numbers = []
    if (start := _typical_start(service_plan)) is not None:
        schedule = start.phases[StartPhase.SCHEDULE]
        phases = ", ".join(f"{phase} {_seconds(span)}" for phase, span in start.phases.items())
        text = f"take {_seconds(schedule + start.lead)}: {phases}"
        numbers.append(("starts", text))
    recorded = service_plan.service.status.start
    if recorded is not None and (logged := engine_phases(log)):
        parts = ", ".join(f"{phase} {seconds:.0f} s" for phase, seconds in logged.items())
        numbers.append(("engine's start", f"{parts}, by the log of {recorded.pod}"))
    if starting := _starting(service_plan, at):
        name, phase, span = starting[0]
        others = f", the longest of {counted(len(starting), 'replica')}" if starting[1:] else ""
        numbers.append(("starting", f"{name}: {phase} for {_seconds(span)}{others}"))
    return tuple(numbers)


def faster_starts(
    service_plan: ServicePlan, pools: Sequence[PoolView], at: datetime, log: str
) -> Iterator[str]:
    """Yield what would shorten slow starts: a change for the phase that takes longest."""
    start, spec = _typical_start(service_plan), service_plan.service.spec
    phases: dict[StartPhase, timedelta] = {}
    if start is not None and StartPhase.ENGINE in start.phases:
        phases |= start.phases
    for _, phase, span in _starting(service_plan, at):
        phases[phase] = max(span, phases.get(phase, timedelta()))
    slowest = max(phases, key=lambda phase: phases[phase], default=None)
    if spec is None or slowest is None:
        return
    if max(lead_of(start), phases[slowest]) > DEFAULT_LEAD:
        logged = engine_phases(log) if slowest is StartPhase.ENGINE else {}
        slowest_part = max(logged, key=lambda part: logged[part], default="")
        remedy = (
            _remedy_of_pod_phase(slowest, service_plan, pools)
            if slowest is not StartPhase.ENGINE
            else _remedy_of_engine(slowest_part, spec)
        )
        yield f"{remedy} would shorten starts, whose slowest phase is {slowest_part or slowest}"


def _typical_start(service_plan: ServicePlan) -> ReplicaStart | None:
    choice = service_plan.choice
    if choice is None:
        return None
    pods = [pod for pod in service_plan.pods if pod.variant == choice.variant]
    return typical_start(pods, service_plan.service.status.start, choice.variant)


def _starting(service_plan: ServicePlan, at: datetime) -> list[tuple[str, StartPhase, timedelta]]:
    """Return the replicas that start with their phase and its time so far, the longest first."""
    starting = [
        (pod.ref.name, *phase)
        for pod in service_plan.pods
        if (phase := phase_now(pod, at)) is not None
    ]
    return sorted(starting, key=lambda each: (-each[2], each[0]))


def _remedy_of_pod_phase(
    phase: StartPhase, service_plan: ServicePlan, pools: Sequence[PoolView]
) -> str:
    if phase is StartPhase.SCHEDULE:
        return "a free device on a node, or a higher spec.scaling.minReplicas,"
    name = service_plan.choice.offer.pool if service_plan.choice is not None else ""
    for pool in (view.pool for view in pools):
        if pool.name == name and pool.spec is not None and not pool.spec.pre_pull:
            return f"spec.prePull of AcceleratorPool/{name}, which pulls images in advance,"
    return "a registry and volumes near the nodes"


def _remedy_of_engine(part: str, spec: InferenceServiceSpec) -> str:
    """Return what shortens the engine's phase, or the slowest part of it if the log has that."""
    if part in ("compile", "warm-up"):
        return "faster or less busy processors of the nodes"
    downloads = spec.model.uri.startswith("hf://") and spec.model.cache.type == "None"
    if downloads and part != "load":
        return "spec.model.cache.type PersistentVolumeClaim, which downloads the files once,"
    return "another spec.engine.loader" if spec.engine.loader is None else "files on faster volumes"


def _seconds(span: timedelta) -> str:
    return f"{span.total_seconds():.0f} s"
