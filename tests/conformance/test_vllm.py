import os
from pathlib import Path

import pytest

from demo.engine import VERSION
from tests.conformance import (
    adapter,
    comparison,
    confined,
    engines,
    observation,
    recording,
    scenarios,
)
from tests.conformance.configurations import CONFIGURATIONS, Configuration
from tests.conformance.confined import Confinement
from tests.conformance.observed_facts import Facts
from tests.resources.engine_objects import SPECS, deployment

pytestmark = pytest.mark.vllm

UPDATE = bool(os.environ.get("UPDATE"))


@pytest.mark.parametrize(
    "configuration", CONFIGURATIONS, ids=lambda configuration: configuration.name
)
async def test_real_engine_recording_and_simulator_do_the_same(
    configuration: Configuration, venv: Path, model: Path, tmp_path: Path
) -> None:
    lora = str(adapter.make(tmp_path / "lora"))
    real = await _observe(
        _program(configuration, venv, model), model, configuration, tmp_path, lora
    )
    if UPDATE:
        recording.record(configuration, VERSION, real)
    simulated = await _observe(engines.simulator(), model, configuration, tmp_path, lora)
    recording_comparison = comparison.compare(recording.recorded_facts(configuration), real, {})
    compared = f"recorded {recording.version()} and real {VERSION}"
    print(f"\n{configuration.name}, {compared}: {recording_comparison}")
    simulator_comparison = comparison.compare(real, simulated, comparison.reasons())
    print(f"{configuration.name}, real {VERSION} and simulator: {simulator_comparison}")
    problems = [
        *recording_comparison.unexplained,
        *simulator_comparison.unexplained,
        *simulator_comparison.stale,
    ]
    assert not problems, "\n".join(problems)


def _program(configuration: Configuration, venv: Path, model: Path) -> engines.Program:
    """Return vLLM, confined as the pod of a service with a model on a claim."""
    if not configuration.confined:
        return engines.real(venv)
    pod = deployment(SPECS["claim"])["spec"]["template"]["spec"]
    limits = confined.of_pod(pod)
    return engines.real(venv, limits, (venv, model))


async def _observe(
    program: engines.Program, model: Path, configuration: Configuration, folder: Path, lora: str
) -> dict[str, Facts]:
    """Observe responses, metrics and scenarios of one engine."""
    async with engines.running(program, str(model), configuration, folder) as engine:
        if program.confined is not None:
            _assert_confined(engine.process.pid, program.confined)
        observed = await observation.observe(engine, configuration, lora)
        return observed | await scenarios.play(engine, configuration)


def _assert_confined(session: int, wanted: Confinement) -> None:
    """Check that every engine process has the pod's user and writable mounts."""
    for process in engines.members(session):
        assert confined.user_of(process) == wanted.user
        assert confined.writable_mounts(process) == set(wanted.writable)
