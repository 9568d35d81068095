"""`tessera plan`: its files, its output, its page."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import highspy
import pytest

from docs_tests.blocks import Command, File
from docs_tests.pages import page_of, read_page_steps
from mig_fleets import fleet
from tessera.cli.errors import CommandError
from tessera.cli.mosaic.drawing import MosaicTile, Strip, fleet_tiles, strip_lines, svg_document
from tessera.cli.output import Output
from tessera.cli.plan.arguments import PLAN
from tessera.cli.plan.command import UNMET, run
from tests.mig_builders import A100, a_gpu

SVG = "{http://www.w3.org/2000/svg}"
DEMAND = "service,demand,minReplicas\nchat,700,1\nsearch,300,2\n"
THROUGHPUT = """\
service,profile,throughput
chat,3g.40gb,350
chat,whole,800
search,1g.10gb,160
search,2g.20gb,300
"""


class PlanFiles:
    """A folder with the tables, and the command over them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.write("demand.csv", DEMAND)
        self.write("throughput.csv", THROUGHPUT)

    def write(self, name: str, text: str) -> None:
        (self.folder / name).write_text(text, encoding="utf-8")

    def plan(self, *more: str, gpu: str = "A100-80GB") -> Output:
        words = ["--gpu", gpu, *more]
        for option in ("demand", "throughput"):
            words += [f"--{option}", str(self.folder / f"{option}.csv")]
        return run(PLAN.parse(words))

    def fields(self, *more: str) -> dict[str, Any]:
        report: dict[str, Any] = json.loads(self.plan("--json", *more).text)
        return report

    def current(self, layouts: object) -> tuple[str, str]:
        self.write("current.json", json.dumps(layouts))
        return "--current", str(self.folder / "current.json")


@pytest.fixture
def files(tmp_path: Path) -> PlanFiles:
    return PlanFiles(tmp_path)


def test_the_plan_has_its_gpus_its_bound_its_layouts_and_no_moves(files: PlanFiles) -> None:
    report = files.fields()
    assert (report["gpus"], report["lowerBound"], report["gap"], report["moves"]) == (2, 2, 0.0, [])
    assignments = sorted(
        (gpu_slice["service"], gpu_slice["profile"])
        for gpu in report["layouts"]
        for gpu_slice in gpu["slices"]
    )
    assert assignments == [("chat", "3g.40gb")] * 2 + [("search", "1g.10gb")] * 2


def test_a_plan_as_the_current_layout_changes_nothing(files: PlanFiles) -> None:
    plan = files.fields()
    for current in (plan, plan["layouts"]):
        plan_again = files.fields(*files.current(current))
        assert plan_again == plan
    assert files.plan(*files.current(plan)).text.endswith("Nothing changes.\n")


def test_a_move_is_shown_with_both_its_places(files: PlanFiles) -> None:
    files.write("demand.csv", "service,demand\nchat,350\nsearch,300\n")
    current = [
        {"gpu": "b", "slices": [{"profile": "3g.40gb", "start": 0, "service": "chat"}]},
        {"gpu": "c", "slices": [{"profile": "2g.20gb", "start": 0, "service": "search"}]},
    ]
    report = files.fields(*files.current(current))
    assert report["gpus"] == 1
    [move] = report["moves"]
    assert {move["from"]["gpu"], move["to"]["gpu"]} == {"b", "c"}
    [step] = report["steps"]
    assert (step["gpu"], step["displaced"], step["destroy"]) == (move["to"]["gpu"], [], [])
    assert step["create"] == [f"{move['to']['profile']}@{move['to']['start']}"]
    text = files.plan(*files.current(current)).text
    assert "1 replica moved:" in text
    with_few_moves = files.fields(*files.current(current), "--moves-per-gpu", "0.5")
    assert (with_few_moves["gpus"], with_few_moves["lowerBound"], with_few_moves["moves"]) == (
        2,
        1,
        [],
    )
    with pytest.raises(CommandError, match="write a number from 0"):
        files.plan("--moves-per-gpu", "-1")
    assert "1 GPU to repartition, in this order as capacity allows:" in text
    assert f"  1. {step['gpu']}: create {step['create'][0]}\n" in text


