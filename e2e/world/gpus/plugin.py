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
    offered: tuple[Device, ...] | None = None
    """None while it is away."""
    _due: float | None = None

    def step(self, label: str | None, now: float) -> None:
        """What the node's label says about it; `now` are seconds of any clock."""
        if label != "true":
            self.offered = self._due = None
        elif self.offered is None and self._due is None:
            self._due = now + self.start_seconds
        elif self._due is not None and self._due <= now:
            self.offered, self._due = self.look(), None
