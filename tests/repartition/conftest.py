"""Prints at the end of a run how often processes were killed."""

import pytest


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print one line for each scenario that ran with a kill at every moment."""
    for report in terminalreporter.getreports("passed"):
        for name, value in report.user_properties:
            if name == "killed":
                terminalreporter.write_line(str(value))
