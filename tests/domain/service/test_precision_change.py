"""A listed precision moves replicas once, and only where it costs no more and has room."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from tessera.api.service_status import PrecisionStatus
from tessera.domain.incremental import Incremental
from tessera.domain.observed.snapshot import ObservedService, Pool
from tessera.domain.planning.plan import plan
from tests.builders import (
    A100,
    H100,
    LARGE,
    MEDIUM,
    a_node,
    a_pool,
    a_service,
    a_snapshot,
    a_spec,
    at,
    plan_of,
)
from tests.domain.service.test_precisions import files, read, status_of
from tests.domain.variant_fleet import CHAT, VariantFleet, pool_of

# A slice of 3g.40gb costs 0.78 USD.
RESERVED = a_pool("reserved", "1.68")
BURST = a_pool("burst", "2.99", tier="OnDemand")
AWQ = {"precision": "awq-int4", "uri": "hf://acme/llama-8b-awq"}
BF16, FP8, AWQ4 = (f"reserved-3g-40gb{suffix}" for suffix in ("", "-fp8", "-awq-int4"))


def of(*listed: dict[str, str], uri: str = MEDIUM, **fields: Any) -> ObservedService:
    scaling = {"minReplicas": 1, "maxReplicas": 6}
    return a_service(spec=a_spec(uri, scaling=scaling, precision={"variants": listed}, **fields))


def awq_files(*listed: dict[str, str], uri: str = MEDIUM) -> Sequence[PrecisionStatus]:
    """What the status says once the files of awq-int4 were read."""
    service = of(*listed, uri=uri)
    index = listed.index(AWQ)
    return status_of(
        a_snapshot(
            service,
            pools=(RESERVED,),
            nodes=(a_node("reserved", {"3g.40gb": 4}, partitioned=2),),
            **read(service, files(base=uri), index),
        )
    ).precisions


def fleet(slices: int = 4, neighbor: int = 2, pools: Sequence[Pool] = ()) -> VariantFleet:
    """A service of one replica beside another one of two, on slices and an H100 on demand."""
    spec = a_spec(MEDIUM, replicas=neighbor)
    cluster = VariantFleet(
        of(),
        pools or (RESERVED, BURST),
        [
            a_node("reserved", {"3g.40gb": slices}, partitioned=2, product=A100),
            a_node("burst", whole=1, product=H100),
        ],
        others=[a_service("code", spec)] if neighbor else [],
    )
    cluster.run(180)
    assert variants(cluster) == {BF16}
    return cluster


def listed(cluster: VariantFleet, *precisions: dict[str, str], are_read: bool = True) -> None:
    """Edit the spec; the files of awq-int4 were read, or a Job reads them."""
    assert cluster.service.spec is not None
    uri, edited = cluster.service.spec.model.uri, of(*precisions).spec
    assert edited is not None
    spec = cluster.service.spec.model_copy(update={"precision": edited.precision})
    known = awq_files(*precisions, uri=uri) if are_read and AWQ in precisions else ()
    status = cluster.service.status.model_copy(update={"precisions": known})
    cluster.service = replace(cluster.service, spec=spec, status=status)


def variants(cluster: VariantFleet) -> set[str]:
    """Return the variants of all pods that the service has."""
    return {pod.variant for pod in cluster.pods.values() if pod.service == CHAT}


def watch(cluster: VariantFleet, seconds: float) -> set[str]:
    """Return all variants that pods of the service had meanwhile; one of it always serves."""
    end, seen = cluster.now.total_seconds() + seconds, set[str]()
    while cluster.now.total_seconds() < end:
        cluster.cycle()
        seen |= variants(cluster)
        assert sum(cluster.counts().values()) >= 1, f"at {cluster.now}"
    assert cluster.lost == []
    return seen


def test_an_edit_that_lists_two_precisions_moves_once_and_never_to_a_dearer_gpu() -> None:
    cluster = fleet()
    listed(cluster, {"precision": "fp8"}, AWQ, are_read=False)
    seen = watch(cluster, 5)
    listed(cluster, {"precision": "fp8"}, AWQ)
    assert seen | watch(cluster, 900) == {BF16, AWQ4}
    assert variants(cluster) == {AWQ4}


def test_a_further_precision_waits_until_pods_of_the_previous_one_are_gone() -> None:
    node = a_node("reserved", whole=8, product=H100)
    engine = {"tensorParallelSize": 2}
    cluster = VariantFleet(of(uri=LARGE, engine=engine), (RESERVED,), [node])
    cluster.run(180)
    wide, awq, fp8 = (f"reserved-2gpu{suffix}" for suffix in ("", "-awq-int4", "-fp8"))
    assert variants(cluster) == {wide}
    listed(cluster, AWQ)
    assert watch(cluster, 10) == {wide, awq}
    listed(cluster, AWQ, {"precision": "fp8"})
    while wide in variants(cluster):
        cluster.cycle()
        assert fp8 not in variants(cluster)
    assert watch(cluster, 900) == {awq, fp8}
    assert variants(cluster) == {fp8}


def test_a_precision_that_saves_less_than_predictions_err_changes_nothing() -> None:
    cluster = fleet()
    listed(cluster, {"precision": "fp8"})
    watch(cluster, 900)
    assert variants(cluster) == {FP8}
    listed(cluster, {"precision": "fp8"}, AWQ)
    assert watch(cluster, 900) == {FP8}
    placed = next(each for each in cluster.service.status.conditions if each.type == "Placed")
    assert "USD on reserved-3g-40gb-awq-int4 instead of 0.2985 USD" in placed.message
    assert "within the error of both predictions" in placed.message


@pytest.mark.parametrize("pools", [(RESERVED,), (RESERVED, BURST)])
def test_nothing_moves_until_its_own_slices_leave_room_for_as_many(pools: Sequence[Pool]) -> None:
    cluster = fleet(slices=3, pools=pools)
    incremental = Incremental()
    cluster.decide = lambda *inputs: incremental.run(plan, *inputs)
    listed(cluster, AWQ)
    assert watch(cluster, 900) == {BF16}
    cluster.others = []
    for ref in [ref for ref, pod in cluster.pods.items() if pod.service != CHAT]:
        del cluster.pods[ref]
    cluster.workloads = {
        ref: each for ref, each in cluster.workloads.items() if each.service == CHAT
    }
    watch(cluster, 900)
    assert variants(cluster) == {AWQ4}


def test_a_replica_that_is_paid_anyway_moves_to_none_that_is_paid_while_used() -> None:
    """An H100 on demand costs less than the whole A100 that is reserved, and has cheaper tokens."""
    pools = (a_pool("reserved", "9.00"), BURST)
    cluster = VariantFleet(
        of(),
        pools,
        [a_node("reserved", whole=1, product=A100), a_node("burst", whole=0, product=H100)],
    )
    cluster.run(120)
    cluster.nodes[1] = a_node("burst", whole=1, product=H100)
    cluster.run(60)
    assert {pool_of(pod) for pod in cluster.pods.values()} == {"reserved"}
    listed(cluster, {"precision": "fp8"}, AWQ)
    assert {name.split("-")[0] for name in watch(cluster, 900)} == {"reserved"}


@pytest.mark.parametrize("templates", [("one", "one"), ("one", "two")])
def test_a_rollout_that_runs_ends_before_a_precision_is_changed(templates: Sequence[str]) -> None:
    cluster = fleet(slices=6, neighbor=0)
    for index, (ref, pod) in enumerate(list(cluster.pods.items())):
        cluster.pods[ref] = replace(pod, template=templates[index])
        other = ref._replace(name="chat-other")
        cluster.pods[other] = replace(pod, ref=other, uid="other", template=templates[1])
    for ref, workload in cluster.workloads.items():
        cluster.workloads[ref] = replace(workload, replicas=2)
    listed(cluster, AWQ)
    changes = cluster.cycle().choice
    assert changes is not None
    assert (changes.variant == AWQ4) is (templates == ("one", "one"))


def test_files_that_a_job_cannot_read_hold_up_no_other_precision() -> None:
    service = replace(of({"precision": "fp8"}, AWQ), created=at(-3600))
    parts = read(service, None, 1, report={"ok": False, "message": "503"}, exit_code=1)
    cluster = fleet()
    snapshot = replace(
        cluster.snapshot(),
        services=(replace(service, status=cluster.service.status), *cluster.others),
        model_jobs=parts["model_jobs"],
        pods=(*cluster.pods.values(), *parts["pods"]),
    )
    choice = plan_of(snapshot).service_plans[CHAT].choice
    assert choice is not None
    assert choice.variant == FP8
