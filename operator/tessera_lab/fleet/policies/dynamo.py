"""NVIDIA Dynamo's planner for aggregated engines.

Its regression of the step time is replaced by the step time of the simulated engine itself, which
favors it: nothing has to be learned.
"""

import math
from collections.abc import Callable

from tessera_lab.fleet.observation import (
    EngineSample,
    Observation,
    PolicyFamily,
    ReplicaModel,
    Settings,
)
from tessera_lab.fleet.policies.knobs import MOST_REPLICAS, grid
from tessera_lab.fleet.policies.profile import max_request_rate, predicted_ttft, step_seconds
from tessera_lab.fleet.policies.series import (
    AutoregressiveForecast,
    ConstantForecast,
    Forecaster,
    LoadMeans,
    LoadWindow,
    TrendForecast,
)

LOAD_SECONDS = 5.0
THROUGHPUT_SECONDS = 180.0

# By the number that the knob `forecast` has for them.
_FORECASTS: tuple[Callable[[], Forecaster], ...] = (
    ConstantForecast,
    AutoregressiveForecast,
    TrendForecast,
)


def _steady_engines(observation: Observation) -> list[EngineSample]:
    """Return the engines if all report and nothing starts, else none: the planner observes only."""
    engines = [engine for engine in observation.engines if engine is not None]
    steady = len(engines) == observation.ready >= observation.replicas
    return engines if steady else []


class ThresholdPolicy:
    """The target `throughput` or `latency`: KV cache in use and queued, one step at a time."""

    interval = LOAD_SECONDS
    scrape = 0.0

    def __init__(self, settings: Settings, model: ReplicaModel) -> None:
        self._settings = settings
        self._kv_tokens = model.kv_tokens

    def decide(self, observation: Observation) -> int:
        """Return one more if any engine is above, one less if all are below."""
        replicas, settings = observation.replicas, self._settings
        usage = [
            (engine.kv_tokens + engine.waiting_tokens) / self._kv_tokens
            for engine in _steady_engines(observation)
        ]
        if not usage:
            return replicas
        if max(usage) > settings["up_usage"]:
            return min(replicas + 1, max(replicas, int(settings["max_replicas"])))
        return max(1, replicas - 1) if max(usage) < settings["down_usage"] else replicas


class ThroughputScaling:
    """The target `sla` by throughput: the forecast load over what an engine carries."""

    def __init__(self, settings: Settings, model: ReplicaModel) -> None:
        self._slo = (settings["ttft"], settings["itl"])
        self._model = model
        create = _FORECASTS[int(settings["forecast"])]
        self._rate, self._prompt, self._output = create(), create(), create()

    def replicas(self, load: LoadMeans) -> int:
        """Return the replicas for the next interval, from the means of the last."""
        forecasts = (self._rate, self._prompt, self._output)
        values = (load.rate, load.input_tokens, load.output_tokens)
        for forecast, value in zip(forecasts, values, strict=True):
            forecast.add(value)
        rate, prompt, output = (forecast.next()[0] for forecast in forecasts)
        return max(1, math.ceil(rate / max_request_rate(self._model, prompt, output, self._slo)))


class ThroughputPolicy:
    """Throughput scaling alone."""

    def __init__(self, settings: Settings, model: ReplicaModel) -> None:
        # The frontend counts requests and tokens.
        self.interval = self.scrape = settings["interval"]
        self._scaling = ThroughputScaling(settings, model)
        self._load = LoadWindow(self.interval, model)
        self._bounds = (int(settings["min_endpoint"]), int(settings["max_replicas"]))

    def decide(self, observation: Observation) -> int:
        """Return the replicas for the forecast; before any interval ended, those that are."""
        load = self._load.add(observation)
        if not observation.arrived:
            return observation.replicas
        fewest, most = self._bounds
        return min(max(fewest, self._scaling.replicas(load)), most)


