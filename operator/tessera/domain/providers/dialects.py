"""Dialects of outside providers: what each of them does otherwise than its protocol says.

The rows come from two files: `dialects.json`, which a script takes over, and
`dialect-notes.json`, written by hand, each line with its source.
"""

import json
import re
from collections.abc import Mapping
from importlib import resources
from typing import Any, Literal

from pydantic import TypeAdapter

from tessera.api.meta import Wire
from tessera.api.model_provider import ModelProviderSpec, ProviderProtocol
from tessera.domain.incremental import constant

Count = Literal[
    "input", "cached", "cacheWrite", "longCacheWrite", "output", "reasoning", "searches"
]


class CountPath(Wire):
    """Where a dialect has a count; several of one count are summed."""

    path: tuple[str, ...]
    """Names of fields from the object `usage` on."""

    count: Count
    """What it counts; cached and written tokens are part of the input, reasoning of the output."""


class Dialect(Wire):
    """What a provider does otherwise than its protocol says."""

    host: str = ""
    """Regular expression of the beginning of its base URL; empty for none."""

    counts: Mapping[ProviderProtocol, tuple[CountPath, ...]] = {}
    """Where its answers have counts, by protocol; omitted, where the protocol has them."""

    returned_reasoning: tuple[str, ...] = ()
    """Fields of an assistant's message in chats, with plain reasoning that it takes back."""


# What a provider speaks that has no row: the general rules alone.
PLAIN = Dialect()


def dialect_of(spec: ModelProviderSpec) -> Dialect:
    """Return the dialect that a provider speaks, by the host of its base URL."""
    rows = dialects().values()
    return next((each for each in rows if each.host and re.match(each.host, spec.base_url)), PLAIN)


@constant
def dialects() -> Mapping[str, Dialect]:
    """Return all rows by their names."""
    rows: dict[str, dict[str, Any]] = {}
    for name in ("dialects.json", "dialect-notes.json"):
        path = resources.files("tessera.domain").joinpath("data", name)
        for row in json.loads(path.read_text(encoding="utf-8"))["rows"]:
            fields = {key: value for key, value in row.items() if key not in ("name", "source")}
            rows.setdefault(row["name"], {}).update(fields)
    return TypeAdapter(dict[str, Dialect]).validate_python(rows)
