"""GPU feature discovery on one node: labels that follow what there is, a moment later."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

LABEL = "nvidia.com/gpu.deploy.gpu-feature-discovery"
SLICES = "nvidia.com/mig-"
START_SECONDS = 1.5
PERIOD_SECONDS = 60.0


@dataclass(slots=True, kw_only=True)
class Discovery:
    """It looks when it begins and every minute; its labels stay while it is away."""

    look: Callable[[], Mapping[str, str]]
    start_seconds: float = START_SECONDS
    period_seconds: float = PERIOD_SECONDS
    last_labels: Mapping[str, str] | None = None
    """What it has found last."""
    _due: float | None = None

    def step(self, labels: Mapping[str, str], now: float) -> dict[str, str | None] | None:
        """Labels to write, None as a value takes one away; None while nothing is new."""
        if labels.get(LABEL) != "true":
            self._due = None
            return None
        if self._due is None:
            self._due = now + self.start_seconds
        if now < self._due:
            return None
        self._due = now + self.period_seconds
        discovered = self.look()
        if discovered == self.last_labels:
            return None
        self.last_labels = discovered
        return _difference(labels, discovered)


def _difference(
    labels: Mapping[str, str], discovered: Mapping[str, str]
) -> dict[str, str | None] | None:
    removed = (key for key in labels if key.startswith(SLICES) and key not in discovered)
    changed = {key: value for key, value in discovered.items() if labels.get(key) != value}
    return (dict.fromkeys(removed) | changed) or None
