"""What each service would get if money were no object: its hardware, and how many replicas."""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import NamedTuple

from tessera.api.inference_service import InferenceServiceSpec, InferenceServiceStatus
from tessera.api.inference_service import Scaling as ScalingSpec
from tessera.domain import autoscale
from tessera.domain.autoscale import Count, Memory, Scale
from tessera.domain.checks import check, flags_unchecked
from tessera.domain.load import load_of
from tessera.domain.model.facts import ErrandJob
from tessera.domain.model.prepare import Preparation, prepare
from tessera.domain.placement import ANY, STEADY, Choice, Placement, assigned, place
from tessera.domain.pools import PoolView, tiers
from tessera.domain.reasons import Accepted, Placed, Scaling, Verdict
from tessera.domain.snapshot import (
    Node,
    Pod,
    Ref,
    Service,
    Snapshot,
    Workload,
)

Taken = Counter[tuple[str, str]]
"""Devices that services hold, by pool and resource."""


_DEFAULT_SCALING = ScalingSpec()


@dataclass(frozen=True, slots=True, kw_only=True)
class Holding:
    """What a service has now."""

    pods: tuple[Pod, ...] = ()
    workloads: tuple[Workload, ...] = ()
    errands: tuple[ErrandJob, ...] = ()

    def of(self, variant: str) -> Workload | None:
        return next((one for one in self.workloads if one.variant == variant), None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Draft:
    """What a service would get if money were no object."""

    service: Service
    holding: Holding
    accepted: Verdict[Accepted]
    placement: Placement
    scale: Scale
    preparation: Preparation | None = None


class Held(NamedTuple):
    """What a service has, in the order in which it was seen."""

    pods: list[Pod]
    workloads: list[Workload]
    errands: list[ErrandJob]

    @property
    def sorted(self) -> Holding:
        return Holding(
            pods=tuple(sorted(self.pods, key=lambda pod: pod.ref)),
            workloads=tuple(sorted(self.workloads, key=lambda one: one.ref)),
            errands=tuple(sorted(self.errands, key=lambda one: one.ref)),
        )


def held_by(
    services: Sequence[Service],
    pods: Sequence[Pod],
    workloads: Sequence[Workload],
    nodes: Sequence[Node],
    errands: Sequence[ErrandJob],
) -> Mapping[Ref, Held]:
    """What each service has now."""
    found = {service.ref: Held([], [], []) for service in services}
    answering = {node.name for node in nodes if node.alive}
    for pod in pods:
        if (held := found.get(pod.service)) is not None and not _is_stuck(pod, answering):
            held.pods.append(pod)
    for workload in workloads:
        if (held := found.get(workload.service)) is not None:
            held.workloads.append(workload)
    for job in errands:
        if (held := found.get(job.service)) is not None:
            held.errands.append(job)
    return found


def _is_stuck(pod: Pod, answering: Collection[str]) -> bool:
    """A pod that ends on a node that does not answer may do so for ever: it is no replica any more,
    and what it held is not offered to others either."""
    return pod.leaving and pod.node is not None and pod.node not in answering


def drafted(
    snapshot: Snapshot,
    service: Service,
    holding: Holding,
    views: Sequence[PoolView],
    taken: Taken,
    memory: Memory,
) -> Draft:
    try:
        return _draft(snapshot, service, holding, views, taken, memory)
    except Exception as error:  # noqa: BLE001 - one bad service must not stop the fleet
        return _held(service, holding, _blame(error), memory)


def _draft(
    snapshot: Snapshot,
    service: Service,
    holding: Holding,
    views: Sequence[PoolView],
    taken: Taken,
    memory: Memory,
) -> Draft:
    spec = service.spec
    if spec is None:
        told = service.problem or "spec: unreadable"
        return _held(service, holding, Verdict(Accepted.SPEC_UNREADABLE, told), memory)
    preparation = prepare(snapshot, service, spec)
    spec = preparation.spec
    service = replace(service, spec=spec)
    denials = check(spec, tiers(views))
    if denials:
        told = "; ".join(denial.sentence for denial in denials)
        return _held(service, holding, Verdict(denials[0].reason, told), memory)
    if preparation.unknown is not None:
        held = _held(service, holding, preparation.unknown, memory)
        return replace(held, preparation=preparation)
    given = assigned(service.ref, snapshot.pools)
    placement = place(
        spec,
        views,
        current=holding.workloads[0].variant if holding.workloads else None,
        floor=floor_of(spec),
        taken=taken,
        tiers=ANY if spec.service_class == "batch" else STEADY,
        assigned=given,
    )
    warning = flags_unchecked(spec)
    accepted = (
        Verdict(Accepted.VALID, "the spec can be carried out")
        if warning is None
        else Verdict(Accepted.FLAGS_UNCHECKED, warning)
    )
    if placement.choice is None:
        held = _held(service, holding, accepted, memory)
        return replace(held, placement=placement, preparation=preparation)
    pods = of_variant(holding.pods, placement.choice)
    workload = holding.of(placement.choice.variant)
    if given is not None and workload is None and holding.workloads:
        memory = Memory(counts=(Count(snapshot.at, given.replicas),))
    return Draft(
        service=service,
        holding=holding,
        accepted=accepted,
        placement=placement,
        preparation=preparation,
        scale=_scale(snapshot, spec, pods, workload, memory),
    )


def _scale(
    snapshot: Snapshot,
    spec: InferenceServiceSpec,
    pods: Sequence[Pod],
    workload: Workload | None,
    memory: Memory,
) -> Scale:
    if spec.replicas is not None:
        return _fixed(spec.replicas, memory, snapshot.at)
    policy = scaling_of(spec)
    existing = workload.replicas if workload else policy.min_replicas
    return autoscale.scale(policy, load_of(pods, snapshot.readings, existing, snapshot.at), memory)


def _fixed(replicas: int, memory: Memory, at: datetime) -> Scale:
    known = [count.replicas for count in memory.counts] == [replicas]
    counts = memory.counts if known else (Count(at, replicas),)
    return Scale(
        replicas=replicas,
        reason=Scaling.SET_BY_USER,
        message=f"spec.replicas is {replicas}",
        memory=memory if known and not memory.lows else Memory(counts=counts),
    )


def _held(service: Service, holding: Holding, accepted: Verdict[Accepted], memory: Memory) -> Draft:
    """Nothing is decided, so whatever runs goes on as it is."""
    return Draft(
        service=service,
        holding=holding,
        accepted=accepted,
        placement=Placement(
            verdict=Verdict(Placed.NOT_ACCEPTED, "nothing is placed while Accepted is False")
        ),
        scale=Scale(
            replicas=holding.workloads[0].replicas if holding.workloads else 0,
            reason=Scaling.NOT_PLACED,
            message="what runs is left as it is",
            memory=memory,
        ),
    )


def _blame(error: Exception) -> Verdict[Accepted]:
    return Verdict(
        Accepted.PLANNER_ERROR,
        f"spec: planning raised {type(error).__name__} ({error}); please report it with the output "
        "of kubectl get inferenceservice -o yaml",
    )


def floor_of(spec: InferenceServiceSpec) -> int:
    return scaling_of(spec).min_replicas if spec.replicas is None else max(1, spec.replicas)


def take(taken: Taken, draft: Draft) -> None:
    choice = draft.placement.choice
    if choice is not None:
        hardware = choice.offer.hardware
        taken[choice.offer.pool, hardware.resource] += held_replicas(draft) * hardware.devices


def held_replicas(draft: Draft) -> int:
    return max(draft.scale.replicas, len(draft.holding.pods))


def of_variant(pods: Sequence[Pod], choice: Choice) -> Sequence[Pod]:
    """The replicas on the chosen hardware."""
    variant = choice.variant  # a name put together each time it is asked for
    return [pod for pod in pods if pod.variant == variant]


def scaling_of(spec: InferenceServiceSpec) -> ScalingSpec:
    """The autoscaler's bounds and goals; without any in the spec the defaults."""
    return spec.scaling or _DEFAULT_SCALING


def remembered(status: InferenceServiceStatus) -> Memory:
    """What an earlier leader wrote down for its successor."""
    if status.scaling is None:
        return Memory()
    return Memory(counts=tuple(Count(one.at, one.replicas) for one in status.scaling.memory))
