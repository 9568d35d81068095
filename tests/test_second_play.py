"""A failed test is played once more with `--second-play`, in a new world, and is named."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
WORKERS = ("-n", "1", "--dist", "loadscope")
BOTH = pytest.mark.parametrize(
    "options",
    [pytest.param((), id="alone", marks=pytest.mark.full), pytest.param(WORKERS, id="workers")],
)
CONFTEST = """
import pytest
from pathlib import Path

FOLDER = Path(__file__).parent

def plays(name):
    file = FOLDER / name
    with file.open("a") as stream:
        stream.write("x")
    return file.stat().st_size

@pytest.fixture(scope="package")
def world():
    number = plays("worlds")
    yield number
    plays("ended")
"""
TESTS = """
from conftest import plays

def test_before(world):
    assert world == 1

def test_a_world_that_broke(world):
    assert world == 2, "the world broke"

def test_after(world):
    assert world == 2

def test_late_once():
    assert plays("late") == 2, "late once"
"""
FAILS = """
def test_wrong(world):
    assert world == 0, "wrong"
"""


def play(folder: Path, *options: str, **modules: str) -> tuple[int, str]:
    (folder / "conftest.py").write_text(CONFTEST)
    for name, text in modules.items():
        (folder / f"{name}.py").write_text(text)
    command = [*(sys.executable, "-m", "pytest", "-p", "tests.second_play", *options)]
    done = subprocess.run(
        [*command, "-c", "/dev/null", "--rootdir", folder, folder],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, done.stdout


@BOTH
def test_what_fails_once_is_played_again_in_a_new_world_and_named(
    tmp_path: Path, options: tuple[str, ...]
) -> None:
    code, output = play(tmp_path, "--second-play", *options, test_once=TESTS)
    assert code == 0, output
    assert "4 passed, 2 rerun in" in output
    for name in ("test_a_world_that_broke", "test_late_once"):
        assert f"test_once.py::{name} passed only when it was played again" in output
    assert "AssertionError: the world broke" in output
    assert (tmp_path / "ended").stat().st_size == (tmp_path / "worlds").stat().st_size == 2


@BOTH
def test_what_fails_twice_fails_the_run(tmp_path: Path, options: tuple[str, ...]) -> None:
    code, output = play(tmp_path, "--second-play", *options, test_once=FAILS)
    assert code == 1
    assert "1 failed, 1 rerun in" in output
    assert "passed only when" not in output


def test_where_much_fails_little_is_played_again(tmp_path: Path) -> None:
    fails = (
        "import pytest\n@pytest.mark.parametrize('n', range(9))\ndef test_n(n):\n    assert n > 8\n"
    )
    code, output = play(tmp_path, "--second-play", test_often=fails)
    assert code == 1
    assert "9 failed, 5 rerun in" in output


def test_without_the_option_each_test_is_played_once(tmp_path: Path) -> None:
    code, output = play(tmp_path, test_once=TESTS)
    assert code == 1
    assert "3 failed, 1 passed in" in output
