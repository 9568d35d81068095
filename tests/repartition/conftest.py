"""How often somebody was killed is said at the end of a run."""

import pytest


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """One line for each course that was played with a death at every moment."""
    for report in terminalreporter.getreports("passed"):
        for name, told in report.user_properties:
            if name == "killed":
                terminalreporter.write_line(str(told))
