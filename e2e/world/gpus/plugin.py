"""The device plugin of one node, which offers the devices that it saw at its start."""

from collections.abc import Callable
from dataclasses import dataclass

from world.kubelet.devices import Device

LABEL = "nvidia.com/gpu.deploy.device-plugin"
START_SECONDS = 1.0


@dataclass(slots=True, kw_only=True)
class Plugin:
    """Sees new slices only when it starts again, as the real one does."""

    look: Callable[[], tuple[Device, ...]]
    start_seconds: float = START_SECONDS
    """From the label until its devices are offered."""
    stop_seconds: float = 0.0
    """From the label until they are offered no more; a stop that has begun is finished."""
    offered: tuple[Device, ...] | None = None
    """None while it is away."""
    _due: float | None = None

    def step(self, label: str | None, now: float) -> None:
        """What the node's label says about it; `now` are seconds of any clock."""
        away, wanted = self.offered is None, label == "true"
        if away and not wanted:
            self._due = None
        elif self._due is None and away == wanted:
            self._due = now + (self.start_seconds if away else self.stop_seconds)
        if self._due is not None and self._due <= now:
            self.offered, self._due = self.look() if away else None, None
