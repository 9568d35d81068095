"""Small fleets and traces."""

from array import array
from collections.abc import Sequence
from typing import Any

from tessera.domain.perf.step import StepTime
from tessera_lab.engine.requests import EngineLimits
from tessera_lab.fleet.model import FleetModel, StartUp
from tessera_lab.fleet.observation import Decision, Observation, ReplicaModel
from tessera_lab.fleet.trace import Trace

STEP = StepTime(weights=0.010, kv_token=1e-7, token=5e-5, source="Table")
LIMITS = EngineLimits(
    max_model_len=4096, max_num_seqs=16, max_num_batched_tokens=512, blocks=1001, block_size=16
)
REPLICA = ReplicaModel(
    step=STEP,
    kv_tokens=16_000,
    max_num_seqs=16,
    max_num_batched_tokens=512,
    max_model_len=4096,
    ttft=1.0,
    itl=0.05,
    lead=20.0,
    input_tokens=400,
    output_tokens=50,
)


def a_trace(requests: Sequence[tuple[float, int, int]], seconds: float) -> Trace:
    """Build a trace of (arrival, prompt tokens, output tokens)."""
    return Trace(
        name="test",
        seconds=seconds,
        arrivals=array("d", [arrival for arrival, *_ in requests]),
        input_tokens=array("l", [prompt for _, prompt, _ in requests]),
        output_tokens=array("l", [output for *_, output in requests]),
    )


def steady(rate: float, seconds: float, prompt: int = 400, output: int = 50) -> Trace:
    """Build a trace of equal requests at equal intervals."""
    count = int(rate * seconds)
    return a_trace([(index / rate, prompt, output) for index in range(count)], seconds)


def a_fleet(**fields: Any) -> FleetModel:
    """Build a fleet whose replicas start in 20 s."""
    start_up = StartUp(low=20, mode=20, high=20)
    return FleetModel(
        **{"replica": REPLICA, "limits": LIMITS, "step": STEP, "start_up": start_up, **fields}
    )


class Planned:
    """Plays decisions by their moments."""

    def __init__(self, *decisions: tuple[float, Decision], interval: float = 5.0) -> None:
        self.interval, self.scrape = interval, 15.0
        self.observations: list[Observation] = []
        self._decisions = decisions

    def decide(self, observation: Observation) -> Decision:
        self.observations.append(observation)
        return [decision for at, decision in self._decisions if at <= observation.at][-1]
