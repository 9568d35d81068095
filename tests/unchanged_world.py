"""Leaves out most tests of the simulated cluster while it is the one that they last passed on.

A plugin of pytest. `e2e/world_tests/passed` has the digest of what `make test-world` saw when all
of them passed; CI knows no other commit to compare with. Those marked `smoke` always run.
"""

import hashlib
from pathlib import Path

import pytest

_TESTS = "e2e/world_tests/"
_TESTED = ("e2e/world", "e2e/fakedns", "e2e/fakegpu", "e2e/fakevolume", _TESTS)
_RECORD = Path(_TESTS) / "passed"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--record-world", action="store_true", help="note that all of it passed")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--full") or config.getoption("--record-world"):
        return
    record = config.rootpath / _RECORD
    if not record.exists() or record.read_text(encoding="ascii").strip() != digest(config.rootpath):
        return
    unchanged = pytest.mark.skip(reason="the simulated cluster is as it last passed: FULL=1")
    for item in items:
        if item.nodeid.startswith(_TESTS) and "smoke" not in item.keywords:
            item.add_marker(unchanged)


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    config = session.config
    if config.getoption("--record-world") and exitstatus == pytest.ExitCode.OK:
        text = digest(config.rootpath) + "\n"
        (config.rootpath / _RECORD).write_text(text, encoding="ascii")


def digest(root: Path) -> str:
    """Return the digest of the simulated cluster and its tests."""
    files = (
        path
        for folder in _TESTED
        for path in (root / folder).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts and path != root / _RECORD
    )
    whole = hashlib.sha256()
    for path in sorted(files):
        whole.update(str(path.relative_to(root)).encode() + b"\0" + path.read_bytes())
    return whole.hexdigest()
