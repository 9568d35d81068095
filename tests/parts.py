"""Which tests are in `make test` and which in `make test-e2e`, by folder and mark.

A plugin of pytest. `make test` proves the promises on one installed world, the contracts on real
servers, and all decisions; what plays many faults, seeds or hours is in the other part.
"""

import os
from collections.abc import Generator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
TEST, E2E = "test", "test-e2e"
# As pytest's closing line names and sorts them.
OUTCOMES = ("failed", "passed", "skipped", "xfailed", "xpassed", "error")
PROMISES = "e2e/promises/"
# Of `tests/`, beside what is marked `long`: plays of faults, of floors, of hostile tenants, of
# generated objects, and of the lab's simulated fleets.
PLAYS = (
    "tests/fault_sequences/",
    "tests/faults/",
    "tests/floors/",
    "tests/generation/",
    "tests/hostile/",
    "tests/lab/claims/",
    "tests/lab/fleet/",
)


_LONG = "pytest.mark.long"
# Of tests that compute, beside those of worlds, whose engines answer probes within a second.
COMPUTING_NICENESS = 5


def part_of(item: pytest.Item) -> str:
    """Return the part of a test."""
    return E2E if _is_play(item.nodeid) or "long" in item.keywords else TEST


def _is_play(path: str) -> bool:
    return path.startswith(("e2e/", *PLAYS)) and not path.startswith(PROMISES)


def record(part: str) -> Path:
    """Where the outcomes and durations of the last run are that came to its end."""
    return ROOT / ".bench" / f"durations-{part}.json"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--part", choices=(TEST, E2E), help="run the tests of this command alone")


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Save each worker the import of files that have nothing of the part."""
    part = config.getoption("--part")
    path = str(collection_path.relative_to(ROOT))
    if part is None or collection_path.suffix != ".py" or path == "conftest.py":
        return None
    if part == TEST:
        return _is_play(path) or None
    return None if _is_play(path) or _LONG in collection_path.read_text(encoding="utf-8") else True


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    part = config.getoption("--part")
    if part is not None:
        config.hook.pytest_deselected(items=[item for item in items if part_of(item) != part])
        items[:] = [item for item in items if part_of(item) == part]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """Let tests that compute step back behind worlds; only root may come back from that."""
    if item.config.getoption("--part") == E2E and os.geteuid() == 0:
        is_world = item.nodeid.startswith("e2e/")
        os.setpriority(os.PRIO_PROCESS, 0, 0 if is_world else COMPUTING_NICENESS)
    return (yield)
