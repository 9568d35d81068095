"""The reference page of entries: each way in with its owner, its counter, its bounds and its test.

The entries come from the code and the rendered chart, what is said of them from a file.
"""

import ast
import importlib
import importlib.util
import re
import sys
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from chart_rights import Json
from tessera.gateway.fleet.watching import FleetWatch
from tessera.gateway.internal_api import InternalApi
from tessera.gateway.paths import OWN_PATHS, PATHS
from tessera.resources.api_resources import WATCHED

PAGE = "docs/reference/entries.md"
ROOT = Path(__file__).parents[1]
_ROWS = Path(__file__).with_name("entries.toml")
_SOURCES = ROOT / "operator"
# Calls that open a socket, a connection or a device of another party. The CLI runs at its user's.
_OPENERS = frozenset(
    (
        *("TCPSite", "HttpsServer", "WebhookServer", "listen", "create_server", "start_server"),
        *("create_connection", "insecure_channel", "ClientSession", "AsyncClient", "ApiClient"),
        *("PrometheusConnect", "create_async_engine", "nvmlInit", "urlopen"),
        *("S3Store", "GCSStore", "AzureStore"),
    )
)
_UNLISTED = "file "
_HEAD = """\
# Entries

Each way by which something from outside reaches a process of Tessera: paths and ports, watched
kinds, what a module opens, and files. The owner counts what comes and keeps it within the bounds;
the test shows it. `make lint` fails for an entry without a row.

| entry | owner | counted by | at most | test |
| --- | --- | --- | --- | --- |
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """What is said of some entries."""

    names: tuple[str, ...]
    owner: str
    """Module that counts what comes, and refuses what is too much."""
    counter: str
    bounds: Mapping[str, str]
    """`module:CONSTANT` by what it bounds."""
    test: str
    """`path::name`."""


def rows() -> Sequence[Row]:
    """Return the rows of the file."""
    entries = tomllib.loads(_ROWS.read_text(encoding="utf-8"))["entry"]
    return [Row(**{**entry, "names": tuple(entry["names"])}) for entry in entries]


def page(objects: Sequence[Json], metrics: str) -> str:
    """Return the page; exit where the file and the entries of the product disagree."""
    stated = rows()
    if faults := tuple(find_faults(stated, entries(objects), metrics)):
        sys.exit("tools/entries.toml: " + "\n".join(faults))
    return _HEAD + "".join(map(_line, stated))


def entries(objects: Sequence[Json]) -> frozenset[str]:
    """Return the names of all entries of the product, with the chart's rendered objects."""
    return frozenset((*_paths(), *_ports(objects), *_watches(), *_opened()))


def find_faults(stated: Sequence[Row], existing: frozenset[str], metrics: str) -> Iterator[str]:
    """Yield what is wrong with the rows, beside the page of metrics."""
    named = [name for row in stated for name in row.names]
    yield from (f"no row for {name}" for name in sorted(existing.difference(named)))
    yield from (f"two rows for {name}" for name in sorted({*named}) if named.count(name) > 1)
    for name in named:
        if name not in existing and not name.startswith(_UNLISTED):
            yield f"{name} is no entry"
    for row in stated:
        yield from (f"{row.names[0]}: {fault}" for fault in _faults_of(row, metrics))


def _faults_of(row: Row, metrics: str) -> Iterator[str]:
    if importlib.util.find_spec(row.owner) is None:
        yield f"there is no module {row.owner}"
    for metric in re.findall(r"tessera_\w+", row.counter):
        if f"`{metric}`" not in metrics:
            yield f"there is no metric {metric}"
    if not row.bounds:
        yield "it has no bound"
    for bound in row.bounds.values():
        if _value(bound) is None:
            yield f"there is no {bound}"
    if not _is_test(*row.test.split("::")):
        yield f"there is no test {row.test}"


def _paths() -> Iterator[str]:
    for name in (*(f"POST {path}" for path in PATHS), *OWN_PATHS):
        yield f"gateway {name}"
    unused: Any = None
    api = InternalApi(unused, unused, unused, "", unused, unused, others=unused)
    for route in api.application().router.routes():
        if route.method != "HEAD" and route.resource is not None:
            yield f"platform {route.method} {route.resource.canonical}"


def _ports(objects: Sequence[Json]) -> Iterator[str]:
    for each in objects:
        pod = (each.get("spec") or {}).get("template", {}).get("spec", {})
        for container in pod.get("containers", ()):
            for port in container.get("ports", ()):
                yield f"port {each['metadata']['name']} {port['name']}"


def _watches() -> Iterator[str]:
    yield from (f"operator watches {kind.kind}" for kind in WATCHED)
    yield from (f"gateway watches {kind.kind}" for kind in FleetWatch.KINDS)


def _opened() -> Iterator[str]:
    """Yield the modules of the product that open something."""
    for path in sorted(_SOURCES.glob("tessera/**/*.py")):
        module = ".".join(path.relative_to(_SOURCES).with_suffix("").parts)
        if module.startswith("tessera.cli."):
            continue
        text = path.read_text(encoding="utf-8")
        if any(word in text for word in (*_OPENERS, ".watch(")) and _opens(text):
            yield f"opens {module}"


def _opens(text: str) -> bool:
    calls = (node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Call))
    return any(_name(call.func) in _OPENERS or _is_watch(call) for call in calls)


def _is_watch(call: ast.Call) -> bool:
    """Return whether a call watches a kind that it names."""
    return _name(call.func) == "watch" and bool(call.args) and _name(call.args[0]).isupper()


def _name(node: ast.expr) -> str:
    return node.attr if isinstance(node, ast.Attribute) else getattr(node, "id", "")


def _value(bound: str) -> object:
    module, _, name = bound.partition(":")
    return getattr(importlib.import_module(module), name, None)


def _is_test(path: str, name: str) -> bool:
    file = ROOT / path
    return (
        file.is_file()
        and re.search(rf"^(?:async )?def {name}\(", file.read_text(encoding="utf-8"), re.MULTILINE)
        is not None
    )


def _line(row: Row) -> str:
    names = "<br>".join(f"`{name}`" for name in row.names)
    bounds = "<br>".join(f"{what}: {_value(bound):,}" for what, bound in row.bounds.items())
    return f"| {names} | `{row.owner}` | {row.counter} | {bounds} | `{row.test}` |\n"
