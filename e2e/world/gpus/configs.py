"""A ConfigMap as a pod sees it: a while after it was written."""

from dataclasses import dataclass, field


@dataclass(slots=True)
class MountedConfig:
    """The text of one key; None while there is no ConfigMap."""

    lag_seconds: float
    _arriving: list[tuple[float, str | None]] = field(default_factory=list)
    _current: str | None = None

    def arrive(self, text: str | None, now: float) -> None:
        self._arriving.append((now + self.lag_seconds, text))

    def at(self, now: float) -> str | None:
        while self._arriving and self._arriving[0][0] <= now:
            _, self._current = self._arriving.pop(0)
        return self._current
