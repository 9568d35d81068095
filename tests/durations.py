"""Says what tests take, by test and by row, and writes it to `.bench/durations.json`.

A plugin of pytest. Processor time is that of a worker and of the processes that it waited for: that
of a world counts with the test at whose end the world ends.
"""

import json
import os
from collections import defaultdict
from collections.abc import Generator, Mapping

import pytest
from _pytest.terminal import TerminalReporter

from tests.rows import row_of

_SLOWEST = 40
# Seconds by test.
_wall, _cpu = defaultdict[str, float](float), defaultdict[str, float](float)
_LOAD = os.getloadavg()[0]


def _cpu_seconds() -> float:
    return sum(os.times()[:4])


_before = [_cpu_seconds()]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Give the report of a phase its processor time, which takes it to the controller."""
    report = yield
    now = _cpu_seconds()
    report.__dict__["cpu_seconds"] = now - _before[0]
    _before[0] = now
    return report


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    _wall[report.nodeid] += report.duration
    _cpu[report.nodeid] += report.__dict__.get("cpu_seconds", 0.0)


def pytest_terminal_summary(terminalreporter: TerminalReporter) -> None:
    """Print the slowest tests and all rows of a run of several workers."""
    config = terminalreporter.config
    if not config.getoption("numprocesses", None):
        return
    wall, cpu = defaultdict[str, float](float), defaultdict[str, float](float)
    for nodeid, seconds in _wall.items():
        wall[row_of(nodeid)] += seconds
        cpu[row_of(nodeid)] += _cpu[nodeid]
    folder = config.rootpath / ".bench"
    folder.mkdir(exist_ok=True)
    written = {
        "load": round(_LOAD, 2),
        "cpu_seconds": round(sum(_cpu.values()), 1),
        "rows": _seconds(wall, cpu),
        "tests": _seconds(_wall, _cpu),
    }
    (folder / "durations.json").write_text(json.dumps(written, indent=1), encoding="utf-8")
    write = terminalreporter.write_line
    terminalreporter.section(f"slowest {_SLOWEST} tests and rows: wall and processor seconds")
    for names, walls, cpus in ((_slowest(_wall), _wall, _cpu), (_slowest(wall), wall, cpu)):
        for name in names:
            write(f"{walls[name]:7.1f} {cpus[name]:7.1f}  {name}")
    write(f"{sum(_cpu.values()):.0f} processor seconds of tests, load {_LOAD:.1f} at the start")


def _slowest(wall: Mapping[str, float]) -> list[str]:
    return sorted(wall, key=lambda name: -wall[name])[:_SLOWEST]


def _seconds(wall: Mapping[str, float], cpu: Mapping[str, float]) -> dict[str, tuple[float, float]]:
    return {name: (round(wall[name], 1), round(cpu[name], 1)) for name in wall}
