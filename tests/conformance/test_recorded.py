from pathlib import Path

import pytest

from tessera_lab.sim.launch.engine_config import VERSION
from tests.conformance import adapter, comparison, engines, recording, scenarios, talk
from tests.conformance.configurations import CONFIGURATIONS, Configuration


@pytest.mark.parametrize("given", CONFIGURATIONS, ids=lambda given: given.name)
async def test_the_simulator_does_what_a_real_engine_was_recorded_to_do(
    given: Configuration, tmp_path: Path
) -> None:
    lora = str(adapter.make(tmp_path / "lora"))
    async with engines.running(engines.simulator(), "tiny", given, tmp_path) as engine:
        seen = await talk.observe(engine, given, lora)
        seen |= await scenarios.play(engine, given)
    got = comparison.compare(recording.recorded(given), seen, comparison.reasons())
    print(f"{given.name}, recorded {recording.version()} and simulator: {got}")
    assert not got.unexplained, "\n".join(got.unexplained)
    assert not got.stale


def test_the_recording_is_of_the_simulated_version() -> None:
    assert recording.version() == VERSION


def test_every_difference_names_a_case_and_its_reason() -> None:
    known = {name for given in CONFIGURATIONS for name in recording.recorded(given)}
    reasons = comparison.reasons()
    assert reasons.keys() <= known
    assert all(len(reason.split()) > 5 for reason in reasons.values())
