"""What a world is to be, as its parts need to know it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from world.binaries import Progress
from world.control_plane import CROWDED, FAULTS, SCALE, HeartBeats
from world.fleet import Node, NodeGroup
from world.slots import Slot

# Up to so many KWOK nodes the silence of a node is noticed quickly.
FEW_FAKES = 10
# Above so many GPUs the kubelets are late on a busy machine, and no test lets a node fall silent.
FEW_GPUS = 24

Facts = dict[str, str | int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    nodes: Sequence[Node]
    groups: Sequence[NodeGroup] = ()
    binaries: Path
    karpenter: Path | None = None
    """The folder of Karpenter, where a group needs it."""
    folder: Path
    slot: Slot
    vllm: Path | None
    lifeline: bool
    progress: Progress
    announce: Callable[[Facts], None]
    """Called once, when the world is ready."""

    @property
    def fakes(self) -> list[Node]:
        return [node for node in self.nodes if not node.live]

    @property
    def beats(self) -> HeartBeats:
        if len(self.fakes) > FEW_FAKES:
            return SCALE
        gpus = sum(len(node.gpus) for node in self.nodes)
        gpus += sum(group.max_nodes * len(group.template.gpus) for group in self.groups)
        return FAULTS if gpus <= FEW_GPUS else CROWDED

    @property
    def has_gpus(self) -> bool:
        return any(node.gpus for node in (*self.nodes, *self.templates))

    @property
    def played_groups(self) -> list[NodeGroup]:
        """Return the groups whose autoscaler is no program of its own."""
        return [group for group in self.groups if group.autoscaler != "karpenterCore"]

    @property
    def templates(self) -> list[Node]:
        return [group.template for group in self.groups]

    @property
    def addresses(self) -> list[str]:
        """Return an address for each live node, then those for all that node groups may make."""
        count = sum(node.live for node in self.nodes)
        count += sum(group.max_nodes for group in self.groups)
        return [self.slot.node(index) for index in range(count)]
