"""One look at a node's GPUs, and what follows from it.

Nothing is remembered that a restart would miss: what is wanted stands in the NodeLayout, what is
there in the driver, and who holds it in the kubelet.
"""

import asyncio
import logging
from dataclasses import dataclass, replace

from tessera.api.node_layout import DesiredGpu, NodeLayoutStatus
from tessera.domain.cutting import Deed, Trouble, cutting, seen
from tessera.domain.repartition.facts import NodeLayout
from tessera.ports import GpuError, Gpus, KubeletError, Locks, OwnLayout, PodDevices

log = logging.getLogger("tessera")

_MOST_DEEDS = 32
"""On one GPU in one turn: eight go, eight come, and both may be half made."""
_LONGEST_WAIT = 32
"""In turns: so long a GPU whose driver refuses is left alone at most."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Refusal:
    """The driver refused; the GPU is left alone for some turns, longer every time.

    Another spec is tried at once.
    """

    spec: DesiredGpu
    trouble: Trouble
    wait: int
    left: int


@dataclass(frozen=True, slots=True)
class _Outcome:
    """What came of the spec of one GPU."""

    trouble: Trouble | None = None
    finished: bool = True
    """All was done that can be done now."""


class Agent:
    """The agent of one node."""

    def __init__(
        self, gpus: Gpus, pods: PodDevices, layout: OwnLayout, locks: Locks, *, cuts: bool
    ) -> None:
        self._gpus = gpus
        self._pods = pods
        self._layout = layout
        self._locks = locks
        self._cuts = cuts
        self._known: NodeLayout | None = None
        self._fresh = False
        self._refusals: dict[str, _Refusal] = {}
        self.stop = asyncio.Event()
        """No further step is begun once it is set."""

    def forget(self) -> None:
        """The NodeLayout may be another now; the next turn reads it."""
        self._fresh = False

    async def turn(self) -> None:
        """Look, cut what may be cut, and tell what is there. ClusterError: it was not told."""
        layout = await self._own()
        status = await self._look(layout)
        if status != layout.status:
            await self._layout.write(status)
        self._known = replace(layout, status=status)

    async def _own(self) -> NodeLayout:
        """Read, unless it is known to be unchanged; a turn that breaks off leaves nothing known."""
        found, self._known = self._known, None
        if found is None or not self._fresh:
            self._fresh = True
            found = await self._layout.read()
        return found

    async def _look(self, layout: NodeLayout) -> NodeLayoutStatus:
        before = layout.status or NodeLayoutStatus()
        try:
            outcomes = await self._cut(layout) if self._cuts else {}
            readout, holders = await self._gpus.read(), await self._pods.holders()
        except (GpuError, KubeletError) as error:
            log.warning("%s", error)
            return NodeLayoutStatus(
                observed_generation=before.observed_generation,
                cuts=self._cuts,
                problem=str(error)[:500],
            )
        finished = all(outcome.finished for outcome in outcomes.values())
        there = {gpu.uuid for gpu in readout.gpus}
        missing = [uuid for uuid in outcomes if uuid not in there]
        return NodeLayoutStatus(
            observed_generation=self._observed(layout, before, finished=finished),
            cuts=self._cuts,
            driver=readout.driver,
            gpus=tuple(
                seen(gpu, holders, outcomes.get(gpu.uuid, _Outcome()).trouble)
                for gpu in readout.gpus
            ),
            problem=f"the spec names GPUs that are not here: {', '.join(missing)}"[:500]
            if missing
            else "",
        )

    def _observed(self, layout: NodeLayout, before: NodeLayoutStatus, *, finished: bool) -> int:
        if not self._cuts:
            return 0
        return layout.generation if finished else before.observed_generation

    async def _cut(self, layout: NodeLayout) -> dict[str, _Outcome]:
        """By the UUID of every GPU that the spec names."""
        readout, holders = await self._gpus.read(), await self._pods.holders()
        gpus = {gpu.uuid: gpu for gpu in readout.gpus}
        found: dict[str, _Outcome] = {}
        for wanted in layout.spec.gpus:
            gpu = gpus.get(wanted.uuid)
            todo = cutting(gpu, wanted, holders) if gpu else None
            if todo is None or not todo.deeds:
                self._refusals.pop(wanted.uuid, None)
                found[wanted.uuid] = _Outcome(todo.trouble if todo else None)
            else:
                found[wanted.uuid] = await self._carve(wanted, layout)
        return found

    async def _carve(self, wanted: DesiredGpu, layout: NodeLayout) -> _Outcome:
        """The GPU as it is wanted, step by step; a refusal is tried again some turns later."""
        refusal = self._refusals.get(wanted.uuid)
        if refusal and refusal.spec != wanted:
            refusal = None
        if refusal and refusal.left:
            self._refusals[wanted.uuid] = replace(refusal, left=refusal.left - 1)
            return _Outcome(refusal.trouble)
        with self._locks.hold(wanted.uuid) as ours:
            if not ours:
                return _Outcome(finished=False)
            if (await self._layout.read()).generation != layout.generation:
                self.forget()
                return _Outcome(finished=False)
            try:
                outcome = await self._steps(wanted)
            except GpuError as error:
                log.warning("%s: %s", wanted.uuid, error)
                wait = min(2 * refusal.wait, _LONGEST_WAIT) if refusal else 1
                trouble = Trouble(error.fault, str(error))
                self._refusals[wanted.uuid] = _Refusal(
                    spec=wanted, trouble=trouble, wait=wait, left=wait
                )
                return _Outcome(trouble)
        self._refusals.pop(wanted.uuid, None)
        return outcome

    async def _steps(self, wanted: DesiredGpu) -> _Outcome:
        """Before every step it is looked anew at who holds what."""
        last: Deed | None = None
        for _ in range(_MOST_DEEDS):
            readout = await self._gpus.read(wanted.uuid)
            todo = cutting(readout.gpus[0], wanted, await self._pods.holders())
            if not todo.deeds:
                return _Outcome(todo.trouble)
            if self.stop.is_set():
                break
            deed = todo.deeds[0]
            if deed == last:
                told = f"{deed.told()}: the driver says that it is done, but nothing changed"
                raise GpuError("CannotCut", f"{told}; it is tried again")
            log.info("%s: %s", wanted.uuid, deed.told())
            await self._do(wanted.uuid, deed)
            last = deed
        return _Outcome(finished=False)

    async def _do(self, gpu: str, deed: Deed) -> None:
        if deed.verb == "destroy":
            await self._gpus.destroy(gpu, deed.spot)
        else:
            await self._gpus.create(gpu, deed.spot)
