"""Machines for readers of pages: an empty one, and one on which Tessera is installed."""

import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from demo.cluster import ROOT, SCRIPTS
from docs_tests.blocks import SkippedBlock
from docs_tests.pages import (
    FIRST_ANSWER,
    INSTALLED,
    TUTORIAL,
    count_shell_blocks,
    page_of,
    read_page_steps,
    skip_reasons,
)
from docs_tests.reader import Reader, SectionTime
from world import binaries

_RAN = pytest.StashKey[Counter[str]]()
_SKIPPED = pytest.StashKey[dict[str, list[SkippedBlock]]]()
_FIRST_ANSWER = pytest.StashKey[SectionTime]()


@contextmanager
def _empty_machine(folder: Path) -> Iterator[Reader]:
    """A reader in a copy of the repository, with a cache that has nothing but built programs."""
    if shutil.which("curl") is None:
        pytest.skip("pages are typed as they stand, and this machine has no curl")
    cache = folder / "cache" / "tessera"
    cache.mkdir(parents=True)
    (cache / "bin").symlink_to(binaries.ensure(print, binaries.EVERY_WORLD).parent)
    reader = Reader(_linked_copy(folder), _environment() | {"XDG_CACHE_HOME": str(cache.parent)})
    try:
        yield reader
    finally:
        reader.clean_up("make", "down")


def _linked_copy(folder: Path) -> Path:
    """Copy the repository as links, but for its own folder, into which pages write their files."""
    copy = folder / "tessera"
    copy.mkdir()
    for path in ROOT.iterdir():
        (copy / path.name).symlink_to(path)
    return copy


def _environment() -> dict[str, str]:
    """Return the environment of a terminal that knows no cluster."""
    hidden = ("KUBECONFIG", "TESSERA_PROMETHEUS_URL", "MAKEFLAGS", "MAKELEVEL")
    return {name: value for name, value in os.environ.items() if name not in hidden}


@pytest.fixture
def reader_without_cluster(tmp_path: Path) -> Reader:
    """A reader who has installed the commands of Tessera, and no cluster."""
    path = os.pathsep.join((str(SCRIPTS), os.environ["PATH"]))
    return Reader(_linked_copy(tmp_path), _environment() | {"PATH": path})


@pytest.fixture
def reader(tmp_path: Path) -> Iterator[Reader]:
    """A reader of task pages, who has installed Tessera in a new cluster as the tutorial says."""
    with _empty_machine(tmp_path) as reader:
        reader.follow(TUTORIAL, read_page_steps(TUTORIAL, INSTALLED))
        yield reader


@pytest.fixture
def newcomer(tmp_path: Path) -> Iterator[Reader]:
    """A reader who has done nothing yet."""
    with _empty_machine(tmp_path) as reader:
        yield reader


@pytest.fixture
def tally(request: pytest.FixtureRequest) -> Callable[[Reader, str], None]:
    """Adds what a reader did on a page to the sums under its name."""

    def add(reader: Reader, page: str) -> None:
        stash = request.config.stash
        stash.setdefault(_RAN, Counter())[page] = reader.ran
        stash.setdefault(_SKIPPED, {})[page] = reader.skipped_blocks
        if FIRST_ANSWER[-1] in reader.times:
            stash[_FIRST_ANSWER] = reader.time_of(FIRST_ANSWER)

    return add


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    """Print how many blocks were run, and why the others were not."""
    if _RAN not in config.stash:
        return
    ran, skipped = config.stash[_RAN], config.stash[_SKIPPED]
    terminalreporter.section("blocks of the documentation")
    for name in ran:
        terminalreporter.line(f"{name}: {ran[name]} run, {len(skipped[name])} not run")
        for block in skipped[name]:
            terminalreporter.line(f"  line {block.line}: not run: {block.reason}")
    skipped_count = sum(map(len, skipped.values()))
    for task, reason in skip_reasons().items():
        skipped_count += (blocks := count_shell_blocks(page_of(task)))
        terminalreporter.line(f"{page_of(task)}: {blocks} not run: {reason}")
    if (first := config.stash.get(_FIRST_ANSWER, None)) is not None:
        terminalreporter.line(
            f"from helm install to the first answer with a key: {first.wall_seconds:.0f} s, "
            f"{first.cpu_seconds:.0f} s of processor time of commands and cluster"
        )
    terminalreporter.line(f"all: {ran.total()} blocks run, {skipped_count} not run")
