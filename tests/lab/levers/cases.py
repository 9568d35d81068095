"""A small service, and replicas that are not played."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from tessera.domain.hardware.device import whole_gpu_hardware
from tessera.domain.hardware.gpu_catalog import models, products
from tessera_lab.engine.play import TimedRequest
from tessera_lab.engine.requests import EngineRequest
from tessera_lab.engine.setup import EngineSetup
from tessera_lab.fleet.prices import GpuPrices
from tessera_lab.levers.assumptions import LeverAssumptions
from tessera_lab.levers.case import ServiceCase
from tessera_lab.levers.ladder import MonthlyCosts
from tessera_lab.levers.replica_rate import LatencyObjectives, LoadSample, ReplicaRate

A100, L4 = "NVIDIA-A100-SXM4-80GB", "NVIDIA-L4"
HOURS = 730
# Half of the time 10 requests per second, half of the time 30.
DEMAND = ((3600.0, 10.0), (3600.0, 30.0))
CASE = ServiceCase(
    shape=models()["meta-llama/Llama-3.1-8B-Instruct"],
    load=LoadSample(
        name="test",
        requests=tuple(
            TimedRequest(
                float(number), EngineRequest(id=number, prompt_tokens=500, output_tokens=100)
            )
            for number in range(40)
        ),
        shared_tokens=16,
    ),
    objectives=LatencyObjectives(ttft=2.5, tpot=0.05),
    demand=DEMAND,
    baseline=whole_gpu_hardware(products()[A100], 1),
    prices={
        A100: GpuPrices(on_demand=4.0, reserved=2.4, spot=1.8),
        L4: GpuPrices(on_demand=1.0, reserved=0.6, spot=0.3),
    },
    draft=models()["meta-llama/Llama-3.2-1B-Instruct"],
    small=models()["meta-llama/Llama-3.2-3B-Instruct"],
    assumptions=LeverAssumptions(
        hit_share=0.5, small_share=0.4, batch_share=0.2, wasted=0.1, engineer_hour=10.0
    ),
)

Rate = Callable[[EngineSetup], float]


def costs_of(
    rate: Rate, keeps: Callable[[EngineSetup], bool] | None = None, **changes: Any
) -> MonthlyCosts:
    """Return the months of the case where a replica carries what `rate` says."""

    def measure(setup: EngineSetup) -> ReplicaRate:
        saturated = rate(setup) / 0.8
        within = True if keeps is None else keeps(setup)
        return ReplicaRate(
            rate=rate(setup), saturated=saturated, keeps_slo=within, ttft=0.5, tpot=0.02
        )

    return MonthlyCosts(replace(CASE, **changes), measure)
