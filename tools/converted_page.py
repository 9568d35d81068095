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
    """Return how many manifests of each kind were converted, and which ones."""
    sources = read_sources(root)
    lines = [*_counts(sources), "", "Refused:", "", *map(_refusal, filter(_is_refused, sources))]
    return "\n".join(lines) + "\n"


def _is_refused(source: Mapping[str, Any]) -> bool:
    return "refused" in source


def _counts(sources: list[Mapping[str, Any]]) -> Iterator[str]:
    every = Counter(kind for source in sources for kind in source["kinds"])
    refused = Counter(kind for source in sources if _is_refused(source) for kind in source["kinds"])
    total, lost = len(sources), sum(map(_is_refused, sources))
    yield "| kind | manifests | refused | Ready |"
    yield "| --- | --- | --- | --- |"
    for kind, words in _KINDS.items():
        ready = [s["name"] for s in sources if kind in s["kinds"] and not _is_refused(s)]
        yield f"| {words} | {every[kind]} | {refused[kind]} | {', '.join(map(_link, ready))} |"
    yield f"| all, each once | {total} | {lost} | {total - lost} |"


def _refusal(source: Mapping[str, Any]) -> str:
    refused, link = source["refused"], _link(f"refused/{source['name']}")
    return _line(f"- {link} (`{refused['field']}`): {refused['why']} Instead: {refused['instead']}")


def _link(name: str) -> str:
    return f"[{name.removeprefix('refused/')}](../../{FOLDER}/{name}.yaml)"


def _line(text: str) -> str:
    return " ".join(text.split())
