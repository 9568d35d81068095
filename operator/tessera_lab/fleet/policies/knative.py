"""Knative's pod autoscaler (KPA): concurrency over two windows, and a panic mode."""

import math

from tessera_lab.fleet.observation import Observation, PolicyFamily, ReplicaModel, Settings
from tessera_lab.fleet.policies.knobs import grid
from tessera_lab.fleet.policies.series import TimeWindow


class PanicScaler:
    """Pods for a value over a long and a short window; in panic there are never fewer.

    AIBrix scales by the same rule.
    """

    def __init__(
        self, *, target: float, stable_window: float, threshold: float, rates: tuple[float, float]
    ) -> None:
        self._target = target
        self._stable_window = stable_window
        self._threshold = threshold
        self._up_rate, self._down_rate = rates
        self._panic_at: float | None = None
        self._most = 0

    def panic(self, at: float, pods: int) -> None:
        """Enter the panic mode with these pods, as an autoscaler that starts beside some."""
        self._panic_at, self._most = at, pods

    def decide(self, at: float, pods: int, stable: float, panic: float) -> int:
        """Return the pods for both values, which are totals over all pods."""
        pods = max(1, pods)
        most, fewest = math.ceil(self._up_rate * pods), math.floor(pods / self._down_rate)
        for_panic = math.ceil(panic / self._target)
        desired = min(max(math.ceil(stable / self._target), fewest), most)
        if for_panic / pods >= self._threshold:
            self._panic_at = at
        elif self._panic_at is not None and self._panic_at + self._stable_window < at:
            self._panic_at, self._most = None, 0
        if self._panic_at is None:
            return desired
        self._most = max(self._most, desired, min(max(for_panic, fewest), most))
        return self._most


class KnativePolicy:
    """The KPA on the concurrency that gateway and activator count."""

    interval = 2.0
    # Nothing is read from engines.
    scrape = 60.0

    def __init__(self, settings: Settings, _: ReplicaModel) -> None:
        stable = settings["stable_window"]
        self._scaler = PanicScaler(
            target=settings["target"] * settings["utilization"],
            stable_window=stable,
            threshold=settings["panic_threshold"],
            rates=(settings["max_up_rate"], settings["max_down_rate"]),
        )
        self._stable = TimeWindow(stable)
        self._panic = TimeWindow(stable * settings["panic_share"])
        self._desired = TimeWindow(settings["scale_down_delay"])
        self._fresh = True

    def decide(self, observation: Observation) -> int:
        """Return the pods for the concurrency; those that start do not count."""
        at, ready = observation.at, observation.ready
        if self._fresh and ready > 1:
            self._scaler.panic(at, ready)
        self._fresh = False
        self._stable.add(at, observation.in_flight)
        self._panic.add(at, observation.in_flight)
        desired = self._scaler.decide(at, ready, self._stable.mean(), self._panic.mean())
        self._desired.add(at, desired)
        return max(1, int(self._desired.max()))


KNATIVE_FAMILIES = {
    "knative-kpa": PolicyFamily(
        title="Knative KPA (98e5ef9)",
        create=KnativePolicy,
        published={
            "target": 100.0,
            "utilization": 0.7,
            "stable_window": 60.0,
            "panic_share": 0.1,
            "panic_threshold": 2.0,
            "max_up_rate": 1000.0,
            "max_down_rate": 2.0,
            "scale_down_delay": 0.0,
        },
        grid=grid(
            target=(8, 12, 16, 24, 32, 48, 64, 96, 128),
            stable_window=(60, 300),
            scale_down_delay=(0, 300),
        ),
    ),
}
