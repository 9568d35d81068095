"""Plan -> the statuses of services and pools, with the times of what did not change kept."""

from collections.abc import Sequence
from datetime import datetime
from typing import Literal

from tessera.api.accelerator_pool import AcceleratorPoolStatus, SliceCount
from tessera.api.inference_service import (
    CostStatus,
    InferenceServiceStatus,
    ModelStatus,
    ReplacementStatus,
    ReplicaChange,
    ScalingStatus,
    SpeedSource,
    TenancyStatus,
    VariantStatus,
)
from tessera.api.meta import Condition
from tessera.domain.allotment import Allotment
from tessera.domain.budget.budgets import BudgetView
from tessera.domain.money import per_million_tokens
from tessera.domain.names import PORT, selector
from tessera.domain.placement import Choice
from tessera.domain.pools import PoolView, offer_line
from tessera.domain.readiness import ready
from tessera.domain.reasons import (
    Accepted,
    Funded,
    LaidOut,
    Placed,
    Progressing,
    Ready,
    Reason,
    UpdateAvailable,
    Verdict,
)
from tessera.domain.repartition.orders import Orders
from tessera.domain.rollout import manner, progress, rolling
from tessera.domain.snapshot import Snapshot
from tessera.domain.speed.measured import rate
from tessera.domain.speed.verdict import verdict as speed_verdict
from tessera.domain.trouble import trouble

_LONGEST = 2048
_UNMANAGED = Verdict(
    LaidOut.NOT_MANAGED, "spec.mig is not set: slices are taken as they are cut, 0 are planned"
)


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
        "UpdateAvailable": _update(allotment),
        "SpeedAsPredicted": speed_verdict(allotment.speed),
    }
    return InferenceServiceStatus(
        observed_generation=service.generation,
        conditions=conditions(verdicts, old.conditions, service.generation, snapshot.at),
        replicas=len(allotment.pods),
        ready_replicas=sum(pod.takes_requests for pod in allotment.pods),
        selector=selector(service.ref.name),
        endpoint=f"http://{service.ref.name}.{service.ref.namespace}.svc:{PORT}/v1",
        variant=_variant(allotment, allotment.choice) if allotment.choice else old.variant,
        model=_model(allotment, old.model),
        recipe=allotment.making.kept if allotment.making else old.recipe,
        cost=_cost(allotment, allotment.choice) if allotment.choice else old.cost,
        speed=allotment.speed,
        tenant=TenancyStatus(
            budget=tenant.budget.name if tenant is not None else None,
            state=tenant.funded.reason if tenant is not None else Funded.NO_BUDGET,
        ),
        scaling=_scaling(allotment, old.scaling),
        replacement=_replacement(allotment),
    )


