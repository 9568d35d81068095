"""Two faults during a repartition: floors hold, and the end is clean or named within 5 minutes."""

import pytest

from tests.fault_sequences.known import UNSOLVED_LAYOUTS
from tests.fault_sequences.layout_player import LayoutPlay, layout_sequence
from tests.repartition.simulation import BACKENDS

SEQUENCES = 334
# Sequences of the short run, by backend.
SHORT = {
    "agent": (9, 50, 81),
    "mig-manager": (2, 12, 21),
    "mig-manager, with agents that look": (3, 31, 81),
}


def _case(backend: str, seed: int) -> object:
    marks: list[pytest.MarkDecorator] = []
    if seed not in SHORT[backend]:
        marks += [pytest.mark.full, pytest.mark.long]
    if reason := UNSOLVED_LAYOUTS.get(backend, {}).get(seed):
        marks.append(pytest.mark.xfail(reason=reason, raises=AssertionError, strict=True))
    name = f"{backend}-{layout_sequence(backend, seed).name}"
    return pytest.param(backend, seed, id=name.replace(", ", "-").replace(" ", "-"), marks=marks)


@pytest.mark.parametrize(
    ("backend", "seed"),
    [_case(backend, seed) for backend in BACKENDS for seed in range(1, SEQUENCES + 1)],
)
async def test_a_repartition_with_two_faults_ends_clean_or_named(
    backend: str, seed: int, request: pytest.FixtureRequest
) -> None:
    play = LayoutPlay(backend, layout_sequence(backend, seed))
    findings = await play.run()
    command = f".venv/bin/pytest --full '{request.node.nodeid}'"
    assert not findings, "\n".join([*findings, f"again: {command}", *play.log])