def test_the_mosaic_shows_slices_holes_and_what_is_stranded() -> None:
    small = [f"1g.10gb@{start}=chat" for start in range(7)]
    lines = list(
        strip_lines(A100, (a_gpu("a", *small), a_gpu("b", "3g.40gb@4"), a_gpu("c", "whole@0=x")))
    )
    assert len({len(line) for line in lines}) == 1
    assert lines[0].endswith("|1g chat    |///////////|")
    assert "3g - " in lines[1]
    assert "/" not in lines[1] + lines[2]
    wide = fleet_tiles(A100, a_gpu("d", "1g.20gb@0=chat", "3g.40gb@4=chat"))
    assert [(tile.start, tile.width, tile.stranded) for tile in wide] == [
        (0, 2, False),
        (2, 2, False),
        (4, 4, False),
    ]


def test_the_picture_is_xml_with_both_layouts_and_names_that_need_escaping(
    files: PlanFiles,
) -> None:
    files.write("demand.csv", "service,demand\nchat,350\n")
    current = [{"gpu": "<b>", "slices": [{"profile": "3g.40gb", "start": 0, "service": "a&b"}]}]
    picture = files.folder / "layouts.svg"
    files.plan(*files.current(current), "--svg", str(picture))
    root = ElementTree.fromstring(picture.read_text("utf-8"))  # noqa: S314 - it is our own
    titles = [element.text for element in root.iter(f"{SVG}title")]
    assert {"3g.40gb a&b @0", "3g.40gb chat @0", "free"} <= set(titles)
    with pytest.raises(CommandError, match="cannot be written"):
        files.plan("--svg", str(files.folder))


