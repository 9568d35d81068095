"""The table of entries: whatever is missing in it, or wrong, fails `make lint`."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from entries_page import PAGE, Row, _opens, entries, find_faults, rows
from tessera.gateway.paths import PATHS
from tessera.resources.api_resources import WATCHED

ROOT = Path(__file__).parents[2]
METRICS = (ROOT / "docs/reference/metrics.md").read_text(encoding="utf-8")


def a_workload(name: str, *ports: str) -> dict[str, Any]:
    containers = [{"ports": [{"name": port} for port in ports]}]
    return {"metadata": {"name": name}, "spec": {"template": {"spec": {"containers": containers}}}}


CHART = (
    a_workload("tessera-operator", "metrics", "probes", "webhook", "demand"),
    a_workload("tessera-gateway", "api", "metrics", "batches", "gates"),
    a_workload("tessera-node", "probes"),
    {"metadata": {"name": "a Secret"}},
)


EXISTING = entries(CHART)


def faults(stated: Sequence[Row]) -> list[str]:
    return list(find_faults(stated, EXISTING, METRICS))


def test_every_entry_has_a_row() -> None:
    assert faults(rows()) == []


@pytest.mark.parametrize(
    "name",
    [
        *(f"gateway POST {path}" for path in list(PATHS)[:2]),
        *("gateway GET /v1/models", "platform GET /usage", "port tessera-gateway api"),
        *(f"operator watches {kind.kind}" for kind in WATCHED[:2]),
        *("gateway watches Secret", "opens tessera.adapters.hub_client"),
        "opens tessera.adapters.node_layout_client",
    ],
)
def test_an_entry_without_a_row_is_a_fault(name: str) -> None:
    others = [
        replace(row, names=tuple(each for each in row.names if each != name)) for row in rows()
    ]
    assert faults([row for row in others if row.names]) == [f"no row for {name}"]


def test_a_new_port_is_a_fault_until_it_has_a_row() -> None:
    chart = (*CHART, a_workload("tessera-gateway", "debug"))
    assert list(find_faults(rows(), entries(chart), METRICS)) == [
        "no row for port tessera-gateway debug"
    ]


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"names": ("port nothing",)}, "port nothing is no entry"),
        ({"owner": "tessera.gateway.nobody"}, "there is no module tessera.gateway.nobody"),
        ({"counter": "`tessera_nothing_total`"}, "there is no metric tessera_nothing_total"),
        ({"bounds": {}}, "it has no bound"),
        (
            {"bounds": {"bytes": "tessera.adapters.hub_client:_GONE"}},
            "there is no tessera.adapters.hub_client:_GONE",
        ),
        ({"test": "tests/docs/test_entries.py::test_no"}, "there is no test"),
        ({"test": "tests/docs/test_no.py::test_no"}, "there is no test"),
    ],
)
def test_what_a_row_says_has_to_exist(change: dict[str, Any], fault: str) -> None:
    row = replace(rows()[0], names=("file x",))
    assert faults(rows()) == faults([*rows(), row])
    assert any(fault in each for each in faults([*rows(), replace(row, **change)]))


@pytest.mark.parametrize(
    ("text", "opens"),
    [
        ("async def f(): await web.TCPSite(runner, host, port).start()", True),
        ("session = ClientSession()", True),
        ("async for _ in self._cluster.watch(NODE_LAYOUTS, version): pass", True),
        ("engine.watch()", False),
        ("from aiohttp import ClientSession", False),
    ],
)
def test_what_opens_a_way_in_is_found_in_the_code(text: str, opens: bool) -> None:
    assert _opens(text) is opens


def test_the_page_is_in_the_menu() -> None:
    assert PAGE.removeprefix("docs/") in (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
