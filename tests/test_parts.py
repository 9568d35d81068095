"""What `make test` and `make test-e2e` have, how both end, and what a failed setup advises."""

import os
from pathlib import Path

import pytest

from run_tests import closing_line
from tests.parts import COMPUTING_NICENESS, E2E, PLAYS, PROMISES, ROOT
from world.errors import advice


def test_the_folders_that_divide_the_tests_exist() -> None:
    assert [path for path in (*PLAYS, PROMISES) if not Path(ROOT, path).is_dir()] == []


@pytest.mark.long
def test_tests_that_compute_step_back_behind_worlds(pytestconfig: pytest.Config) -> None:
    if pytestconfig.getoption("--part") != E2E or os.geteuid() != 0:
        pytest.skip("only root comes back from a lower priority")
    assert os.getpriority(os.PRIO_PROCESS, 0) == COMPUTING_NICENESS


def test_one_closing_line_counts_the_tests_of_both_commands() -> None:
    runs = [
        {"outcomes": {"passed": 8731, "skipped": 32, "failed": 0}, "seconds": 300.5},
        {"outcomes": {"passed": 1436, "skipped": 9, "failed": 2, "error": 1}, "seconds": 421.0},
    ]
    assert closing_line(runs).strip("=") == (
        " 2 failed, 10167 passed, 41 skipped, 1 error in 721.50s (0:12:01) "
    )


@pytest.mark.parametrize(
    ("output", "words"),
    [
        ("go: writing stat cache: write /root/go: no space left on device", "the disk is full"),
        ("ERROR: [Errno 28] No space left on device", "the disk is full"),
        ("dial tcp 127.0.0.1:9: connect: connection refused", "no package source can be reached"),
        ("NewConnectionError('<...>: Name or service not known')", "no package source"),
        ("cannot find package", "see its last lines above"),
    ],
)
def test_a_failed_build_advises_what_to_do_and_to_run_it_again(output: str, words: str) -> None:
    text = advice(output)
    assert words in text
    assert text.endswith("run the same command again, it goes on where it stopped")
