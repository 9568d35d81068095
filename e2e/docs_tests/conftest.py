"""Machines for readers of pages: an empty one, and one on which Tessera is installed."""

import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from demo.stage import ROOT
from docs_tests.blocks import Untried
from docs_tests.pages import INSTALLED, TUTORIAL, not_tried, page_of, shell_blocks, steps_of
from docs_tests.reader import Reader
from world import binaries

_RAN = pytest.StashKey[Counter[str]]()
_UNTRIED = pytest.StashKey[dict[str, list[Untried]]]()
# What removes all that a task page may have made.
_LEFT_OVER = """
kubectl delete namespace team-a --ignore-not-found
kubectl delete tenantbudgets,acceleratorpools --all
"""


@contextmanager
def _empty_machine(folder: Path) -> Iterator[Reader]:
    """A reader in a copy of the repository, with a cache that has nothing but built programs.

    The copy is made of links, but for its own folder, into which pages write their files.
    """
    if shutil.which("curl") is None:
        pytest.skip("pages are typed as they stand, and this machine has no curl")
    copy, cache = folder / "tessera", folder / "cache" / "tessera"
    copy.mkdir()
    for path in ROOT.iterdir():
        (copy / path.name).symlink_to(path)
    cache.mkdir(parents=True)
    (cache / "bin").symlink_to(binaries.ensure(print).parent)
    hidden = ("KUBECONFIG", "TESSERA_PROMETHEUS_URL", "MAKEFLAGS", "MAKELEVEL")
    plain = {name: value for name, value in os.environ.items() if name not in hidden}
    reader = Reader(copy, plain | {"XDG_CACHE_HOME": str(cache.parent)})
    try:
        yield reader
    finally:
        reader.leave("make", "down")


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Reader]:
    """A reader who has started a cluster and installed Tessera as the tutorial says."""
    with _empty_machine(tmp_path_factory.mktemp("installed")) as reader:
        reader.follow(TUTORIAL, steps_of(TUTORIAL, INSTALLED))
        yield reader


@pytest.fixture
def reader(installed: Reader) -> Iterator[Reader]:
    """A reader of a task page; what the page left over is removed."""
    reader = Reader(installed.folder, installed.variables)
    try:
        yield reader
    finally:
        reader.leave("bash", "-c", _LEFT_OVER)


@pytest.fixture
def newcomer(tmp_path: Path) -> Iterator[Reader]:
    """A reader who has done nothing yet."""
    with _empty_machine(tmp_path) as reader:
        yield reader


@pytest.fixture
def tally(request: pytest.FixtureRequest) -> Callable[[Reader], None]:
    """Adds what a reader did to the sums under the page's name."""

    def add(reader: Reader) -> None:
        stash, name = request.config.stash, request.node.name
        stash.setdefault(_RAN, Counter())[name] = reader.ran
        stash.setdefault(_UNTRIED, {})[name] = reader.untried

    return add


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    """How many blocks were run, and why the others were not."""
    if _RAN not in config.stash:
        return
    ran, untried = config.stash[_RAN], config.stash[_UNTRIED]
    terminalreporter.section("blocks of the documentation")
    for name in ran:
        terminalreporter.line(f"{name}: {ran[name]} run, {len(untried[name])} not run")
        for one in untried[name]:
            terminalreporter.line(f"  line {one.line}: not run: {one.reason}")
    left = sum(map(len, untried.values()))
    for task, reason in not_tried().items():
        left += (blocks := shell_blocks(page_of(task)))
        terminalreporter.line(f"{page_of(task)}: {blocks} not run: {reason}")
    terminalreporter.line(f"all: {ran.total()} blocks run, {left} not run")
