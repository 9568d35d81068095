"""Flags of `vllm serve` and metrics of each known vLLM version, from the data files."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from importlib.resources.abc import Traversable
from typing import Any, Literal

from pydantic import TypeAdapter

from tessera.api.meta import Wire

# How a value is read. A `size` may be written 8k (8000) or 8K (8192); a `word` folds case.
FlagType = Literal["float", "int", "json", "jsonOrText", "size", "sizeOrAuto", "str", "word"]


class Flag(Wire):
    """One option of `vllm serve`; without `options` it is the positional argument."""

    options: tuple[str, ...]
    dest: str
    action: Literal["append", "help", "store", "switch"]
    type: FlagType | None = None
    nargs: Literal["?", "+"] | None = None
    default: Any = None
    choices: tuple[str | int, ...] | None = None
    gt: float | None = None
    ge: float | None = None
    lt: float | None = None
    le: float | None = None
    accepts_none: bool = False

    @property
    def name(self) -> str:
        """Return the option as people write it."""
        return self.options[0] if self.options else self.dest


class Metric(Wire):
    """One metric of `/metrics`; counters carry their `_total`."""

    name: str
    type: Literal["counter", "gauge", "histogram", "summary"]
    labels: tuple[str, ...]
    buckets: tuple[float, ...] = ()
    """Upper bounds of a histogram without the infinite one."""
    always: bool = False
    """Whether a server with default flags exposes it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineFacts:
    """Flags and metrics of one vLLM version."""

    version: str
    flags: tuple[Flag, ...]
    metrics: Mapping[str, Metric]
    by_option: Mapping[str, Flag]


def known_versions() -> tuple[str, ...]:
    """Return the versions with a shipped table, oldest first."""
    names = (entry.name for entry in _data_directory().iterdir())
    versions = [
        name.removeprefix("vllm-").removesuffix(".json")
        for name in names
        if name.startswith("vllm-")
    ]
    return tuple(sorted(versions, key=_version_key))


def is_older(version: str, other: str) -> bool:
    return _version_key(version) < _version_key(other)


def _version_key(version: str) -> list[int]:
    return [int(part) for part in version.split(".")]


@cache
def version_facts(version: str) -> EngineFacts | None:
    """Return the facts of a version; None when they are not shipped."""
    if version not in known_versions():
        return None
    document = json.loads(
        _data_directory().joinpath(f"vllm-{version}.json").read_text(encoding="utf-8")
    )
    flags = TypeAdapter(tuple[Flag, ...]).validate_python(document["flags"])
    metrics = TypeAdapter(tuple[Metric, ...]).validate_python(document["metrics"])
    return EngineFacts(
        version=version,
        flags=flags,
        metrics={metric.name: metric for metric in metrics},
        by_option={option: flag for flag in flags for option in flag.options},
    )


def _data_directory() -> Traversable:
    return resources.files("tessera.domain").joinpath("data")
