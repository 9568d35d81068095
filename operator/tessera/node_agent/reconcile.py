"""The reconcile cycle of the node agent.

The agent keeps no state that a restart would lose: the desired layout is in the NodeLayout, the
observed one in the driver, and the pods that use devices in the kubelet.
"""

import asyncio
import logging
from dataclasses import dataclass, replace
from datetime import datetime

from tessera.api.node_layout import DesiredGpu, NodeLayoutStatus
from tessera.api.text import counted
from tessera.domain.mig_backends.partitioning import (
    GpuProblem,
    InstanceOperation,
    PartitionPlan,
    gpu_status,
    plan_partitioning,
)
from tessera.domain.observed.node_layout import HEARTBEAT_INTERVAL, ObservedNodeLayout
from tessera.ports import Clock, GpuError, Gpus, KubeletError, Locks, OwnLayout, PodDevices

log = logging.getLogger("tessera")

# Operations on one GPU per cycle: eight instances destroyed and eight created, each in two parts.
_MAX_OPERATIONS = 32
# Cycles for which a GPU is skipped at most after the driver refused an operation.
_MAX_BACKOFF_CYCLES = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class _Backoff:
    """A refusal of the driver: the GPU is skipped for some cycles, twice as many each time.

    A changed spec is tried at once.
    """

    spec: DesiredGpu
    problem: GpuProblem
    cycles: int
    cycles_left: int


@dataclass(frozen=True, slots=True)
class _GpuOutcome:
    """The result of a cycle for one GPU of the spec."""

    problem: GpuProblem | None = None
    finished: bool = True
    """Whether all operations that are possible now were carried out."""


class NodeAgent:
    """The agent of one node."""

    def __init__(
        self,
        gpus: Gpus,
        pods: PodDevices,
        layout: OwnLayout,
        locks: Locks,
        now: Clock,
        *,
        can_partition: bool,
    ) -> None:
        self._gpus = gpus
        self._pods = pods
        self._layout = layout
        self._locks = locks
        self._now = now
        self._heartbeat: datetime | None = None
        self._can_partition = can_partition
        self._cached_layout: ObservedNodeLayout | None = None
        self._cache_valid = False
        self._backoffs: dict[str, _Backoff] = {}
        self.stop = asyncio.Event()
        # Once it is set, no further operation is started.

    def invalidate_layout(self) -> None:
        """Have the next cycle read the NodeLayout, which may have changed."""
        self._cache_valid = False

    async def reconcile(self) -> None:
        """Partition the GPUs as the spec says, if permitted, and write the status.

        Raises ClusterError if the NodeLayout cannot be read or written.
        """
        layout = await self._read_layout()
        status, at, last = await self._reconcile_gpus(layout), self._now(), self._heartbeat
        due = last is None or not last <= at < last + HEARTBEAT_INTERVAL
        if due or status != layout.status:
            heartbeat = at.replace(microsecond=0)
            await self._layout.write(status.model_copy(update={"last_heartbeat_time": heartbeat}))
            self._heartbeat = at
        self._cached_layout = replace(layout, status=status)

    async def _read_layout(self) -> ObservedNodeLayout:
        """Return the cached NodeLayout, or read it if the cache is not valid."""
        # The cache is empty during the cycle, so that a cycle that fails invalidates it.
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
            update = {"partitioning_enabled": self._can_partition, "problem": str(error)[:500]}
            return previous.model_copy(update=update)
        finished = all(outcome.finished for outcome in outcomes.values())
        generation = layout.generation if finished else previous.observed_generation
        present_uuids = {gpu.uuid for gpu in inventory.gpus}
        missing = [uuid for uuid in outcomes if uuid not in present_uuids]
        return NodeLayoutStatus(
            observed_generation=generation if self._can_partition else 0,
            partitioning_enabled=self._can_partition,
            driver_version=inventory.driver,
            gpus=tuple(
                gpu_status(gpu, pods_by_device, outcomes.get(gpu.uuid, _GpuOutcome()).problem)
                for gpu in inventory.gpus
            ),
            problem=f"spec.gpus names {counted(len(missing), 'GPU')} that the node does not have: "
            f"{', '.join(missing[:3])}; repair the node, or delete NodeLayout/{layout.name} once "
            "GPUs were replaced"
            if missing
            else "",
        )

    async def _partition_gpus(self, layout: ObservedNodeLayout) -> dict[str, _GpuOutcome]:
        """Carry out the spec and return the outcome of every GPU that it names, by UUID."""
        inventory, pods_by_device = await self._gpus.read(), await self._pods.holders()
        gpus = {gpu.uuid: gpu for gpu in inventory.gpus}
        outcomes: dict[str, _GpuOutcome] = {}
        for wanted in layout.spec.gpus:
            gpu = gpus.get(wanted.uuid)
            partition_plan = (
                plan_partitioning(gpu, wanted, pods_by_device) if gpu else PartitionPlan()
            )
            if not partition_plan.operations:
                self._backoffs.pop(wanted.uuid, None)
                outcomes[wanted.uuid] = _GpuOutcome(partition_plan.problem)
            else:
                outcomes[wanted.uuid] = await self._partition_gpu(wanted, layout)
        return outcomes

    async def _partition_gpu(self, wanted: DesiredGpu, layout: ObservedNodeLayout) -> _GpuOutcome:
        """Bring one GPU to its desired layout, or skip it while it backs off."""
        backoff = self._backoffs.get(wanted.uuid)
        if backoff and backoff.spec != wanted:
            backoff = None
        if backoff and backoff.cycles_left:
            self._backoffs[wanted.uuid] = replace(backoff, cycles_left=backoff.cycles_left - 1)
            return _GpuOutcome(backoff.problem)
        with self._locks.hold(wanted.uuid) as acquired:
            if not acquired:
                return _GpuOutcome(finished=False)
            # The cached spec may be outdated; operations follow the latest one only.
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
        """Run the operations of one GPU.

        Raises GpuError if the driver refuses one, or reports success without an effect.
        """
        last: InstanceOperation | None = None
        for _ in range(_MAX_OPERATIONS):
            # A pod may get a device at any time, so the plan is made again before every operation.
            inventory = await self._gpus.read(wanted.uuid)
            gpu = inventory.gpus[0]
            partition_plan = plan_partitioning(gpu, wanted, await self._pods.holders())
            if not partition_plan.operations:
                return _GpuOutcome(partition_plan.problem)
            if self.stop.is_set():
                break
            operation = partition_plan.operations[0]
            if operation == last:
                description = f"{operation.describe()}: the driver reported success"
                raise GpuError("PartitionFailed", f"{description}, but nothing changed; retrying")
            log.info("%s: %s", wanted.uuid, operation.describe())
            run = self._gpus.destroy if operation.action == "destroy" else self._gpus.create
            await run(wanted.uuid, operation.placement)
            last = operation
        return _GpuOutcome(finished=False)
