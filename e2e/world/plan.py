"""What a world is to be, as its parts need to know it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from world.binaries import Progress
from world.control_plane import FAULTS, SCALE, HeartBeats
from world.fleet import Node
from world.slots import Slot

# Up to so many KWOK nodes the silence of a node is noticed quickly.
FEW_FAKES = 10

Facts = dict[str, str | int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    nodes: Sequence[Node]
    binaries: Path
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
        return FAULTS if len(self.fakes) <= FEW_FAKES else SCALE

    @property
    def has_gpus(self) -> bool:
        return any(node.gpus for node in self.nodes)
