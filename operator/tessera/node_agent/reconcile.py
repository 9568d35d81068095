"""One look at a node's GPUs, and what follows from it.

Nothing is remembered that a restart would miss: what is wanted stands in the NodeLayout, what is
there in the driver, and who holds it in the kubelet.
"""

import asyncio
import logging
from dataclasses import dataclass, replace

from tessera.api.node_layout import DesiredGpu, NodeLayoutStatus
from tessera.domain.mig.partitioning import (
    GpuProblem,
    InstanceOperation,
    gpu_status,
    plan_partitioning,
)
from tessera.domain.mig_backends.nodes import ObservedNodeLayout
from tessera.ports import GpuError, Gpus, KubeletError, Locks, OwnLayout, PodDevices

log = logging.getLogger("tessera")

# On one GPU in one turn: eight go, eight come, and both may be half made.
_MAX_OPERATIONS = 32
# In turns: so long a GPU whose driver refuses is left alone at most.
_MAX_BACKOFF_CYCLES = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class _Backoff:
    """The driver refused; the GPU is left alone for some turns, longer every time.

    Another spec is tried at once.
    """

    spec: DesiredGpu
    problem: GpuProblem
    cycles: int
    cycles_left: int


@dataclass(frozen=True, slots=True)
class _GpuOutcome:
    """What came of the spec of one GPU."""

    problem: GpuProblem | None = None
    finished: bool = True
    """All was done that can be done now."""


class NodeAgent:
    """The agent of one node."""

    def __init__(
        self, gpus: Gpus, pods: PodDevices, layout: OwnLayout, locks: Locks, *, can_partition: bool
    ) -> None:
        self._gpus = gpus
        self._pods = pods
        self._layout = layout
        self._locks = locks
        self._can_partition = can_partition
        self._cached_layout: ObservedNodeLayout | None = None
        self._cache_valid = False
        self._backoffs: dict[str, _Backoff] = {}
        self.stop = asyncio.Event()
        """No further step is begun once it is set."""

    def invalidate_layout(self) -> None:
        """The NodeLayout may be another now; the next turn reads it."""
        self._cache_valid = False

    async def reconcile(self) -> None:
        """Look, cut what may be cut, and tell what is there. ClusterError: it was not told."""
        layout = await self._read_layout()
        status = await self._reconcile_gpus(layout)
        if status != layout.status:
            await self._layout.write(status)
        self._cached_layout = replace(layout, status=status)

    async def _read_layout(self) -> ObservedNodeLayout:
        """Read, unless it is known to be unchanged; a turn that breaks off leaves nothing known."""
        layout, self._cached_layout = self._cached_layout, None
        if layout is None or not self._cache_valid:
            self._cache_valid = True
            layout = await self._layout.read()
        return layout

    async def _reconcile_gpus(self, layout: ObservedNodeLayout) -> NodeLayoutStatus:
        previous = layout.status or NodeLayoutStatus()
        try:
            outcomes = await self._partition_gpus(layout) if self._can_partition else {}
            inventory, pods_by_device = await self._gpus.read(), await self._pods.holders()
        except (GpuError, KubeletError) as error:
            log.warning("%s", error)
            return NodeLayoutStatus(
                observed_generation=previous.observed_generation,
                cuts=self._can_partition,
                problem=str(error)[:500],
            )
        finished = all(outcome.finished for outcome in outcomes.values())
        present_uuids = {gpu.uuid for gpu in inventory.gpus}
        missing = [uuid for uuid in outcomes if uuid not in present_uuids]
        return NodeLayoutStatus(
            observed_generation=self._observed_generation(layout, previous, finished=finished),
            cuts=self._can_partition,
            driver=inventory.driver,
            gpus=tuple(
                gpu_status(gpu, pods_by_device, outcomes.get(gpu.uuid, _GpuOutcome()).problem)
                for gpu in inventory.gpus
            ),
            problem=f"the spec names GPUs that are not here: {', '.join(missing)}"[:500]
            if missing
            else "",
        )

    def _observed_generation(
        self, layout: ObservedNodeLayout, previous: NodeLayoutStatus, *, finished: bool
    ) -> int:
        if not self._can_partition:
            return 0
        return layout.generation if finished else previous.observed_generation

    async def _partition_gpus(self, layout: ObservedNodeLayout) -> dict[str, _GpuOutcome]:
        """By the UUID of every GPU that the spec names."""
        inventory, pods_by_device = await self._gpus.read(), await self._pods.holders()
        gpus = {gpu.uuid: gpu for gpu in inventory.gpus}
        outcomes: dict[str, _GpuOutcome] = {}
        for wanted in layout.spec.gpus:
            gpu = gpus.get(wanted.uuid)
            partition_plan = plan_partitioning(gpu, wanted, pods_by_device) if gpu else None
            if partition_plan is None or not partition_plan.operations:
                self._backoffs.pop(wanted.uuid, None)
                outcomes[wanted.uuid] = _GpuOutcome(
                    partition_plan.problem if partition_plan else None
                )
            else:
                outcomes[wanted.uuid] = await self._partition_gpu(wanted, layout)
        return outcomes

    async def _partition_gpu(self, wanted: DesiredGpu, layout: ObservedNodeLayout) -> _GpuOutcome:
        """The GPU as it is wanted, step by step; a refusal is tried again some turns later."""
        backoff = self._backoffs.get(wanted.uuid)
        if backoff and backoff.spec != wanted:
            backoff = None
        if backoff and backoff.cycles_left:
            self._backoffs[wanted.uuid] = replace(backoff, cycles_left=backoff.cycles_left - 1)
            return _GpuOutcome(backoff.problem)
        with self._locks.hold(wanted.uuid) as acquired:
            if not acquired:
                return _GpuOutcome(finished=False)
            if (await self._layout.read()).generation != layout.generation:
                self.invalidate_layout()
                return _GpuOutcome(finished=False)
            try:
                outcome = await self._run_operations(wanted)
            except GpuError as error:
                log.warning("%s: %s", wanted.uuid, error)
                cycles = min(2 * backoff.cycles, _MAX_BACKOFF_CYCLES) if backoff else 1
                problem = GpuProblem(error.fault, str(error))
                self._backoffs[wanted.uuid] = _Backoff(
                    spec=wanted, problem=problem, cycles=cycles, cycles_left=cycles
                )
                return _GpuOutcome(problem)
        self._backoffs.pop(wanted.uuid, None)
        return outcome

    async def _run_operations(self, wanted: DesiredGpu) -> _GpuOutcome:
        """Before every step it is looked anew at who holds what."""
        last: InstanceOperation | None = None
        for _ in range(_MAX_OPERATIONS):
            inventory = await self._gpus.read(wanted.uuid)
            partition_plan = plan_partitioning(
                inventory.gpus[0], wanted, await self._pods.holders()
            )
            if not partition_plan.operations:
                return _GpuOutcome(partition_plan.problem)
            if self.stop.is_set():
                break
            operation = partition_plan.operations[0]
            if operation == last:
                description = (
                    f"{operation.describe()}: the driver says that it is done, but nothing changed"
                )
                raise GpuError("CannotCut", f"{description}; it is tried again")
            log.info("%s: %s", wanted.uuid, operation.describe())
            await self._run_operation(wanted.uuid, operation)
            last = operation
        return _GpuOutcome(finished=False)

    async def _run_operation(self, gpu: str, operation: InstanceOperation) -> None:
        if operation.action == "destroy":
            await self._gpus.destroy(gpu, operation.placement)
        else:
            await self._gpus.create(gpu, operation.placement)
