"""Plan -> the statuses of services and pools, with the times of what did not change kept."""

from collections.abc import Sequence
from datetime import datetime

from tessera.api.accelerator_pool import AcceleratorPoolStatus, SliceCount
from tessera.api.inference_service import (
    CostStatus,
    InferenceServiceStatus,
    ModelStatus,
    ReplicaChange,
    ScalingStatus,
    TenancyStatus,
    VariantStatus,
)
from tessera.api.meta import Condition
from tessera.domain.budget.budgets import BudgetView
from tessera.domain.money import per_million_tokens
from tessera.domain.names import PORT, selector
from tessera.domain.perf import SOURCE
from tessera.domain.placement import Choice
from tessera.domain.plan import Allotment
from tessera.domain.pools import PoolView, offer_line
from tessera.domain.readiness import ready
from tessera.domain.reasons import (
    Accepted,
    Funded,
    Placed,
    Progressing,
    Ready,
    Reason,
    Verdict,
)
from tessera.domain.snapshot import Snapshot
from tessera.domain.trouble import trouble

_LONGEST = 2048


def service_status(
    snapshot: Snapshot, allotment: Allotment, tenant: BudgetView | None, problem: str | None
) -> InferenceServiceStatus:
    """The status of one service; `problem` is what the API server refused in this turn."""
    service, old = allotment.service, allotment.service.status
    verdicts: dict[str, Verdict[Reason]] = {
        "Accepted": allotment.accepted,
        "Placed": _placed(allotment),
        "Progressing": _progressing(allotment, problem),
        "Ready": _ready(snapshot, allotment),
    }
    return InferenceServiceStatus(
        observed_generation=service.generation,
        conditions=conditions(verdicts, old.conditions, service.generation, snapshot.at),
        replicas=len(allotment.pods),
        ready_replicas=sum(pod.ready_since is not None for pod in allotment.pods),
        selector=selector(service.ref.name),
        endpoint=f"http://{service.ref.name}.{service.ref.namespace}.svc:{PORT}/v1",
        variant=_variant(allotment.choice) if allotment.choice else old.variant,
        cost=_cost(allotment, allotment.choice) if allotment.choice else old.cost,
        model=_model(allotment, old.model),
        tenant=TenancyStatus(
            budget=tenant.budget.name if tenant is not None else None,
            state=tenant.funded.reason if tenant is not None else Funded.NO_BUDGET,
        ),
        scaling=_scaling(allotment, old.scaling),
    )


def pool_status(view: PoolView, at: datetime) -> AcceleratorPoolStatus:
    """The status of one pool."""
    pool = view.pool
    verdicts: dict[str, Verdict[Reason]] = {
        "Accepted": view.accepted,
        "Discovered": view.discovered,
    }
    return AcceleratorPoolStatus(
        observed_generation=pool.generation,
        conditions=conditions(verdicts, pool.status.conditions, pool.generation, at),
        product=view.product,
        nodes=view.nodes,
        ready_nodes=view.ready_nodes,
        gpus=view.gpus,
        slices=tuple(SliceCount(profile=name, count=count) for name, count in view.slices),
        offer=offer_line(view.gpus, view.slices),
        per_gpu_hour=view.price.per_gpu_hour if view.price else None,
        currency=view.price.currency if view.price else None,
    )


def conditions(
    verdicts: dict[str, Verdict[Reason]],
    old: Sequence[Condition],
    generation: int,
    at: datetime,
) -> tuple[Condition, ...]:
    """Verdicts as conditions; one whose status did not change keeps its time."""
    before = {condition.type: condition for condition in old}
    told = []
    for kind, verdict in verdicts.items():
        status = "True" if verdict.reason.holds else "False"
        same = kind in before and before[kind].status == status
        told.append(
            Condition(
                type=kind,
                status=status,
                reason=verdict.reason,
                message=verdict.message[:_LONGEST],
                observed_generation=generation,
                last_transition_time=before[kind].last_transition_time
                if same
                else at.replace(microsecond=0),
            )
        )
    return tuple(told)


