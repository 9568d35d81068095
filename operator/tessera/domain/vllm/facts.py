"""Flags of `vllm serve` and metrics of each known vLLM version, from the data files."""

import json
from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from importlib.resources.abc import Traversable
from typing import Any, Literal

from pydantic import TypeAdapter

from tessera.api.meta import Wire
from tessera.domain.incremental import constant

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
    options: tuple[str, ...]
    """All names, in order."""

    def options_with(self, prefix: str) -> tuple[str, ...]:
        """Return the names that begin with a prefix, without a look at all of them."""
        first = bisect_left(self.options, prefix)
        end = bisect_left(self.options, prefix + chr(0x10FFFF), first)
        return self.options[first:end]


def known_versions() -> tuple[str, ...]:
    """Return the versions with a shipped table, oldest first."""
    return tuple(_facts_by_version())


def is_older(version: str, other: str) -> bool:
    return _version_key(version) < _version_key(other)


def _version_key(version: str) -> list[int]:
    return [int(part) for part in version.split(".")]


def version_facts(version: str) -> EngineFacts | None:
    """Return the facts of a version; None when they are not shipped."""
    return _facts_by_version().get(version)


def versions_with(option: str) -> tuple[str, ...]:
    """Return the known versions that have an option, oldest first."""
    return tuple(
        version for version, facts in _facts_by_version().items() if option in facts.by_option
    )


@constant
def _facts_by_version() -> Mapping[str, EngineFacts]:
    files = {
        file.name.removeprefix("vllm-").removesuffix(".json"): file
        for file in resources.files("tessera.domain").joinpath("data").iterdir()
        if file.name.startswith("vllm-")
    }
    return {
        version: _read_facts(version, files[version]) for version in sorted(files, key=_version_key)
    }


def _read_facts(version: str, file: Traversable) -> EngineFacts:
    document = json.loads(file.read_text(encoding="utf-8"))
    flags = TypeAdapter(tuple[Flag, ...]).validate_python(document["flags"])
    metrics = TypeAdapter(tuple[Metric, ...]).validate_python(document["metrics"])
    by_option = {option: flag for flag in flags for option in flag.options}
    return EngineFacts(
        version=version,
        flags=flags,
        metrics={metric.name: metric for metric in metrics},
        by_option=by_option,
        options=tuple(sorted(by_option)),
    )
