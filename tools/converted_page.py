"""The table of the manifests that were converted from other platforms."""

import tomllib
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

PAGE, FOLDER = "docs/tasks/coming-from.md", "examples/converted"
_KINDS = {
    "Gated": "gated",
    "Quantized": "quantized",
    "Pooling": "pooling",
    "LoRA": "LoRA",
    "SeveralGpus": "several GPUs",
}


def read_sources(root: Path) -> list[Mapping[str, Any]]:
    """Return the published manifests, with what became of each."""
    text = (root / FOLDER / "sources.toml").read_text(encoding="utf-8")
    sources: list[Mapping[str, Any]] = tomllib.loads(text)["source"]
    return sources


def table(root: Path) -> str:
    """Return how many manifests of each kind were converted, and one row for each manifest."""
    sources = read_sources(root)
    lines = [
        *_counts(sources),
        "",
        "| manifest | kinds | notes |",
        "| --- | --- | --- |",
        *(_row(source) for source in sources if not _is_refused(source)),
        "",
        "Refused:",
        "",
        *map(_refusal, filter(_is_refused, sources)),
    ]
    return "\n".join(lines) + "\n"


def _is_refused(source: Mapping[str, Any]) -> bool:
    return "refused" in source


def _counts(sources: list[Mapping[str, Any]]) -> Iterator[str]:
    every = Counter(kind for source in sources for kind in source["kinds"])
    refused = Counter(kind for source in sources if _is_refused(source) for kind in source["kinds"])
    total, lost = len(sources), sum(map(_is_refused, sources))
    yield "| kind | manifests | Ready | refused |"
    yield "| --- | --- | --- | --- |"
    for kind, words in _KINDS.items():
        yield f"| {words} | {every[kind]} | {every[kind] - refused[kind]} | {refused[kind]} |"
    yield f"| all, each once | {total} | {total - lost} | {lost} |"


def _refusal(source: Mapping[str, Any]) -> str:
    refused, link = source["refused"], _link(source["name"], f"{FOLDER}/refused")
    return _line(
        f"- {link} (`{refused['field']}`): {refused['why']} Instead: {refused['instead']}"
    )


def _row(source: Mapping[str, Any]) -> str:
    kinds = ", ".join(_KINDS[kind] for kind in source["kinds"])
    return _line(f"| {_link(source['name'])} | {kinds} | {source['notes']} |")


def _link(name: str, folder: str = FOLDER) -> str:
    return f"[{name}](../../{folder}/{name}.yaml)"


def _line(text: str) -> str:
    return " ".join(text.split())
