from pathlib import Path

import pytest

from tessera_lab.sim.launch.engine_config import VERSION
from tests.conformance import adapter, comparison, engines, observation, recording, scenarios
from tests.conformance.configurations import CONFIGURATIONS, Configuration


@pytest.mark.parametrize(
    "configuration", CONFIGURATIONS, ids=lambda configuration: configuration.name
)
async def test_the_simulator_does_what_a_real_engine_was_recorded_to_do(
    configuration: Configuration, tmp_path: Path
) -> None:
    lora = str(adapter.make(tmp_path / "lora"))
    async with engines.running(engines.simulator(), "tiny", configuration, tmp_path) as engine:
        seen = await observation.observe(engine, configuration, lora)
        seen |= await scenarios.play(engine, configuration)
    differences = comparison.compare(
        recording.recorded_facts(configuration), seen, comparison.reasons()
    )
    print(f"{configuration.name}, recorded {recording.version()} and simulator: {differences}")
    assert not differences.unexplained, "\n".join(differences.unexplained)
    assert not differences.stale


def test_the_recording_is_of_the_simulated_version() -> None:
    assert recording.version() == VERSION


def test_every_difference_names_a_case_and_its_reason() -> None:
    known = {
        name for configuration in CONFIGURATIONS for name in recording.recorded_facts(configuration)
    }
    reasons = comparison.reasons()
    assert reasons.keys() <= known
    assert all(len(reason.split()) > 5 for reason in reasons.values())
