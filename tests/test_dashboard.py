"""Grafana's dashboards are complete and readable, and query only exported metrics."""

import itertools
import re
from pathlib import Path

import pytest

from tests.dashboards import DASHBOARDS, FOREIGN, known_metrics, read, targets

COLUMNS = 24

each = pytest.mark.parametrize("path", DASHBOARDS, ids=lambda path: path.stem)


def test_there_are_those_of_cost_energy_gateway_routes_slo_speed_and_tenants() -> None:
    titles = [read(path)["title"] for path in DASHBOARDS]
    assert titles == [
        "Tessera: cost",
        "Tessera: energy",
        "Tessera: gateway",
        "Tessera: routes",
        "Tessera: SLO",
        "Tessera: speed",
        "Tessera: tenants",
    ]


def test_no_two_share_a_uid() -> None:
    uids = [read(path)["uid"] for path in DASHBOARDS]
    assert len(set(uids)) == len(uids)


@each
def test_ids_and_titles_of_panels_are_unique(path: Path) -> None:
    panels = read(path)["panels"]
    for field in ("id", "title"):
        values = [panel[field] for panel in panels]
        assert len(set(values)) == len(values) > 0


@each
def test_panels_are_within_the_grid_and_do_not_overlap(path: Path) -> None:
    positions = [panel["gridPos"] for panel in read(path)["panels"]]
    assert all(place["x"] >= 0 and place["x"] + place["w"] <= COLUMNS for place in positions)
    for first, second in itertools.combinations(positions, 2):
        beside = first["x"] + first["w"] <= second["x"] or second["x"] + second["w"] <= first["x"]
        above = first["y"] + first["h"] <= second["y"] or second["y"] + second["h"] <= first["y"]
        assert beside or above, f"{first} and {second} overlap"


@each
def test_every_panel_says_what_it_shows_and_in_which_unit(path: Path) -> None:
    for panel in read(path)["panels"]:
        assert panel["description"].endswith("."), panel["title"]
        assert panel["fieldConfig"]["defaults"]["unit"], panel["title"]


@each
def test_every_target_asks_something_of_the_chosen_prometheus(path: Path) -> None:
    dashboard = read(path)
    variables = {variable["name"]: variable for variable in dashboard["templating"]["list"]}
    assert variables["datasource"]["type"] == "datasource"
    for panel in dashboard["panels"]:
        panel_targets = panel["targets"]
        assert len({target["refId"] for target in panel_targets}) == len(panel_targets) > 0
        for target in panel_targets:
            assert target["expr"].strip()
            assert target["datasource"]["uid"] == "${datasource}"
            used = set(re.findall(r"\$(?!__)\{?(\w+)", target["expr"]))
            assert used <= variables.keys()


@each
def test_every_metric_is_exported(path: Path) -> None:
    dashboard = read(path)
    expressions = [target["expr"] for target in targets(dashboard)]
    expressions += [variable.get("definition", "") for variable in dashboard["templating"]["list"]]
    # Labels of Tessera's pods begin like its metrics.
    names = r"\b(?:tessera_(?!dev_)|vllm:|DCGM_)\w+"
    named = {name for text in expressions for name in re.findall(names, text)}
    assert named
    assert named <= known_metrics() | FOREIGN
