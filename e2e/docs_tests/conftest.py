"""A machine on which nobody has done anything yet, and the sums of what pages were tried."""

import os
import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from demo.stage import ROOT
from docs_tests.blocks import Untried
from docs_tests.pages import not_tried, page_of, shell_blocks
from docs_tests.reader import Reader
from world import binaries

_RAN = pytest.StashKey[Counter[str]]()
_UNTRIED = pytest.StashKey[dict[str, list[Untried]]]()
_ENDS = ("make", "down")


@pytest.fixture
def reader(tmp_path: Path) -> Iterator[Reader]:
    """A reader in a copy of the repository, with a cache that has nothing but built programs.

    The copy is made of links, but for its own folder, into which pages write their files.
    """
    if shutil.which("curl") is None:
        pytest.skip("pages are typed as they stand, and this machine has no curl")
    copy, cache = tmp_path / "tessera", tmp_path / "cache" / "tessera"
    copy.mkdir()
    for one in ROOT.iterdir():
        (copy / one.name).symlink_to(one)
    cache.mkdir(parents=True)
    (cache / "bin").symlink_to(binaries.ensure(print).parent)
    hidden = ("KUBECONFIG", "TESSERA_PROMETHEUS_URL", "MAKEFLAGS", "MAKELEVEL")
    plain = {name: value for name, value in os.environ.items() if name not in hidden}
    made = Reader(copy, plain | {"XDG_CACHE_HOME": str(cache.parent)})
    try:
        yield made
    finally:
        made.leave(*_ENDS)


@pytest.fixture
def tally(request: pytest.FixtureRequest, reader: Reader) -> Iterator[None]:
    """Adds what the reader did to the sums under the page's name."""
    yield
    stash, name = request.config.stash, request.node.name
    stash.setdefault(_RAN, Counter())[name] = reader.ran
    stash.setdefault(_UNTRIED, {})[name] = reader.untried


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
