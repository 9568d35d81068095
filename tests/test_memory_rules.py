"""The rule that the domain remembers nothing catches a violation that is planted for it."""

from pathlib import Path

import pytest

from check_memory import MEMORY, violations

CLEAN = '''"""A module."""

from functools import reduce

NAMES = {"a": 1}


@constant
def products():
    return frozenset(NAMES)


def names():
    collected = {}
    collected["b"] = 2
    return collected
'''

PLANTED = {
    "a decorator": ("from functools import cache\n", "functools.cache"),
    "a decorator by its module": (
        "import functools\n\n@functools.lru_cache(9)\ndef size(): ...\n",
        "functools.lru_cache",
    ),
    "a property": ("from functools import cached_property\n", "functools.cached_property"),
    "a context": ("from contextvars import ContextVar\n", "contextvars keeps state"),
    "weak references": ("import weakref\n", "weakref keeps state"),
    "a global": ("def grow():\n    global size\n    size = 1\n", "global size"),
    "a cache": ("class PlanCache:\n    pass\n", "class PlanCache"),
    "a constant with arguments": ("@constant\ndef facts(version): ...\n", "has arguments"),
    "a snapshot that is not compared": (
        "@reused_until\ndef decide(ref, *, at, snapshot: Snapshot | None): ...\n",
        "decide is reused, and a Snapshot",
    ),
    "an entry of a module": (
        "SEEN: dict[str, int] = {}\n\ndef see(name):\n    SEEN[name] = 1\n",
        "SEEN of the module is written",
    ),
    "an element of a module": (
        "SEEN = set[str]()\n\ndef see(name):\n    SEEN.add(name)\n",
        "SEEN of the module is written",
    ),
    "a counter of a module": (
        "COUNTS = Counter()\n\ndef see(name):\n    del COUNTS[name]\n",
        "COUNTS of the module is written",
    ),
}


def tree(folder: Path, more: str = "", path: str = "operator/tessera/domain/pools.py") -> Path:
    module = folder / path
    module.parent.mkdir(parents=True)
    module.write_text(CLEAN + more, encoding="utf-8")
    return folder


@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_memory_is_caught(name: str, tmp_path: Path) -> None:
    more, message = PLANTED[name]
    caught = [str(violation) for violation in violations(tree(tmp_path, more))]
    assert [text for text in caught if message in text]


def test_what_remembers_nothing_is_clean(tmp_path: Path) -> None:
    assert violations(tree(tmp_path, "\n\nclass DeviceKvCache:\n    pass\n")) == []


@pytest.mark.parametrize("path", [MEMORY, "operator/tessera/reconcile/store.py"])
def test_other_places_may_remember(path: str, tmp_path: Path) -> None:
    more, _ = PLANTED["a decorator"]
    assert violations(tree(tmp_path, more, path)) == []
