import os
import subprocess
from pathlib import Path

import pytest

from demo.engine import MAKE_MODEL, VERSION, engine_environment
from tests.conformance import adapter, comparison, confined, engines, recording, scenarios, talk
from tests.conformance.configurations import CONFIGURATIONS, Configuration
from tests.conformance.confined import Confinement
from tests.conformance.seen import Facts
from tests.resources.engine_objects import SPECS, deployment

pytestmark = pytest.mark.vllm

UPDATE = bool(os.environ.get("UPDATE"))


@pytest.fixture(scope="module")
def venv() -> Path:
    return engine_environment()


@pytest.fixture(scope="module")
def model(venv: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model of random weights."""
    folder = tmp_path_factory.mktemp("models") / "tiny"
    subprocess.run([str(venv / "bin" / "python"), str(MAKE_MODEL), str(folder)], check=True)
    return folder


@pytest.mark.parametrize("given", CONFIGURATIONS, ids=lambda given: given.name)
async def test_real_engine_recording_and_simulator_do_the_same(
    given: Configuration, venv: Path, model: Path, tmp_path: Path
) -> None:
    lora = str(adapter.make(tmp_path / "lora"))
    real = await _seen(_program(given, venv, model), model, given, tmp_path, lora)
    if UPDATE:
        recording.record(given, VERSION, real)
    simulated = await _seen(engines.simulator(), model, given, tmp_path, lora)
    same = comparison.compare(recording.recorded(given), real, {})
    print(f"\n{given.name}, recorded {recording.version()} and real {VERSION}: {same}")
    alike = comparison.compare(real, simulated, comparison.reasons())
    print(f"{given.name}, real {VERSION} and simulator: {alike}")
    problems = [*same.unexplained, *alike.unexplained, *alike.stale]
    assert not problems, "\n".join(problems)


def _program(given: Configuration, venv: Path, model: Path) -> engines.Program:
    """The real engine; confined as the pod of a service with a model on a claim."""
    if not given.confined:
        return engines.real(venv)
    pod = deployment(SPECS["claim"])["spec"]["template"]["spec"]
    limits = confined.of_pod(pod)
    return engines.real(venv, limits, (venv, model))


async def _seen(
    program: engines.Program, model: Path, given: Configuration, folder: Path, lora: str
) -> dict[str, Facts]:
    """Answers, metrics and scenarios of one engine."""
    async with engines.running(program, str(model), given, folder) as engine:
        if program.confined is not None:
            _assert_confined(engine.process.pid, program.confined)
        seen = await talk.observe(engine, given, lora)
        return seen | await scenarios.play(engine, given)


def _assert_confined(session: int, wanted: Confinement) -> None:
    """Every process of the engine is its own user and can write where the pod says, only."""
    for process in engines.members(session):
        assert confined.user_of(process) == wanted.user
        assert confined.writable_mounts(process) == set(wanted.writable)
