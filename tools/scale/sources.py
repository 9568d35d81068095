"""The sources that a run depends on: a result is kept while none of them is edited."""

import hashlib
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

_ROOTS = (Path(__file__).parents[1], Path(__file__).parents[2] / "operator")
# What plays the product's plan alone.
_PRODUCT = ("tessera_lab.fleet.policies.product", "tessera_lab.fleet.instance_types")
# What plays a run; which runs there are does not matter.
_RUNS = ("scale.runs", "scale.cases", "tessera_lab.fleet.policies.families")


# All imports of the repository have this form.
_IMPORT = re.compile(r"^\s*from (\S+) import (\([^)]*\)|.*)$", re.MULTILINE)
_NAME = re.compile(r"\w+")


@cache
def digest(*, product: bool) -> str:
    """Return the digest of all modules that play a run; of rivals the product's plan is none."""
    left_out = () if product else _PRODUCT
    contents = hashlib.sha256()
    for path in sorted(_files(_RUNS, left_out)):
        contents.update(path.read_bytes())
    return contents.hexdigest()[:12]


def _files(modules: tuple[str, ...], left_out: tuple[str, ...]) -> set[Path]:
    """Return the files of modules and of all that they import, but for those left out."""
    files, waiting = set[Path](), [path for name in modules for path in _paths(name)]
    while waiting:
        path = waiting.pop()
        if path in files:
            continue
        files.add(path)
        for name in _imported(path):
            if name not in left_out:
                waiting += _paths(name)
    return files


def _imported(path: Path) -> Iterator[str]:
    """Yield the names of modules that a file may import."""
    for module, names in _IMPORT.findall(path.read_text(encoding="utf-8")):
        yield module
        yield from (f"{module}.{name}" for name in _NAME.findall(names))


def _paths(name: str) -> list[Path]:
    """Return the file of a module of the repository; none of others."""
    relative = Path(*name.split("."))
    candidates = (
        root / path
        for root in _ROOTS
        for path in (relative.with_suffix(".py"), relative / "__init__.py")
    )
    return [path for path in candidates if path.is_file()]
