"""AIBrix: its PodAutoscaler (APA) and its GPU optimizer."""

import math
from collections import Counter, deque
from collections.abc import Sequence

from tessera_lab.fleet.observation import Observation, PolicyFamily, ReplicaModel, Settings
from tessera_lab.fleet.policies.knative import PanicScaler
from tessera_lab.fleet.policies.knobs import MOST_REPLICAS, grid
from tessera_lab.fleet.policies.profile import max_request_rate
from tessera_lab.fleet.policies.series import TimeWindow

RESYNC_SECONDS = 10.0


class ApaPolicy:
    """Steps towards a target of KV-cache use per pod, at most twice or half at once."""

    interval = RESYNC_SECONDS
    # Metrics come straight from the pods.
    scrape = 0.0

    def __init__(self, settings: Settings, _: ReplicaModel) -> None:
        self._settings = settings
        self._usage = TimeWindow(settings["window"])
        self._desired = TimeWindow(settings["down_cooldown"])

    def decide(self, observation: Observation) -> int:
        """Return the pods for the mean use of the window; none shows any: hold."""
        at, replicas = observation.at, observation.replicas
        usage = [engine.kv_usage for engine in observation.engines if engine is not None]
        if not usage:
            return replicas
        self._usage.add(at, sum(usage) / len(usage))
        desired = self._step(replicas, self._usage.mean() / self._settings["target"])
        if self._settings["pending_guard"] and replicas > observation.ready:
            desired = min(desired, replicas)
        self._desired.add(at, desired)
        return int(min(max(1, self._desired.max()), self._settings["max_replicas"]))

    def _step(self, replicas: int, ratio: float) -> int:
        settings = self._settings
        proportional = math.ceil(replicas * ratio - 1e-9)
        if ratio > 1 + settings["up_tolerance"]:
            return min(proportional, math.ceil(settings["max_up_rate"] * replicas))
        if ratio < 1 - settings["down_tolerance"]:
            return max(proportional, math.floor(replicas / settings["max_down_rate"]))
        return replicas


class OptimizerPolicy:
    """Pods by the request rate and the profiled rate of each bucket of lengths.

    With one GPU type the integer program is a ceiling of the sum. A PodAutoscaler of the kind KPA
    with target 1 follows the result.
    """

    interval = RESYNC_SECONDS
    # Requests come from the gateway's trace.
    scrape = 60.0

    def __init__(self, settings: Settings, model: ReplicaModel) -> None:
        self._settings = settings
        self._model = model
        self._slo = (settings["ttft_share"] * model.ttft, settings["itl_share"] * model.itl)
        self._rates: dict[tuple[int, int], float] = {}
        self._ended: Counter[tuple[int, int]] = Counter()
        self._batches: deque[tuple[float, Counter[tuple[int, int]]]] = deque()
        self._arrived = 0
        self._scaler = PanicScaler(
            target=1.0, stable_window=settings["stable_window"], threshold=2.0, rates=(2.0, 2.0)
        )
        self._stable = TimeWindow(settings["stable_window"])
        self._panic = TimeWindow(settings["panic_window"])
        self._desired = TimeWindow(settings["down_cooldown"])

    def decide(self, observation: Observation) -> int:
        """Return the pods that the requests of the window need."""
        at = observation.at
        self._remember(at, observation.finished_lengths)
        value = max(1, math.ceil(self._load(observation.arrived)))
        self._stable.add(at, value)
        self._panic.add(at, value)
        pods = self._scaler.decide(
            at, observation.replicas, self._stable.mean(), self._panic.mean()
        )
        self._desired.add(at, pods)
        return int(min(max(1, self._desired.max()), self._settings["max_replicas"]))

    def _load(self, arrived: int) -> float:
        """Return the replicas for the arrivals since the last tick, as long as those that ended."""
        arrivals, self._arrived = arrived - self._arrived, arrived
        ended = self._ended.total()
        if not ended:
            return 0.0
        seconds = sum(count / self._rate(bucket) for bucket, count in self._ended.items())
        return arrivals / RESYNC_SECONDS * seconds / ended

    def _remember(self, at: float, lengths: Sequence[tuple[int, int]]) -> None:
        batch = Counter((_power(prompt), _power(output)) for prompt, output in lengths)
        self._ended.update(batch)
        self._batches.append((at, batch))
        while self._batches[0][0] <= at - self._settings["window"]:
            self._ended -= self._batches.popleft()[1]

    def _rate(self, bucket: tuple[int, int]) -> float:
        if bucket not in self._rates:
            prompt, output = (min(2.0**power, self._model.max_model_len) for power in bucket)
            self._rates[bucket] = max_request_rate(self._model, prompt, output, self._slo)
        return self._rates[bucket]


def _power(tokens: int) -> int:
    return round(math.log2(max(1, tokens)))


AIBRIX_FAMILIES = {
    "aibrix-apa": PolicyFamily(
        title="AIBrix PodAutoscaler APA (e3e10f9)",
        create=ApaPolicy,
        published={
            "target": 0.5,
            "window": 60.0,
            "up_tolerance": 0.1,
            "down_tolerance": 0.1,
            "max_up_rate": 2.0,
            "max_down_rate": 2.0,
            "down_cooldown": 300.0,
            # 1 adds none while pods start, as of 2026 (PR 2671).
            "pending_guard": 0.0,
            "max_replicas": 8.0,
        },
        grid=grid(
            target=(0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.7),
            down_cooldown=(300, 900),
            pending_guard=(0, 1),
            max_replicas=(MOST_REPLICAS,),
        ),
    ),
    "aibrix-optimizer": PolicyFamily(
        title="AIBrix GPU optimizer behind its KPA (e3e10f9)",
        create=OptimizerPolicy,
        published={
            "window": 240.0,
            "ttft_share": 1.0,
            "itl_share": 1.0,
            "stable_window": 180.0,
            "panic_window": 60.0,
            "down_cooldown": 300.0,
            "max_replicas": 10.0,
        },
        grid=grid(
            window=(120, 240),
            ttft_share=(0.25, 0.5, 1),
            itl_share=(0.5, 0.75, 1),
            stable_window=(60, 180),
            max_replicas=(MOST_REPLICAS,),
        ),
    ),
}
