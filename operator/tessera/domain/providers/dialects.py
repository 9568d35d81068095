"""Dialects of outside providers: what each of them does otherwise than its protocol says.

The rows come from two files: `dialects.json`, which `tools/provider_facts.py` writes, and
`dialect-notes.json`, written by hand, each line with its source.
"""

import json
import re
from collections.abc import Iterable, Mapping
from functools import partial
from importlib import resources
from typing import Any, Literal

from pydantic import TypeAdapter

from tessera.api.meta import Wire
from tessera.api.model_provider import (
    KeyHeader,
    ModelProviderSpec,
    OutputLimitField,
    ProviderProtocol,
)
from tessera.domain.incremental import constant, tabulated

Count = Literal[
    "input", "cached", "cacheWrite", "longCacheWrite", "output", "reasoning", "searches"
]


class CountPath(Wire):
    """Where a dialect has a count; several of one count are summed."""

    path: tuple[str, ...]
    """Names of fields from the object `usage` on."""

    count: Count
    """What it counts; cached and written tokens are part of the input, reasoning of the output."""


class OwnCost(Wire):
    """Where a dialect has its own cost of an answer."""

    path: tuple[str, ...]
    """Names of fields from the object `usage` on."""

    per_usd: int = 1
    """How many of its units are 1 USD."""


class Dialect(Wire):
    """What a provider does otherwise than its protocol says."""

    host: str = ""
    """Regular expression of the beginning of its base URL, up to a boundary; empty for none."""

    counts: Mapping[ProviderProtocol, tuple[CountPath, ...]] = {}
    """Where its answers have counts, by protocol; omitted, where the protocol has them."""

    base_url: str = ""
    """Its base URL, as its documentation gives it; empty where each customer has one of their own,
    or none is known."""

    protocols: tuple[ProviderProtocol, ...] = ()
    """What it speaks at that base URL."""

    key_header: KeyHeader = "Authorization"
    """Header with its key."""

    output_limit_field: OutputLimitField = "max_tokens"
    """Field that bounds an answer on the path of chats."""

    rest_is_reasoning: bool = False
    """Whether reasoning is counted in the total of tokens alone."""

    own_costs: tuple[OwnCost, ...] = ()
    """Where its answers have its own cost of them, beside the places that all are looked at."""

    returned_reasoning: tuple[str, ...] = ()
    """Fields of an assistant's message in chats, with plain reasoning that it takes back."""

    requires_reasoning: bool = False
    """Whether models that think refuse calls of tools in chats without the reasoning before them,
    unless the request has `"thinking": {"type": "disabled"}`."""

    own_fields: tuple[str, ...] = ()
    """Fields of a chat's request that it takes in addition to those of the protocol."""

    refused_fields: tuple[str, ...] = ()
    """Fields of a chat's request that it refuses."""

    refused_message_fields: tuple[str, ...] = ()
    """Fields of a message in chats that it refuses."""

    renamed_fields: Mapping[str, str] = {}
    """Fields of a chat's request that have another name there."""

    signature_of_others: str = ""
    """What stands in place of the signature of a call that another model made; empty for none."""

    call_ids: str = ""
    """Regular expression of the ids of calls that it takes; empty for any id."""

    renamed_roles: Mapping[str, str] = {}
    """Roles of messages that it has another name for."""

    reasoning_of_others: str = ""
    """What stands in place of the reasoning of a call that another model made; empty for none."""

    returned_parts: tuple[str, ...] = ()
    """Types of parts of a message's content, with plain reasoning that it takes back."""

    @property
    def has_call_state(self) -> bool:
        """Return whether calls of tools need anything that other models do not give them."""
        return self.requires_reasoning or bool(self.signature_of_others or self.call_ids)


# What a provider speaks that has no row: the general rules alone.
PLAIN = Dialect()


def dialect_of(spec: ModelProviderSpec) -> Dialect:
    """Return the dialect that a provider speaks, by its name or by the host of its base URL."""
    if spec.dialect is not None:
        return dialects().get(spec.dialect, PLAIN)
    return _dialect_at(spec.base_url)


@partial(tabulated, size=256)
def _dialect_at(base_url: str) -> Dialect:
    """Return the dialect of a host, for which each request asks."""
    rows = dialects()
    return rows.get(dialect_name(rows, base_url), PLAIN)


def dialect_name(rows: Mapping[str, Dialect], base_url: str) -> str:
    """Return the name of the row that fits most of a base URL; empty for none."""
    fits = [
        (match.end(), name)
        for name, each in rows.items()
        if each.host and (match := re.match(each.host, base_url, re.IGNORECASE))
    ]
    return max(fits, default=(0, ""))[1]


@constant
def dialects() -> Mapping[str, Dialect]:
    """Return all rows by their names."""
    folder = resources.files("tessera.domain").joinpath("data")
    return parse_dialects(
        folder.joinpath(name).read_text(encoding="utf-8")
        for name in ("dialects.json", "dialect-notes.json")
    )


def parse_dialects(files: Iterable[str]) -> Mapping[str, Dialect]:
    """Return the rows of files; several of one name are merged, and a later field replaces."""
    rows: dict[str, dict[str, Any]] = {}
    for text in files:
        for row in json.loads(text)["rows"]:
            fields = {key: value for key, value in row.items() if key not in ("name", "source")}
            rows.setdefault(row["name"], {}).update(fields)
    return TypeAdapter(dict[str, Dialect]).validate_python(rows)
