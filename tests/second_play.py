"""Plays a failed test once more with `--second-play`, and names those that passed only then.

A plugin of pytest, as `tests/hostile/score.py`. Before the second play everything that tests share
ends, so that a world that broke is started again.
"""

import itertools

import pytest
from _pytest.runner import runtestprotocol
from _pytest.terminal import TerminalReporter

_RERUN = "rerun"
# Of one worker: where more fail, it is not chance, and worlds that cannot start take minutes each.
_MOST_RERUNS = 5
_reruns = itertools.count(1)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--second-play", action="store_true", help="play a failed test once more")


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item, nextitem: pytest.Item | None) -> bool | None:
    if not item.config.getoption("--second-play"):
        return None
    item.ihook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
    reports = runtestprotocol(item, log=False, nextitem=nextitem)
    failures = [report for report in reports if report.failed]
    if failures and next(_reruns) <= _MOST_RERUNS:
        shared = item.session._setupstate
        end = pytest.CallInfo.from_call(lambda: shared.teardown_exact(None), when="teardown")
        if end.excinfo is not None:
            failures.append(pytest.TestReport.from_item_and_call(item, end))
        for failure in failures:
            failure.user_properties = []
            failure.outcome = _RERUN  # type: ignore[assignment] # pytest takes any word
            item.ihook.pytest_runtest_logreport(report=failure)
        item.user_properties.clear()
        reports = runtestprotocol(item, log=False, nextitem=nextitem)
    for report in reports:
        item.ihook.pytest_runtest_logreport(report=report)
    item.ihook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
    return True


def pytest_report_teststatus(report: pytest.TestReport) -> tuple[str, str, str] | None:
    return (_RERUN, "R", "RERUN") if report.outcome == _RERUN else None


def pytest_terminal_summary(terminalreporter: TerminalReporter) -> None:
    stats = terminalreporter.stats
    failed = {report.nodeid for key in ("failed", "error") for report in stats.get(key, ())}
    for report in stats.get(_RERUN, ()):
        if report.nodeid not in failed:
            terminalreporter.section(f"{report.nodeid} passed only when it was played again")
            terminalreporter.write_line(report.longreprtext)
