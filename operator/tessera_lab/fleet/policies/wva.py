"""llm-d's Workload Variant Autoscaler (WVA): its three analyzers, each behind an HPA.

The controller publishes `wva_desired_replicas`, and an HPA with `AverageValue` 1 orders them. Both
decide at the same tick here, without the scrape between them. One variant serves, so whatever the
controller decides by cost among variants is void.
"""

import math
from collections import deque
from statistics import median_low

from tessera_lab.fleet.observation import (
    EngineSample,
    Observation,
    PolicyFamily,
    ReplicaModel,
    Settings,
)
from tessera_lab.fleet.policies.hpa import (
    SYNC_SECONDS,
    HorizontalPodAutoscaler,
    average_value,
    pods_behavior,
)
from tessera_lab.fleet.policies.knobs import MOST_REPLICAS, grid
from tessera_lab.fleet.policies.queueing import QueueingModel, SloTarget
from tessera_lab.fleet.policies.series import LoadWindow


class PublishedReplicas:
    """The HPA that orders what the controller publishes."""

    def __init__(self, settings: Settings) -> None:
        pods, period = settings["pods"], settings["period"]
        self._tolerance = settings["tolerance"]
        self._hpa = HorizontalPodAutoscaler(
            up=pods_behavior(settings["up_window"], pods, period),
            down=pods_behavior(settings["down_window"], pods, period),
            bounds=(1, settings["max_replicas"]),
        )

    def order(self, observation: Observation, desired: int) -> int:
        """Return the replicas that the HPA has by now."""
        replicas = observation.replicas
        proposal = average_value(float(desired), 1.0, replicas, self._tolerance)
        return self._hpa.decide(observation.at, replicas, [proposal])


class PeakSamples:
    """The largest queue and cache of each engine within a minute, as `max_over_time`."""

    def __init__(self) -> None:
        self._scrapes: deque[tuple[EngineSample | None, ...]] = deque(maxlen=4)

    def add(self, observation: Observation) -> list[EngineSample]:
        """Add a scrape and return the peaks of the engines that it shows."""
        engines = observation.engines
        # Engines have no names: after a change of their number none is known from before.
        if self._scrapes and len(self._scrapes[0]) != len(engines):
            self._scrapes.clear()
        self._scrapes.append(engines)
        histories = zip(*self._scrapes, strict=True)
        present = [[sample for sample in history if sample] for history in histories]
        return [_peak(samples) for samples in present if samples]


def _peak(samples: list[EngineSample]) -> EngineSample:
    names = ("running", "waiting", "kv_tokens", "kv_usage")
    return EngineSample(
        **{name: max(getattr(sample, name) for sample in samples) for name in names}
    )


class SaturationPolicy:
    """V1: one replica more while spare cache or queue is short, one less while both remain."""

    interval = SYNC_SECONDS
    scrape = SYNC_SECONDS

    def __init__(self, settings: Settings, _: ReplicaModel) -> None:
        self._settings = settings
        self._samples = PeakSamples()
        self._published = PublishedReplicas(settings)
        self._desired = 0
        self._ordered = 0

    def decide(self, observation: Observation) -> int:
        """Return the replicas that the HPA has; in transition the desired ones stay."""
        replicas = observation.replicas
        engines = self._samples.add(observation)
        # What the HPA has ordered is done: replicas that differ then were lost or refused.
        if self._desired in (0, self._ordered) or self._desired == replicas:
            self._desired = replicas
            if engines and len(engines) >= replicas:
                self._desired += self._change(engines)
        self._ordered = self._published.order(observation, self._desired)
        return self._ordered

    def _change(self, engines: list[EngineSample]) -> int:
        settings = self._settings
        kv_threshold, queue_threshold = settings["kv_threshold"], settings["queue_threshold"]
        spare = [
            (kv_threshold - engine.kv_usage, queue_threshold - engine.waiting)
            for engine in engines
            if engine.kv_usage < kv_threshold and engine.waiting < queue_threshold
        ]
        count = len(spare)
        spare_kv = sum(kv for kv, _ in spare) / max(1, count)
        spare_queue = sum(queue for _, queue in spare) / max(1, count)
        if spare_kv < settings["kv_spare"] or spare_queue < settings["queue_spare"]:
            return 1
        if count < 2:
            return 0
        growth = count / (count - 1)
        kv_after = kv_threshold - (kv_threshold - spare_kv) * growth
        queue_after = queue_threshold - (queue_threshold - spare_queue) * growth
        safe = kv_after >= settings["kv_spare"] and queue_after >= settings["queue_spare"]
        return -1 if safe else 0