def test_a_solver_that_announces_itself_leaves_the_output_alone(
    files: PlanFiles, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    class TalkativeHighs(highspy.Highs):
        def __init__(self) -> None:
            super().__init__()  # type: ignore[no-untyped-call] # the package types it by half
            os.write(1, b"Running HiGHS 1.16.0\n")

    monkeypatch.setattr(highspy, "Highs", TalkativeHighs)
    assert files.fields()["unmet"] == []
    os.write(1, b"the next line\n")
    assert capfd.readouterr().out == "the next line\n"


def test_a_service_that_fits_nowhere_is_named_with_the_code_3_and_the_rest_is_planned(
    files: PlanFiles,
) -> None:
    files.write("demand.csv", f"{DEMAND}giant,5,0\nhuge,1,1\n")
    output = files.plan("--json")
    report = json.loads(output.text)
    assert (output.exit_code, report["unmet"], report["gpus"]) == (UNMET, ["giant", "huge"], 2)
    assert "giant cannot be served" in files.plan().text


def test_500_services_are_planned_by_the_command(files: PlanFiles) -> None:
    demands = fleet(500, 4, [A100])
    rows = [f"{demand.name},{demand.demand},{demand.min_replicas}" for demand in demands]
    files.write("demand.csv", "\n".join(["service,demand,minReplicas", *rows]))
    rows = [
        f"{demand.name},{kind.profile},{speed}"
        for demand in demands
        for kind, speed in demand.throughput.items()
    ]
    files.write("throughput.csv", "\n".join(["service,profile,throughput", *rows]))
    report = files.fields()
    assert report["gpus"] == len(report["layouts"]) > 900
    assert report["gap"] <= 0.005


def test_columns_and_rows_are_read_in_any_order_and_other_columns_are_ignored(
    files: PlanFiles,
) -> None:
    expected = files.fields()
    files.write(
        "demand.csv", "\ufeffMINREPLICAS, demand ,service,flavor\n\n2,300,search,a\n,700,chat\n"
    )
    assert files.fields() == expected


@pytest.mark.parametrize("gpu", ["A100-80GB", "a100-80gb", "NVIDIA-A100-SXM4-80GB"])
def test_a_gpu_is_found_by_its_name_or_that_of_its_product(files: PlanFiles, gpu: str) -> None:
    assert files.plan(gpu=gpu).text.startswith("2x A100-80GB; fewer are not possible.")


def test_a_gpu_is_found_by_an_unambiguous_prefix(files: PlanFiles) -> None:
    with pytest.raises(CommandError, match="H200-141GB has no profile"):
        files.plan(gpu="H200")
    with pytest.raises(CommandError, match="is ambiguous; choose one of A100-40GB, A100-80GB"):
        files.plan(gpu="A100")


@pytest.mark.parametrize(
    ("demand", "fix"),
    [
        (
            "",
            "has no column service, demand; its first line must name service,demand,[minReplicas]",
        ),
        ("service,demand\n", "has no services; write one row for each"),
        ("service,demand\nchat,many\n", "line 2: demand is many; write a number"),
        ("service,demand\nchat,-1\n", "line 2: demand is -1; write a number"),
        ("service,demand\nchat,nan\n", "line 2: demand is nan; write a number"),
        ("service,demand\nchat,1e11\n", "write demand and throughput in the same unit"),
        ("service,demand\nchat,inf\n", "line 2: demand is inf; write a number"),
        ("service,demand\nchat,\n", "line 2: demand is empty"),
        ("service,demand,minReplicas\nchat,1,1.5\n", "minReplicas is 1.5; write a whole number"),
        ("service,demand\nchat,1\nchat,2\n", "line 3: duplicate row for chat"),
        ("service,demand\nchat,1,2\n", "line 2: 3 cells for 2 columns"),
        ('service,demand\n"chat,1\n', "line 2: not CSV: unexpected end"),
        ("service,demand\n\nchat,1_000\n", "line 3: demand is 1_000; write a number"),
        ("service,demand\nchat,\u0661\n", "write a number"),
        ("service,demand,minReplicas\nchat,1," + "9" * 5000, "999...; write a whole number"),
        ("service,demand\nchat\x1b[2J,1\n", "service is 'chat\\x1b[2J'; remove"),
        ("service,demand,demand\nchat,1,2\n", "has the column demand twice"),
        (
            "service,demand,min_replicas\nchat,1,2\n",
            "has the column min_replicas; write minReplicas",
        ),
        ('service,demand\n"a\nb",1\n', "line 2: service is 'a\\nb'; remove"),
        ("service,demand\na\x0c,1\nb,x\n", "line 3: demand is x"),
    ],
)
def test_a_wrong_demand_is_a_sentence_with_its_fix(files: PlanFiles, demand: str, fix: str) -> None:
    files.write("demand.csv", demand)
    with pytest.raises(CommandError) as error:
        files.plan()
    assert fix in str(error.value)


@pytest.mark.parametrize(
    ("row", "fix"),
    [
        ("chat,9g.90gb,1", "A100-80GB has no profile 9g.90gb; supported: 1g.10gb"),
        ("chat,1g.10gb,x", "throughput is x; write a number"),
        ("chat,whole,2", "duplicate row for chat on whole"),
        ("chat,3g.39gb,2", "duplicate row for chat on 3g.39gb"),
    ],
)
def test_a_wrong_throughput_is_a_sentence_with_its_fix(
    files: PlanFiles, row: str, fix: str
) -> None:
    files.write("throughput.csv", f"{THROUGHPUT}{row}\n")
    with pytest.raises(CommandError) as error:
        files.plan()
    assert fix in str(error.value)


def slices(*placements: tuple[str, int]) -> list[dict[str, object]]:
    return [
        {"profile": profile, "start": start, "service": "chat"} for profile, start in placements
    ]


@pytest.mark.parametrize(
    ("current", "fix"),
    [
        ({"gpus": 3}, "is not a layout"),
        (3, "is not a layout"),
        ([{"slices": []}], "0.gpu: Field required"),
        ([{"gpu": "a"}, {"gpu": "a"}], "duplicate GPU a"),
        (
            [{"gpu": "a", "slices": slices(("2g.20gb", 6))}],
            "cannot start at 6; allowed starts: 0, 2, 4",
        ),
        ([{"gpu": "a", "slices": slices(("3g.40gb", 0), ("1g.10gb", 3))}], "overlaps"),
        ([{"gpu": "a", "slices": slices(("1g.5gb", 0))}], "has no profile 1g.5gb"),
        ([{"gpu": "a\x1b"}], "a name is 'a\\x1b'; remove"),
        ([{"gpu": "a\ud800"}], "is not JSON"),
        ([{"gpu": "a", "slices": slices(("1g.10gb", 10**4000))}], "cannot start at 1000"),
    ],
)
def test_a_wrong_layout_is_a_sentence_with_its_fix(
    files: PlanFiles, current: object, fix: str
) -> None:
    with pytest.raises(CommandError) as error:
        files.plan(*files.current(current))
    assert fix in str(error.value)


def test_missing_files_and_unknown_gpus_are_sentences(files: PlanFiles) -> None:
    with pytest.raises(CommandError, match=r"try .*A100-80GB"):
        files.plan(gpu="A100-64GB")
    for wrong in ("{", '[{"start": ' + "9" * 5000 + "}]", "[" * 5000):
        files.write("current.json", wrong)
        with pytest.raises(CommandError, match="is not JSON"):
            files.plan("--current", str(files.folder / "current.json"))
    (files.folder / "demand.csv").write_bytes(b"service,demand\n\xff\xfe\x00")
    with pytest.raises(CommandError, match="line 2: not UTF-8"):
        files.plan()
    (files.folder / "demand.csv").unlink()
    with pytest.raises(CommandError, match="No such file"):
        files.plan()


def test_the_page_shows_what_the_command_says(tmp_path: Path) -> None:
    """Type in the page as it is, in a shell with the `tessera` under test."""
    program = tmp_path / "bin" / "tessera"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m tessera.cli.main "$@"\n')
    program.chmod(0o755)
    tried = 0
    for step in read_page_steps(page_of("plan-layouts")):
        if isinstance(step, File):
            (tmp_path / step.name).write_text(step.text, encoding="utf-8")
        elif isinstance(step, Command):
            done = subprocess.run(
                ["sh", "-ec", step.text],
                cwd=tmp_path,
                env={"PATH": f"{program.parent}:/usr/bin:/bin", "PYTHONPATH": ":".join(sys.path)},
                capture_output=True,
                text=True,
                check=False,
            )
            assert done.returncode == 0, done.stderr
            tried += 1
            if step.output is not None:
                assert done.stdout.strip() == step.output.strip()
    assert tried >= 2


def test_in_the_picture_no_two_services_share_a_fill_and_cut_names_have_a_title() -> None:
    names = [f"service-{number:03}-with-a-long-name" for number in range(100)]
    tiles = tuple(
        MosaicTile(start=start, width=1, profile="1g.10gb", service=name)
        for start, name in enumerate(names)
    )
    picture = svg_document([("", [Strip(name=f"node-{'a' * 40}", tiles=tiles)])])
    root = ElementTree.fromstring(picture)  # noqa: S314 - it is our own
    patterns = {}
    for pattern in root.iter(f"{SVG}pattern"):
        color, stripe = (shape.attrib for shape in pattern)
        angle, name = pattern.attrib["patternTransform"], f"url(#{pattern.attrib.pop('id')})"
        patterns[name] = (color["fill"], angle, stripe["width"], color["width"])
    fills = {}
    for tile in root.iter(f"{SVG}g"):
        service = str(tile.findtext(f"{SVG}title")).split()[1]
        fill = tile.find(f"{SVG}rect").attrib["fill"]  # type: ignore[union-attr]
        fills[service] = patterns.get(fill, fill)
        assert tile.findtext(f"{SVG}text/{SVG}title") == f"1g {service}"
    assert list(fills) == names
    assert len(set(fills.values())) == len(names)
    assert f"node-{'a' * 40}" in [title.text for title in root.iter(f"{SVG}title")]