class LoadPolicy:
    """The target `sla` by load: predicted TTFT and ITL of each engine.

    Where throughput scaling is on, too, its result is the floor.
    """

    interval = LOAD_SECONDS
    scrape = 0.0

    def __init__(self, settings: Settings, model: ReplicaModel) -> None:
        self._slo = (settings["ttft"], settings["itl"])
        self._sensitivity = settings["down_sensitivity"]
        self._model = model
        self._throughput = ThroughputScaling(settings, model) if "forecast" in settings else None
        self._most = int(settings["max_replicas"])
        self._floor = 1
        self._interval = self._next = settings.get("interval", THROUGHPUT_SECONDS)
        self._load = LoadWindow(self._interval, model)

    def decide(self, observation: Observation) -> int:
        """Return one step more or less, never below the floor or above the budget."""
        load = self._load.add(observation)
        if self._throughput and observation.at >= self._next:
            self._next += self._interval
            self._floor = self._throughput.replicas(load)
        desired = observation.replicas + self._step(observation, load)
        return min(max(1, self._floor, desired), max(self._most, observation.replicas))

    def _step(self, observation: Observation, load: LoadMeans) -> int:
        """Return 1 if all engines miss TTFT or all ITL, -1 if one less keeps both, else 0."""
        engines = _steady_engines(observation)
        if not engines:
            return 0
        ttft, itl = self._slo
        if all(self._ttft(engine, load) > ttft for engine in engines):
            return 1
        if all(self._itl(engine, engine.kv_tokens, load) > itl for engine in engines):
            return 1
        if len(engines) == 1:
            return 0
        growth = len(engines) / (len(engines) - 1)
        return -1 if all(self._spare(engine, growth, load) for engine in engines) else 0

    def _ttft(
        self,
        engine: EngineSample,
        load: LoadMeans,
        growth: float = 1.0,
        *,
        behind_queue: bool = True,
    ) -> float:
        return predicted_ttft(
            self._model,
            running=growth * engine.running,
            kv_tokens=growth * engine.kv_tokens,
            queued=growth * engine.waiting_tokens if behind_queue else 0.0,
            prompt=load.input_tokens,
        )

    def _itl(
        self, engine: EngineSample, kv_tokens: float, load: LoadMeans, growth: float = 1.0
    ) -> float:
        running = growth * engine.running + 1
        share = running * load.input_tokens / max(1.0, load.output_tokens)
        return step_seconds(
            self._model,
            running=running,
            kv_tokens=kv_tokens + load.input_tokens + load.output_tokens / 2,
            chunk=min(share, self._model.max_num_batched_tokens),
            prompt=load.input_tokens,
        )

    def _spare(self, engine: EngineSample, growth: float, load: LoadMeans) -> bool:
        """Return whether this engine keeps both with its share of the load of one less."""
        ttft, itl = self._slo
        own = self._ttft(engine, load, growth, behind_queue=False)
        queueing = self._ttft(engine, load, growth) - own
        if own >= ttft or queueing >= (ttft - own) * self._sensitivity:
            return False
        tokens = growth * (engine.kv_tokens + engine.waiting_tokens)
        if tokens >= self._model.kv_tokens:
            return False
        return self._itl(engine, tokens, load, growth) < itl * self._sensitivity


_SLA = {"ttft": 0.5, "itl": 0.05, "max_replicas": 8.0}

DYNAMO_FAMILIES = {
    "dynamo-default": PolicyFamily(
        title="Dynamo planner, target throughput (0c6da1e)",
        create=ThresholdPolicy,
        # The target latency has 0.4 and 0.1.
        published={"up_usage": 1.0, "down_usage": 0.6, "max_replicas": 8.0},
        grid=tuple(
            point
            for point in grid(
                up_usage=(0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.6, 0.8, 1),
                down_usage=(0.05, 0.1, 0.2, 0.3, 0.4, 0.6),
                max_replicas=(MOST_REPLICAS,),
            )
            if point["down_usage"] < point["up_usage"]
        ),
    ),
    "dynamo-load": PolicyFamily(
        title="Dynamo planner, SLA by load (0c6da1e)",
        create=LoadPolicy,
        published=_SLA | {"down_sensitivity": 0.8},
        grid=grid(
            ttft=(0.1, 0.2, 0.35, 0.5, 1),
            itl=(0.03, 0.04, 0.05),
            down_sensitivity=(0.4, 0.8),
            max_replicas=(MOST_REPLICAS,),
        ),
    ),
    "dynamo-throughput": PolicyFamily(
        title="Dynamo planner, SLA by throughput (0c6da1e)",
        create=ThroughputPolicy,
        # 0 is constant, 1 autoregressive, 2 a Kalman filter.
        published=_SLA | {"forecast": 1.0, "interval": THROUGHPUT_SECONDS, "min_endpoint": 1.0},
        # An ITL near that of a single request is the only way to any headroom.
        grid=grid(
            itl=(0.018, 0.02, 0.022, 0.05),
            forecast=(0, 1),
            interval=(60, 180),
            min_endpoint=(1, 3),
            max_replicas=(MOST_REPLICAS,),
        ),
    ),
    "dynamo-both": PolicyFamily(
        title="Dynamo planner, SLA by load and throughput (0c6da1e)",
        create=LoadPolicy,
        published=_SLA | {"down_sensitivity": 0.8, "forecast": 1.0, "interval": THROUGHPUT_SECONDS},
        grid=grid(
            ttft=(0.2, 0.5),
            itl=(0.02, 0.022, 0.03, 0.05),
            down_sensitivity=(0.5, 0.8),
            forecast=(0, 1),
            max_replicas=(MOST_REPLICAS,),
        ),
    ),
}