class TokenCapacityPolicy:
    """V2: tokens in use and waiting against the tokens that a replica was seen to hold."""

    interval = SYNC_SECONDS
    scrape = SYNC_SECONDS

    def __init__(self, settings: Settings, model: ReplicaModel) -> None:
        self._settings = settings
        self._model = model
        self._samples = PeakSamples()
        self._load = LoadWindow(300.0, model)
        self._published = PublishedReplicas(settings)
        # Tokens in use beside a full queue, by length of the outputs.
        self._seen: dict[str, deque[float]] = {}

    def decide(self, observation: Observation) -> int:
        """Return the replicas that the HPA has for the capacity that is required."""
        return self._published.order(observation, self._desired(observation))

    def _desired(self, observation: Observation) -> int:
        replicas, ready = observation.replicas, observation.ready
        engines, load = self._samples.add(observation), self._load.add(observation)
        if not engines or not ready:
            return replicas
        capacity = median_low(
            self._capacity(engine, load.input_tokens, load.output_tokens) for engine in engines
        )
        demand = observation.queued * load.input_tokens + sum(
            engine.kv_tokens + engine.waiting * load.input_tokens for engine in engines
        )
        required = demand / self._settings["up_threshold"] - capacity * replicas
        if required > 0:
            return replicas + math.ceil(required / capacity)
        spare = capacity * min(ready, replicas) - demand / self._settings["down_boundary"]
        return max(1, replicas - max(0, math.floor(spare / capacity)))

    def _capacity(self, engine: EngineSample, prompt: float, output: float) -> float:
        by_memory = self._settings["kv_threshold"] * self._model.kv_tokens
        return max(1.0, min(by_memory, self._computed(engine, prompt, output)))

    def _computed(self, engine: EngineSample, prompt: float, output: float) -> float:
        bucket = "short" if output < 100 else "medium" if output < 500 else "long"
        seen = self._seen.setdefault(bucket, deque(maxlen=10))
        if engine.waiting >= self._settings["queue_threshold"] and engine.kv_tokens:
            seen.append(engine.kv_tokens)
            return engine.kv_tokens
        if seen:
            return sum(seen) / len(seen)
        # Steady requests: each step reads the share of a prompt per decoded token.
        steady = self._model.max_num_batched_tokens * output / (prompt + output)
        return min(steady, self._model.max_num_seqs) * (prompt + output / 2)


class QueueingPolicy:
    """The queueing model: requests per second over what a replica carries within the SLO."""

    interval = SYNC_SECONDS
    scrape = SYNC_SECONDS

    def __init__(self, settings: Settings, model: ReplicaModel) -> None:
        self._settings = settings
        self._load = LoadWindow(60.0, model)
        self._queueing = QueueingModel(SloTarget(ttft=model.ttft, itl=model.itl))
        self._published = PublishedReplicas(settings)
        ttft, itl = settings["ttft"], settings["itl"]
        self._slo = SloTarget(ttft=ttft, itl=itl) if ttft and itl else None

    def decide(self, observation: Observation) -> int:
        """Return the replicas that the HPA has for the arrivals of the last minute."""
        replicas, ready = observation.replicas, observation.ready
        load = self._load.add(observation)
        if ready and load.rate and load.ttft is not None and load.itl is not None:
            self._queueing.learn(load, ready)
        carried = self._queueing.max_rate(load, self._slo, self._settings["slo_multiplier"])
        if not load.rate or carried is None:
            return self._published.order(observation, replicas)
        return self._published.order(observation, math.ceil(load.rate / carried))


_ACTUATION = {
    "up_window": 0.0,
    "down_window": 240.0,
    "pods": 10.0,
    "period": 150.0,
    "max_replicas": 10.0,
    # The default of an HPA; from 10 replicas on, one more is within it.
    "tolerance": 0.1,
}

WVA_FAMILIES = {
    "wva-v1": PolicyFamily(
        title="llm-d WVA, saturation V1 (2976e4ee)",
        create=SaturationPolicy,
        published=_ACTUATION
        | {"kv_threshold": 0.8, "queue_threshold": 5.0, "kv_spare": 0.1, "queue_spare": 3.0},
        # A spare queue of the threshold or more would always add a replica.
        grid=tuple(
            point
            for queue_threshold, queue_spare in ((2, 1), (5, 3))
            for point in grid(
                kv_threshold=(0.2, 0.3, 0.5, 0.8),
                kv_spare=(0.05, 0.1),
                queue_threshold=(queue_threshold,),
                queue_spare=(queue_spare,),
                down_window=(240, 600),
                max_replicas=(MOST_REPLICAS,),
                tolerance=(0,),
            )
        ),
    ),
    "wva-v2": PolicyFamily(
        title="llm-d WVA, token capacity V2 (2976e4ee)",
        create=TokenCapacityPolicy,
        published=_ACTUATION
        | {
            "kv_threshold": 0.8,
            "queue_threshold": 5.0,
            "up_threshold": 0.85,
            "down_boundary": 0.7,
        },
        grid=grid(
            kv_threshold=(0.1, 0.2, 0.4, 0.8),
            up_threshold=(0.5, 0.7, 0.85),
            down_boundary=(0.3, 0.5, 0.7),
            max_replicas=(MOST_REPLICAS,),
            tolerance=(0,),
        ),
    ),
    "wva-queueing": PolicyFamily(
        title="llm-d WVA, queueing model (2976e4ee)",
        create=QueueingPolicy,
        # Targets of 0 are inferred from the multiplier.
        published=_ACTUATION | {"slo_multiplier": 3.0, "ttft": 0.0, "itl": 0.0},
        grid=(
            *grid(
                slo_multiplier=(1.2, 1.5, 2, 2.5, 3, 4, 5, 8),
                down_window=(60, 240),
                max_replicas=(MOST_REPLICAS,),
                tolerance=(0,),
            ),
            *grid(
                ttft=(0.05, 0.1, 0.25, 0.5, 1),
                itl=(0.02, 0.03, 0.05),
                max_replicas=(MOST_REPLICAS,),
                tolerance=(0,),
            ),
        ),
    ),
}