def pool_status(view: PoolView, orders: Orders | None, at: datetime) -> AcceleratorPoolStatus:
    """The status of one pool; the orders are those for its layouts, if Tessera cuts its GPUs."""
    pool = view.pool
    verdicts: dict[str, Verdict[Reason]] = {
        "Accepted": view.accepted,
        "Discovered": view.discovered,
        "LaidOut": orders.verdict if orders is not None else _UNMANAGED,
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
        mig=orders.status if orders is not None else None,
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
        last = before.get(kind)
        status: Literal["True", "False", "Unknown"] = (
            "Unknown" if not verdict.reason.known else "True" if verdict.reason.holds else "False"
        )
        message = verdict.message[:_LONGEST]
        now = (status, verdict.reason, message, generation)
        if last is not None and now == (
            last.status, last.reason, last.message, last.observed_generation,
        ):  # fmt: skip
            told.append(last)
            continue
        same = last is not None and last.status == status
        told.append(
            Condition(
                type=kind,
                status=status,
                reason=verdict.reason,
                message=message,
                observed_generation=generation,
                last_transition_time=last.last_transition_time
                if last is not None and same
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
    spec, preparation = allotment.service.spec, allotment.preparation
    wanted, settled = allotment.scale.replicas, _settled(allotment)
    found = (
        trouble(spec, allotment.pods, allotment.workload)
        or _stalled(allotment, settled=settled)
        or (preparation.unfetched if preparation is not None else None)
    )
    if found is not None:
        return found
    if allotment.drain.leaving:
        return Verdict(
            Progressing.DRAINING,
            f"{len(allotment.drain.leaving)} replicas finish their streams, {wanted} stay",
        )
    if settled and allotment.pin.question is None:
        return Verdict(Progressing.SETTLED, f"{wanted} replicas run as planned")
    return _under_way(allotment, allotment.choice)


def _under_way(allotment: Allotment, choice: Choice) -> Verdict[Progressing]:
    """What is awaited while the replicas are not yet as planned."""
    wanted, pods = allotment.scale.replicas, allotment.pods
    if (asked := allotment.pin.question) is not None:
        return Verdict(
            Progressing.RESOLVING,
            f"the hub is asked which commit of {asked.repository} {asked.revision} means",
        )
    how = manner(choice, surge=allotment.surge)
    if rolling(pods):
        new, old = progress(pods)
        return Verdict(
            Progressing.ROLLING_OUT, f"{new} of {wanted} replicas are new, {old} are old; {how}"
        )
    up = sum(pod.takes_requests for pod in pods)
    told = f"{wanted} wanted, {up} take requests"
    changed = allotment.workload is not None and not allotment.workload.settled and pods
    return Verdict(Progressing.STARTING, f"{told}; a change goes out: {how}" if changed else told)


def _settled(allotment: Allotment) -> bool:
    pods, workload = allotment.pods, allotment.workload
    up = sum(pod.takes_requests for pod in pods)
    seen = workload is not None and workload.settled
    return up == len(pods) == allotment.scale.replicas and seen


def _stalled(allotment: Allotment, *, settled: bool) -> Verdict[Progressing] | None:
    """An engine that stands still, and then, until all is well, the one that was replaced."""
    stall, status = allotment.stall, allotment.service.status
    message = stall.replace.message if stall.replace is not None else stall.waits
    last = status.replacement
    told = any(one.reason == Progressing.ENGINE_STALLED for one in status.conditions)
    if message is None and last is not None and told and not settled:
        message = last.message
    return None if message is None else Verdict(Progressing.ENGINE_STALLED, message)


def _replacement(allotment: Allotment) -> ReplacementStatus | None:
    """The last one; it is written before the pod is deleted, and stays."""
    now = allotment.stall.replace
    if now is None:
        return allotment.service.status.replacement
    return ReplacementStatus(at=now.at, pod=now.pod.name, uid=now.uid, message=now.message)


def _ready(snapshot: Snapshot, allotment: Allotment) -> Verdict[Ready]:
    if allotment.choice is None and not allotment.pods:
        return Verdict(Ready.NOT_PLACED, _blocker(allotment).message)
    wanted = allotment.scale.replicas
    why = trouble(allotment.service.spec, allotment.pods, allotment.workload)
    return ready(snapshot, allotment.service, wanted, allotment.pods, why)


def _update(allotment: Allotment) -> Verdict[UpdateAvailable]:
    if allotment.making is None:
        return Verdict(UpdateAvailable.NOT_PLACED, "what runs is left as it is")
    return allotment.making.verdict


def _blocker(allotment: Allotment) -> Verdict[Accepted] | Verdict[Placed]:
    if not allotment.accepted.reason.holds:
        return allotment.accepted
    return allotment.placement.verdict


def _model(allotment: Allotment, old: ModelStatus | None) -> ModelStatus | None:
    """Which weights, and what else was found out. Before there is a choice nothing that an earlier
    turn said is lost, and while a hub is asked it speaks of the model that still runs."""
    if allotment.preparation is None:
        return old
    found, pinned = allotment.preparation.status, allotment.pin.status
    telling = found.shape is not None or found.cache is not None
    if allotment.choice is None:
        return found if telling else old
    if pinned is None:
        return found if telling else None
    if (pinned.uri, pinned.asked) != (found.uri, found.asked):
        return pinned
    findings = {"shape": found.shape, "source": found.source, "cache": found.cache}
    return pinned.model_copy(update=findings)


def _variant(allotment: Allotment, choice: Choice) -> VariantStatus:
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
        tokens_per_second=round(rate(fit.limits.tokens_per_second, allotment.measured)),
        source=_source(allotment, choice),
    )


def _cost(allotment: Allotment, choice: Choice) -> CostStatus:
    total = choice.hourly.times(allotment.scale.replicas)
    limits = choice.fit.limits
    given = rate(limits.tokens_per_second, allotment.measured)
    per_million = per_million_tokens(choice.hourly, given)
    return CostStatus(
        per_hour=total.rounded(4),
        per_million_tokens=per_million.rounded(4),
        currency=total.currency,
        assumes=(
            f"each replica gives {given:.0f} output tokens a second: "
            f"{limits.max_num_seqs} requests at a time, {_source(allotment, choice)}"
        ),
    )


def _source(allotment: Allotment, choice: Choice) -> SpeedSource:
    return choice.fit.step.source if allotment.measured is None else "measured"


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
