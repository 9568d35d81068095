"""Records as text: a line for each value that changed since the step before.

A value stands below the names that lead to it, so the reviewer of a changed record reads what
changed in which step. Objects are written by field and not by type, which a recut may rename; what
is None or empty is left out.
"""

import dataclasses
import difflib
import itertools
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

# Fields by which an item of a list is known, so that another one before it moves no line.
_IDENTITIES = "type", "name", "topic"
_MAX_DIFFERENCES = 200
# Lines of context: those of a whole record.
_ALL = 10**7

Tree = Mapping[str, Any]


def text_of(parts: Mapping[str, Iterable[str]]) -> str:
    """Return the lines of each part below its name."""
    return "".join(f"{line}\n" for name, lines in parts.items() for line in (f"=== {name}", *lines))


def step_lines(steps: Iterable[Mapping[str, Any]]) -> Iterator[str]:
    """Yield what each step shows that the one before did not, below its number."""
    before: Tree = {}
    for number, step in enumerate(steps):
        now = _tree(step)
        yield f"--- {number}"
        yield from _changes(before, now)
        before = now


def value_lines(value: object, before: object = None) -> Iterator[str]:
    """Yield a line for each value that an object consists of, and another one has otherwise."""
    trees = [_tree({"is": each}) for each in (before, value)]
    if all(isinstance(tree.get("is", {}), Mapping) for tree in trees):
        trees = [tree.get("is", {}) for tree in trees]
    yield from _changes(*trees)


def check_texts(folder: Path, texts: Mapping[str, str], config: pytest.Config) -> None:
    """Compare records with the files of a folder, and show the first lines that differ.

    `--update-golden` writes the files, and removes those of records that there are no more.
    """
    recorded = {path.stem: path.read_text(encoding="utf-8") for path in folder.glob("*.txt")}
    if config.getoption("--update-golden"):
        folder.mkdir(parents=True, exist_ok=True)
        for name in recorded.keys() - texts.keys():
            (folder / f"{name}.txt").unlink()
        for name, text in texts.items():
            (folder / f"{name}.txt").write_text(text, encoding="utf-8")
        return
    different = list(itertools.islice(differences(recorded, texts), _MAX_DIFFERENCES))
    if different:
        pytest.fail("\n".join(("--update-golden accepts what differs:", *different)))


def differences(before: Mapping[str, str], after: Mapping[str, str]) -> Iterator[str]:
    """Yield the lines that records of the same names do not share, below part and step."""
    for name in sorted(before.keys() | after.keys()):
        old, new = (texts.get(name, "").splitlines() for texts in (before, after))
        headings = {"#": f"##### {name}"}
        whole = difflib.unified_diff(old, new, n=_ALL, lineterm="")
        for line in itertools.islice(whole, 3, None):
            text = line[1:]
            if line[0] != " ":
                yield from headings.values()
                headings = {}
                yield line
            elif text.startswith(("=== ", "--- ")):
                if text[0] == "=":
                    headings.pop("-", None)
                headings[text[0]] = text


def _tree(value: object) -> Any:
    """Return a value as mappings by text and, at their ends, values of JSON."""
    if isinstance(value, BaseModel):
        value = value.model_dump(mode="json", by_alias=True)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    if isinstance(value, set | frozenset):
        value = sorted(value, key=str)
    if isinstance(value, list | tuple):
        items = [_tree(inner) for inner in value]
        if not any(isinstance(item, Mapping | list) for item in items):
            return items
        value = _by_name(items)
    if isinstance(value, Mapping):
        inner = {str(key): _tree(each) for key, each in value.items()}
        return {key: each for key, each in inner.items() if each not in (None, "", [], {})}
    return value if isinstance(value, str | int | float | None) else str(value)


def _by_name(items: Sequence[Any]) -> Mapping[str, Any]:
    """Return items by what each is known by, else by their places."""
    for name in _IDENTITIES:
        names = [item.get(name) if isinstance(item, Mapping) else None for item in items]
        if all(isinstance(each, str) for each in names) and len({*names}) == len(items):
            return {f"[{each}]": item for each, item in zip(names, items, strict=True)}
    return {f"[{place}]": item for place, item in enumerate(items)}


def _changes(before: Tree, now: Tree) -> Iterator[str]:
    for key in sorted(now):
        old, new = before.get(key), now[key]
        if not isinstance(new, Mapping):
            if old != new or type(old) is not type(new):
                yield f"{key}: {json.dumps(new, ensure_ascii=False)}"
            continue
        inner = list(_changes(old if isinstance(old, Mapping) else {}, new))
        if len(inner) == 1:
            yield f"{key}.{inner[0]}"
        elif inner:
            yield key
            yield from (f" {line}" for line in inner)
    yield from (f"{key} is gone" for key in sorted(before.keys() - now.keys()))
