"""What is written of one service costs as much in a large fleet as in a small one."""

from collections.abc import Iterator
from dataclasses import replace

from typing_extensions import override

from tessera.domain.observed.snapshot import Ref, Workload
from tessera.reconcile.writing.service_work import ServiceWork, resizes
from tests.memory_operator import MemoryOperator, add_pool_and_node


class _Unread(tuple[Workload, ...]):
    """The Deployments of a fleet, which nobody goes through."""

    @override
    def __iter__(self) -> Iterator[Workload]:
        raise AssertionError("the Deployments of all services are read for one of them")


async def test_the_replicas_of_a_service_are_compared_with_its_own_deployments() -> None:
    operator = MemoryOperator()
    add_pool_and_node(operator)
    operator.serve(replicas=1)
    await operator.reconcile()
    outcome = await operator.reconcile()
    service_plan = outcome.plan.service_plans[Ref("team-a", "chat")]
    (workload,) = outcome.snapshot.workloads
    for replicas, resized in ((1, []), (3, [(workload.ref, 3)])):
        work = ServiceWork(
            snapshot=replace(outcome.snapshot, workloads=_Unread()),
            service_plan=replace(service_plan, previous_deployments={workload.ref: replicas}),
            inputs=(service_plan, (), None, None),
        )
        assert resizes(work) == resized
