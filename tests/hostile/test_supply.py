"""What is fetched to build, test or run Tessera: each of it is pinned with a hash."""

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PINS = sorted((ROOT / "requirements").glob("*.txt"))
MODULES = sorted((ROOT / "e2e/world").glob("*/go.mod"))
# It makes the pins: there are no hashes before.
MAKES_PINS = "tools/requirements.py"
_PINNED = re.compile(r"[\w.-]+(\[[\w,-]+\])?==[^\s;]+( ;[^#]*?)?( --hash=sha256:[0-9a-f]{64})+")
_FETCH = re.compile(r'"pip", "(?:install|download)"|bin/pip install|RUN pip install')
_REQUIRED = re.compile(r"^\s*(?:require )?(\S+) (v\S+)(?: // indirect)?$", re.MULTILINE)
_REPLACED = re.compile(r"^\s*(?:replace )?(\S+) => (\S+) (v\S+)$", re.MULTILINE)
_SUM = re.compile(r"^(\S+) (v[^\s/]+) h1:\S{43}=$", re.MULTILINE)
_UNCHECKED = re.compile(r"GONOSUM|GOINSECURE|GOSUMDB|GOPRIVATE|GOFLAGS=-insecure|--trusted-host")


def unpinned_packages(text: str) -> Iterator[str]:
    """Yield the requirements without a version, or without a hash of it."""
    for line in re.sub(r"(?m)^\s*#.*\n", "", text).replace("\\\n", " ").splitlines():
        pin = re.sub(r" +", " ", line).strip()
        if pin and not _PINNED.fullmatch(pin):
            yield pin


def unpinned_modules(module: str, sums: str) -> Iterator[str]:
    """Yield the modules of Go without a hash of what is built."""
    hashed = set(_SUM.findall(sums))
    replaced = {name: (other, version) for name, other, version in _REPLACED.findall(module)}
    for name, version in _REQUIRED.findall(module):
        if replaced.get(name, (name, version)) not in hashed:
            yield name


def unchecked_fetches(text: str) -> Iterator[str]:
    """Yield what fetches packages of whatever content."""
    fetches = _FETCH.findall(text)
    yield from fetches[text.count("--require-hashes") :]
    yield from _UNCHECKED.findall(text)


@pytest.mark.parametrize("path", PINS, ids=lambda path: path.stem)
def test_each_package_has_a_version_and_its_hashes(path: Path) -> None:
    assert not [*unpinned_packages(path.read_text(encoding="utf-8"))]


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.parent.name)
def test_each_module_of_go_has_its_hash(path: Path) -> None:
    module, sums = (each.read_text(encoding="utf-8") for each in (path, path.with_name("go.sum")))
    assert not [*unpinned_modules(module, sums)]


def test_nothing_is_fetched_without_a_hash() -> None:
    patterns = ("*.py", "*Dockerfile", "Makefile", ".ci/*")
    listed = subprocess.run(
        ["git", "ls-files", "--", *patterns], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split()
    unchecked = {
        path
        for path in {*listed} - {MAKES_PINS, Path(__file__).relative_to(ROOT).as_posix()}
        if [*unchecked_fetches((ROOT / path).read_text(encoding="utf-8"))]
    }
    assert "Dockerfile" in listed
    assert not unchecked


HASH = f"--hash=sha256:{'0' * 64}"


@pytest.mark.parametrize("pin", ["x", "x==1", f"x>=1 {HASH}", f"x==1 \\\n    {HASH[:-1]}", "-e ."])
def test_a_package_without_a_hash_is_found(pin: str) -> None:
    pinned = f"y[z]==1.0 ; python_version < '3.12' \\\n    {HASH}\n    # via z\n"
    assert [*unpinned_packages(f"{pinned}{pin}\n{pinned}")] == [re.sub(r" \\\n +", " ", pin)]


def test_a_module_without_a_hash_is_found() -> None:
    module = "\ta.b/c v1.0.0\n\ta.b/d v1.0.0 // indirect\nreplace a.b/d => a.b/e v1.1.0\n"
    sums = f"a.b/c v1.0.0 h1:{'x' * 43}=\na.b/e v1.1.0/go.mod h1:{'x' * 43}=\n"
    assert [*unpinned_modules(module, sums)] == ["a.b/d"]


@pytest.mark.parametrize(
    "text", ['[python, "-m", "pip", "install", "x"]', "RUN pip install x", "GONOSUMDB=* go build"]
)
def test_a_fetch_without_a_hash_is_found(text: str) -> None:
    assert [*unchecked_fetches(text)]
    assert not [*unchecked_fetches('"pip", "install", "--require-hashes"')]
