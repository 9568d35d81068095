"""Policies of two papers, after the public re-implementation of both: SageServe and Chiron.

The service here has interactive requests only, so what they do with batch requests is left out.
"""

import math

from tessera_lab.fleet.observation import Observation, PolicyFamily, ReplicaModel, Settings
from tessera_lab.fleet.policies.hpa import mean_of
from tessera_lab.fleet.policies.knobs import MOST_REPLICAS, grid
from tessera_lab.fleet.policies.profile import max_concurrency, max_request_rate
from tessera_lab.fleet.policies.series import AutoregressiveForecast, LoadWindow

TICK_SECONDS = 15.0
_HOUR = 3600.0
# Bins of the forecast, and how many make its hour.
_BIN_SECONDS = 600.0
_BINS = 6


class SageServePolicy:
    """An hourly plan from a forecast of prompt tokens, carried out as the KV cache asks for it.

    Before the first plan the cache alone decides. A cool-down of the start-up time follows each
    step. The published integer program is a ceiling here: one model, one region, one GPU type.
    """

    interval = TICK_SECONDS
    scrape = TICK_SECONDS

    def __init__(self, settings: Settings, model: ReplicaModel) -> None:
        self._settings = settings
        self._model = model
        self._forecast = AutoregressiveForecast()
        self._load = LoadWindow(_BIN_SECONDS, model)
        self._tokens = 0
        self._next_bin, self._next_plan = _BIN_SECONDS, _HOUR
        self._changes: int | None = None
        self._free_at = 0.0

    def decide(self, observation: Observation) -> int:
        """Return the replicas after at most one step."""
        at, replicas = observation.at, observation.replicas
        load = self._load.add(observation)
        if at >= self._next_bin:
            self._next_bin += _BIN_SECONDS
            tokens = observation.totals.prompt_tokens
            self._forecast.add(tokens - self._tokens)
            self._tokens = tokens
        if at >= self._next_plan:
            self._next_plan += _HOUR
            planned = self._plan(load.input_tokens, load.output_tokens)
            self._changes = planned - replicas
        usage = mean_of(observation, lambda engine: engine.kv_usage)
        if usage is None or at < self._free_at:
            return replicas
        step = self._step(usage)
        if step and self._changes is not None:
            self._changes -= step
        if step:
            self._free_at = at + self._settings["cooldown"] * self._model.lead
        return min(max(1, replicas + step), max(replicas, int(self._settings["max_replicas"])))

    def _plan(self, prompt: float, output: float) -> int:
        rate = max_request_rate(self._model, prompt, output, (self._model.ttft, self._model.itl))
        peak = max(self._forecast.next(_BINS)) * (1 + self._settings["buffer"])
        return max(1, math.ceil(peak / (_BIN_SECONDS * rate * prompt)))

    def _step(self, usage: float) -> int:
        settings, changes = self._settings, self._changes
        if changes == 0:
            return 1 if usage > settings["override"] else 0
        if usage > settings["up_usage"] and (changes is None or changes > 0):
            return 1
        if usage < settings["down_usage"] and (changes is None or changes < 0):
            return -1
        return 0


class ChironPolicy:
    """One more while the interactive back-pressure is above its target, else one less.

    The back-pressure is the share of instances that serve an interactive request. A router that
    spreads requests makes that all of them at little load; `packed` counts those that would serve
    if each were filled to the batch size that keeps ITL, as Chiron's own router does.
    """

    interval = TICK_SECONDS
    scrape = TICK_SECONDS

    def __init__(self, settings: Settings, model: ReplicaModel) -> None:
        self._settings = settings
        self._model = model
        self._load = LoadWindow(_BIN_SECONDS, model)
        self._free_at = 0.0

    def decide(self, observation: Observation) -> int:
        """Return the replicas after at most one step, with a start-up time between steps."""
        settings, replicas = self._settings, observation.replicas
        load = self._load.add(observation)
        engines = [engine for engine in observation.engines if engine is not None]
        if not engines or observation.at < self._free_at:
            return replicas
        requests = [engine.running + engine.waiting for engine in engines]
        serving = sum(1 for count in requests if count)
        if settings["packed"]:
            slo = (self._model.ttft, self._model.itl)
            batch = max_concurrency(self._model, load.input_tokens, load.output_tokens, slo)
            serving = math.ceil(sum(requests) / batch)
        pressure = serving / max(replicas, observation.ready, 1)
        if pressure > settings["target"]:
            desired = min(replicas + 1, max(replicas, int(settings["max_replicas"])))
        elif pressure <= settings["target"] - settings["margin"]:
            desired = max(1, replicas - 1)
        else:
            desired = replicas
        if desired != replicas:
            self._free_at = observation.at + settings["cooldown"] * self._model.lead
        return desired


RESEARCH_FAMILIES = {
    "sageserve": PolicyFamily(
        title="SageServe (2502.14617; repository at 6bcc58b)",
        create=SageServePolicy,
        published={
            "up_usage": 0.5,
            "down_usage": 0.25,
            "override": 0.9,
            "buffer": 0.1,
            "cooldown": 1.0,
            "max_replicas": MOST_REPLICAS,
        },
        grid=grid(
            up_usage=(0.15, 0.3, 0.5),
            down_usage=(0.05, 0.1),
            override=(0.3, 0.6, 0.9),
            buffer=(0.1, 0.3),
        ),
    ),
    "chiron": PolicyFamily(
        title="Chiron (2501.08090; SageServe's repository at 6bcc58b)",
        create=ChironPolicy,
        published={
            "target": 0.6,
            "margin": 0.0,
            "packed": 0.0,
            "cooldown": 1.0,
            "max_replicas": MOST_REPLICAS,
        },
        grid=grid(
            target=(0.3, 0.4, 0.5, 0.6, 0.7, 0.8),
            margin=(0, 0.1, 0.2),
            packed=(1,),
            cooldown=(0.2, 1),
        ),
    ),
}
