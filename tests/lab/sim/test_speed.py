from datetime import timedelta

import pytest

from tessera.domain.hardware import device as hardware
from tessera.domain.hardware import gpu_catalog as catalog
from tessera.domain.sizing import sizing
from tessera.domain.sizing.scheduler_limits import Demand
from tessera.domain.sizing.sizing import ReplicaFit
from tessera_lab.engine import EngineCore
from tessera_lab.engine.requests import EngineRequest
from tessera_lab.sim.launch.engine_config import EngineConfig, load_config
from tests.lab.sim.running import SHAPE, running

MEDIUM = "meta-llama/Llama-3.1-8B-Instruct"
INPUT, OUTPUT = 1200, 250
INTER_TOKEN = timedelta(milliseconds=60)


def _fit(product: str, profile: str) -> ReplicaFit:
    gpu = catalog.products()[product]
    replica_hardware = (
        hardware.slice_hardware(gpu, profile) if profile else hardware.whole_gpu_hardware(gpu, 1)
    )
    assert replica_hardware is not None
    demand = Demand(
        shape=catalog.models()[MEDIUM],
        precision=None,
        max_model_len=4096,
        input_tokens=INPUT,
        output_tokens=OUTPUT,
        ttft=timedelta(seconds=2),
        inter_token=INTER_TOKEN,
    )
    fit = sizing.size(demand, replica_hardware)
    assert isinstance(fit, ReplicaFit)
    return fit


def _config_of(fit: ReplicaFit) -> EngineConfig:
    """Return the configuration with which the planner would start the engine."""
    replica_hardware = fit.hardware
    argv = [
        MEDIUM,
        f"--max-model-len={fit.max_model_len}",
        f"--max-num-seqs={fit.limits.max_num_seqs}",
        f"--max-num-batched-tokens={fit.limits.max_num_batched_tokens}",
    ]
    device = (
        replica_hardware.product
        if replica_hardware.profile is None
        else f"{replica_hardware.product}/{replica_hardware.profile}"
    )
    return load_config(argv, {"TESSERA_SIM_DEVICE": device})


HARDWARE = [
    ("NVIDIA-A100-SXM4-80GB", ""),
    ("NVIDIA-A100-SXM4-80GB", "3g.40gb"),
    ("NVIDIA-H100-80GB-HBM3", ""),
]


@pytest.mark.parametrize(("product", "profile"), HARDWARE)
@pytest.mark.parametrize("streams", [1, 8, 32])
def test_decoding_streams_give_the_tokens_per_second_of_the_performance_model(
    product: str, profile: str, streams: int
) -> None:
    fit = _fit(product, profile)
    launch = _config_of(fit)
    engine = EngineCore(launch.limits, launch.speed)
    for number in range(streams):
        engine.submit(EngineRequest(id=number, prompt_tokens=INPUT, output_tokens=OUTPUT))
    steps = [step for step in iter(engine.step, None) if step.decoding == streams]
    middle = streams * (INPUT + OUTPUT // 2)
    predicted = streams / fit.step.seconds(decoding=streams, kv_tokens=middle)
    measured = sum(len(step.emitted) for step in steps) / sum(step.seconds for step in steps)
    assert measured == pytest.approx(predicted, rel=0.01)


@pytest.mark.parametrize(("product", "profile"), HARDWARE)
def test_a_saturated_engine_gives_what_the_planner_predicts(product: str, profile: str) -> None:
    fit = _fit(product, profile)
    launch = _config_of(fit)
    tokens_per_second, gap = _measure_saturated(EngineCore(launch.limits, launch.speed))
    assert 0.92 <= tokens_per_second / fit.limits.tokens_per_second <= 1.02
    # The plan uses the mean cache usage; one step in twenty has a little more.
    assert gap <= 1.005 * INTER_TOKEN.total_seconds()


def _measure_saturated(engine: EngineCore) -> tuple[float, float]:
    """Measure tokens per second and the P95 of steps, with requests always waiting."""
    arrived, tokens, steps = 0, 0, list[float]()
    for number in range(6 * OUTPUT):
        while engine.waiting < 2:
            # Lengths around the typical one, so that the answers do not all end together.
            output = OUTPUT // 2 + arrived * 97 % OUTPUT
            engine.submit(EngineRequest(id=arrived, prompt_tokens=INPUT, output_tokens=output))
            arrived += 1
        step = engine.step()
        assert step is not None
        if number >= 2 * OUTPUT:
            tokens += len(step.emitted)
            steps.append(step.seconds)
    return tokens / sum(steps), sorted(steps)[int(0.95 * len(steps))]


async def test_a_served_stream_takes_exactly_the_predicted_engine_time() -> None:
    async with running() as engine:
        response = await engine.post("/v1/completions", prompt="x" * 400, max_tokens=50)
        busy = (await engine.http.get("/sim/busy")).json()["busy_seconds"]
        launch = load_config(["tiny"], {"TESSERA_SIM_SHAPE": SHAPE})
    assert response.json()["usage"]["completion_tokens"] == 50
    predicted = launch.speed.seconds(
        decoding=0, kv_tokens=100, prefill_tokens=100, prefill_pairs=10_000
    )
    predicted += sum(
        launch.speed.seconds(decoding=1, kv_tokens=100 + token) for token in range(1, 50)
    )
    assert busy == pytest.approx(predicted, rel=1e-9)
