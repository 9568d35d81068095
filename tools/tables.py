"""Tables of results that the product keeps: what they are keyed by, and how large they get.

A table is a function that remembers its results by its arguments. Tenants and nodes choose some of
these without end, so that each has a bound. Long texts are no keys: what they say is.
"""

import ast
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from check_words import modules

# Where `tabulated` itself and `constant` are: a constant has no arguments, so one result.
_DEFINITIONS = "operator/tessera/domain/incremental.py"
_MEMOS = {("functools", "cache"), ("functools", "lru_cache")} | {
    ("tessera.domain.incremental", "tabulated")
}


@dataclass(frozen=True, slots=True)
class Table:
    """A table, and the largest result that anybody can make it keep."""

    keys: str
    kibibytes: int
    """Of a result with its key."""


TABLES: Mapping[str, Table] = {
    "tessera.adapters.nvml.profiles._error_names": Table("the driver's library", 16),
    "tessera.adapters.nvml.profiles._profile_constants": Table("the driver's library", 16),
    "tessera.adapters.kube.object_parsing._shared_devices": Table("up to 16 resources, counts", 4),
    "tessera.adapters.kube.object_parsing.cached_spec": Table("JSON of up to 2 KiB, classes", 47),
    "tessera.domain.hardware.pools.profile_of": Table("product, resource", 2),
    "tessera.domain.hardware.pools.weight_of": Table("product, resource", 1),
    "tessera.domain.mig.geometries._fill_counts": Table("GPU model, profiles, slices taken", 9),
    "tessera.domain.mig.geometries.maximal_fillings": Table("GPU model, profiles, layout", 7),
    "tessera.domain.mig.geometries.possible_reshapes": Table("GPU model, profiles, layout", 128),
    "tessera.domain.hardware.gpu_layouts.place_geometry": Table("GPU model, counts, layout", 1),
    "tessera.domain.mig.mix.gpu_geometries": Table("GPU model, profiles", 2),
    "tessera.domain.mig_backends.layout_search._densest_first": Table("GPU model, profiles", 2),
    "tessera.domain.mig_backends.layout_search._pack": Table("GPU model, counts, GPUs", 4),
    "tessera.domain.mig_backends.layout_search.layouts_for_counts": Table(
        "GPU model, counts, up to 16 GPUs and layouts", 16
    ),
    "tessera.domain.mig_backends.usage.share": Table("GPU model, profile", 1),
    "tessera.domain.placement.candidates.tabulated_size": Table("demand, hardware", 9),
    "tessera.domain.placement.no_hardware._tabulated_objectives": Table("demand, hardware", 8),
    "tessera.domain.providers.dialects._dialect_at": Table("base URL", 1),
    "tessera.domain.schedules._days_of_item": Table("1 of 90 items of a cron expression", 1),
    "tessera.domain.vllm.extra_args._parsed_flags": Table("64 KiB of flags, version", 3840),
    "tessera.domain.repartition.goals._target_layout": Table("GPU model, slices, layout", 2),
}


def table(name: str) -> Any:
    """Return the function of a table."""
    module, _, function = name.rpartition(".")
    return getattr(import_module(module), function)


def results(name: str) -> int:
    """Return how many results a table keeps at most."""
    size: int = table(name).cache_info().maxsize
    return size


def most_kibibytes(name: str) -> int:
    """Return what a table takes that is full of its largest results."""
    return results(name) * TABLES[name].kibibytes


def tables_in(root: Path) -> Iterator[str]:
    """Yield the names of all tables of the product; the place of one that has no name.

    Those of the lab last as long as a command of its user.
    """
    for module in modules(root, "operator/tessera"):
        if module.path == _DEFINITIONS:
            continue
        name = module.path.removeprefix("operator/").removesuffix(".py").replace("/", ".")
        named = {
            memo: f"{name}.{owner}"
            for statement in ast.walk(module.tree)
            for owner, parts in _named(statement)
            for part in parts
            for memo in ast.walk(part)
        }
        aliases = dict(_aliases(module.tree))
        for node in ast.walk(module.tree):
            if _is_memo(node, aliases):
                yield named.get(node, f"{module.path}:{getattr(node, 'lineno', 0)}")


def _named(statement: ast.AST) -> Iterator[tuple[str, list[ast.expr]]]:
    """Yield the name that a statement gives to a table, and where in it the table may be made."""
    match statement:
        case ast.FunctionDef(name=name, decorator_list=decorators):
            yield name, decorators
        case ast.Assign(targets=[ast.Name(name)], value=value):
            yield name, [value]
        case ast.AnnAssign(target=ast.Name(name), value=ast.expr() as value):
            yield name, [value]
        case _:
            pass


def _aliases(tree: ast.Module) -> Iterator[tuple[str, tuple[str, str]]]:
    """Yield the module's own names of what makes tables, and of functools."""
    for node in ast.walk(tree):
        match node:
            case ast.ImportFrom(module=str(source), names=names):
                for alias in names:
                    yield alias.asname or alias.name, (source, alias.name)
            case ast.Import(names=names):
                for alias in names:
                    yield alias.asname or alias.name, (alias.name, "")
            case _:
                pass


def _is_memo(node: ast.AST, aliases: Mapping[str, tuple[str, str]]) -> bool:
    match node:
        case ast.Name(name):
            return aliases.get(name) in _MEMOS
        case ast.Attribute(value=ast.Name(name), attr=attribute):
            return (aliases.get(name, ("", ""))[0], attribute) in _MEMOS
        case _:
            return False
