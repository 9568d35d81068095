"""Says what tests take, by test and by row, and writes it to `.bench/`.

A plugin of pytest. Processor time is that of a worker and of the processes that it waited for: that
of a world counts with the test at whose end the world ends. A row whose tests of a push take half
more than its budget is named, and fails a run with `--full`.
"""

import json
import os
import time
from collections import defaultdict
from collections.abc import Generator, Mapping

import pytest
from _pytest.terminal import TerminalReporter

from tests.parts import OUTCOMES, record
from tests.rows import ROWS, row_of

_SLOWEST = 40
# Seconds by test.
_wall, _cpu = defaultdict[str, float](float), defaultdict[str, float](float)
# Of them those that a push leaves out.
_full = set[str]()
_LOAD, _BEGUN = os.getloadavg()[0], time.monotonic()


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
    if "full" in report.keywords:
        _full.add(report.nodeid)


def pytest_sessionfinish(session: pytest.Session) -> None:
    config = session.config
    if _is_controller(config) and config.getoption("--full") and _over_budget():
        session.exitstatus = session.exitstatus or pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: TerminalReporter) -> None:
    """Print the slowest tests and all rows of a run of several workers."""
    config = terminalreporter.config
    if not _is_controller(config):
        return
    wall, cpu = defaultdict[str, float](float), defaultdict[str, float](float)
    for nodeid, seconds in _wall.items():
        wall[row_of(nodeid)] += seconds
        cpu[row_of(nodeid)] += _cpu[nodeid]
    stats = terminalreporter.stats
    written = {
        "outcomes": {name: len(stats.get(name, ())) for name in OUTCOMES},
        "seconds": round(time.monotonic() - _BEGUN, 2),
        "load": round(_LOAD, 2),
        "cpu_seconds": round(sum(_cpu.values()), 1),
        "rows": _seconds(wall, cpu),
        "tests": _seconds(_wall, _cpu),
    }
    if part := config.getoption("--part"):
        path = record(part)
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(written, indent=1), encoding="utf-8")
    write = terminalreporter.write_line
    terminalreporter.section(f"slowest {_SLOWEST} tests and rows: wall and processor seconds")
    for names, walls, cpus in ((_slowest(_wall), _wall, _cpu), (_slowest(wall), wall, cpu)):
        for name in names:
            write(f"{walls[name]:7.1f} {cpus[name]:7.1f}  {name}")
    for line in _over_budget():
        write(f"over its budget: {line}; take time off it, or change tests/rows.py", red=True)
    write(f"{sum(_cpu.values()):.0f} processor seconds of tests, load {_LOAD:.1f} at the start")


def _is_controller(config: pytest.Config) -> bool:
    return bool(config.getoption("numprocesses", None))


def _over_budget() -> list[str]:
    """Say which rows take half more processor time than their budget."""
    spent = defaultdict[str, float](float)
    for nodeid in _cpu.keys() - _full:
        spent[row_of(nodeid)] += _cpu[nodeid]
    return [
        f"{name}: {spent[name]:.0f} s of processor time, its budget is {row.cpu_seconds} s"
        for name, row in ROWS.items()
        if row.cpu_seconds is not None and spent[name] > 1.5 * row.cpu_seconds
    ]


def _slowest(wall: Mapping[str, float]) -> list[str]:
    return sorted(wall, key=lambda name: -wall[name])[:_SLOWEST]


def _seconds(wall: Mapping[str, float], cpu: Mapping[str, float]) -> dict[str, tuple[float, float]]:
    return {name: (round(wall[name], 1), round(cpu[name], 1)) for name in wall}