def _placed(allotment: Allotment) -> Verdict[Placed]:
    stuck = [pod for pod in allotment.pods if pod.unschedulable and not pod.leaving]
    if allotment.choice is None or not stuck:
        return allotment.placement.verdict
    pool = allotment.choice.offer.pool
    return Verdict(
        Placed.UNSCHEDULABLE,
        f"spec.placement.pools: {len(stuck)} of {allotment.scale.replicas} replicas find no free "
        f"{allotment.choice.fit.hardware.name} in {pool}: {stuck[0].unschedulable}",
    )


def _progressing(allotment: Allotment, problem: str | None) -> Verdict[Progressing]:
    if problem is not None:
        return Verdict(Progressing.APPLY_FAILED, problem)
    if allotment.choice is None:
        return Verdict(Progressing.NOT_PLACED, "what runs is left as it is")
    wanted, pods = allotment.scale.replicas, allotment.pods
    unfetched = allotment.preparation.unfetched if allotment.preparation else None
    if (found := trouble(allotment.service.spec, pods) or unfetched) is not None:
        return found
    if allotment.drain.leaving:
        return Verdict(
            Progressing.DRAINING,
            f"{len(allotment.drain.leaving)} replicas finish their streams, {wanted} stay",
        )
    up = sum(pod.ready_since is not None for pod in pods)
    settled = allotment.workload is not None and allotment.workload.settled
    if up == len(pods) == wanted and settled:
        return Verdict(Progressing.SETTLED, f"{wanted} replicas run as planned")
    manner = "one new at a time" if allotment.surge else "in place, since there is no room for one"
    return Verdict(Progressing.STARTING, f"{wanted} wanted; replicas start {manner}")


def _ready(snapshot: Snapshot, allotment: Allotment) -> Verdict[Ready]:
    if allotment.choice is None and not allotment.pods:
        return Verdict(Ready.NOT_PLACED, _blocker(allotment).message)
    wanted = allotment.scale.replicas
    return ready(snapshot, allotment.service, wanted, allotment.pods)


def _blocker(allotment: Allotment) -> Verdict[Accepted] | Verdict[Placed]:
    if not allotment.accepted.reason.holds:
        return allotment.accepted
    return allotment.placement.verdict


def _model(allotment: Allotment, old: ModelStatus | None) -> ModelStatus | None:
    """What was found out; a model of which everything stands in the spec has nothing to tell."""
    if allotment.preparation is None:
        return old
    found = allotment.preparation.status
    return found if found.shape is not None or found.cache is not None else None


def _variant(choice: Choice) -> VariantStatus:
    fit = choice.fit
    return VariantStatus(
        name=choice.variant,
        pool=choice.offer.pool,
        product=fit.hardware.product,
        profile=fit.hardware.profile,
        gpus=fit.hardware.devices,
        precision=fit.precision or "checkpoint",
        max_model_len=fit.max_model_len,
        max_num_seqs=fit.limits.max_num_seqs,
        max_num_batched_tokens=fit.limits.max_num_batched_tokens,
        kv_cache_tokens=fit.memory.kv_tokens,
        tokens_per_second=round(fit.limits.tokens_per_second),
        source=SOURCE,
    )


def _cost(allotment: Allotment, choice: Choice) -> CostStatus:
    total = choice.hourly.times(allotment.scale.replicas)
    limits = choice.fit.limits
    per_million = per_million_tokens(choice.hourly, limits.tokens_per_second)
    return CostStatus(
        per_hour=total.rounded(4),
        per_million_tokens=per_million.rounded(4),
        currency=total.currency,
        assumes=(
            f"each replica gives {limits.tokens_per_second:.0f} output tokens a second: "
            f"{limits.max_num_seqs} requests at a time, {SOURCE}"
        ),
    )


def _scaling(allotment: Allotment, old: ScalingStatus | None) -> ScalingStatus:
    """Written only with a decision: as long as number and reason stay, so does the text."""
    scale = allotment.scale
    if old and (old.desired_replicas, old.reason) == (scale.replicas, scale.reason):
        return old
    memory = tuple(ReplicaChange(at=one.at, replicas=one.replicas) for one in scale.memory.counts)
    same = old is not None and old.desired_replicas == scale.replicas
    return ScalingStatus(
        desired_replicas=scale.replicas,
        reason=scale.reason,
        message=scale.message,
        memory=old.memory if old and same else memory[-16:],
    )
