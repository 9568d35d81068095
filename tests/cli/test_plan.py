"""`tessera plan`: its files, its answers, its page."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from docs_tests.blocks import Command, File
from docs_tests.pages import page_of, steps_of
from mig_fleets import fleet
from tessera.cli.errors import CommandError
from tessera.cli.mosaic.drawing import gpu_tiles, strip_lines
from tessera.cli.output import Output
from tessera.cli.parser import build_parser
from tessera.cli.plan.command import UNMET, run
from tests.mig_builders import A100, a_gpu

DEMAND = "service,demand,floor\nchat,700,1\nsearch,300,2\n"
THROUGHPUT = """\
service,profile,throughput
chat,3g.40gb,350
chat,full,800
search,1g.10gb,160
search,2g.20gb,300
"""


class Files:
    """A folder with the tables, and the command over them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.write("demand.csv", DEMAND)
        self.write("throughput.csv", THROUGHPUT)

    def write(self, name: str, text: str) -> None:
        (self.folder / name).write_text(text, encoding="utf-8")

    def plan(self, *more: str, gpu: str = "A100-80GB") -> Output:
        words = ["plan", "--gpu", gpu, *more]
        for option in ("demand", "throughput"):
            words += [f"--{option}", str(self.folder / f"{option}.csv")]
        return run(build_parser().parse_args(words))

    def fields(self, *more: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.plan("--json", *more).text)
        return found

    def current(self, layouts: object) -> tuple[str, str]:
        self.write("current.json", json.dumps(layouts))
        return "--current", str(self.folder / "current.json")


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return Files(tmp_path)


def test_the_plan_has_its_gpus_its_bound_its_layouts_and_no_moves(files: Files) -> None:
    got = files.fields()
    assert (got["gpus"], got["lowerBound"], got["gap"], got["moves"]) == (2, 2, 0.0, [])
    seats = sorted(
        (one["service"], one["profile"]) for gpu in got["layouts"] for one in gpu["slices"]
    )
    assert seats == [("chat", "3g.40gb")] * 2 + [("search", "1g.10gb")] * 2


def test_a_plan_goes_in_again_and_nothing_changes(files: Files) -> None:
    planned = files.fields()
    for current in (planned, planned["layouts"]):
        got = files.fields(*files.current(current))
        assert got == planned
    assert files.plan(*files.current(planned)).text.endswith("Nothing changes.\n")


def test_what_must_move_is_told_with_both_its_places(files: Files) -> None:
    files.write("demand.csv", "service,demand\nchat,350\nsearch,300\n")
    there = [
        {"gpu": "b", "slices": [{"profile": "3g.40gb", "start": 0, "service": "chat"}]},
        {"gpu": "c", "slices": [{"profile": "2g.20gb", "start": 0, "service": "search"}]},
    ]
    got = files.fields(*files.current(there))
    assert got["gpus"] == 1
    [move] = got["moves"]
    assert {move["from"]["gpu"], move["to"]["gpu"]} == {"b", "c"}
    assert [step["do"] for step in got["steps"]] == ["create", "start", "stop"]
    told = files.plan(*files.current(there)).text
    assert "1 replica moved:" in told
    kept = files.fields(*files.current(there), "--moves-per-gpu", "0.5")
    assert (kept["gpus"], kept["lowerBound"], kept["moves"]) == (2, 1, [])
    with pytest.raises(CommandError, match="write a number from 0"):
        files.plan("--moves-per-gpu", "-1")
    assert "Steps:\n  1. create " in told


def test_the_mosaic_shows_slices_holes_and_what_is_stranded() -> None:
    small = [f"1g.10gb@{start}=chat" for start in range(7)]
    lines = list(
        strip_lines(A100, (a_gpu("a", *small), a_gpu("b", "3g.40gb@4"), a_gpu("c", "full@0=x")))
    )
    assert len({len(line) for line in lines}) == 1
    assert lines[0].endswith("|1g chat    |///////////|")
    assert "3g - " in lines[1]
    assert "/" not in lines[1] + lines[2]
    wide = gpu_tiles(A100, a_gpu("d", "1g.20gb@0=chat", "3g.40gb@4=chat"))
    assert [(tile.start, tile.width, tile.stranded) for tile in wide] == [
        (0, 2, False),
        (2, 2, False),
        (4, 4, False),
    ]


def test_the_picture_is_xml_with_both_layouts_and_names_that_need_escaping(files: Files) -> None:
    files.write("demand.csv", "service,demand\nchat,350\n")
    there = [{"gpu": "<b>", "slices": [{"profile": "3g.40gb", "start": 0, "service": "a&b"}]}]
    picture = files.folder / "layouts.svg"
    files.plan(*files.current(there), "--svg", str(picture))
    root = ElementTree.fromstring(picture.read_text("utf-8"))  # noqa: S314 - it is our own
    told = [element.text for element in root.iter("{http://www.w3.org/2000/svg}title")]
    assert {"3g.40gb a&b @0", "3g.40gb chat @0", "free"} <= set(told)
    with pytest.raises(CommandError, match="cannot be written"):
        files.plan("--svg", str(files.folder))


def test_who_fits_nowhere_is_named_with_the_code_3_and_the_rest_is_planned(files: Files) -> None:
    files.write("demand.csv", f"{DEMAND}giant,5,0\nhuge,1,1\n")
    told = files.plan("--json")
    got = json.loads(told.text)
    assert (told.exit_code, got["unmet"], got["gpus"]) == (UNMET, ["giant", "huge"], 2)
    assert "giant cannot be served" in files.plan().text


def test_500_services_are_planned_by_the_command(files: Files) -> None:
    asked = fleet(500, 4, [A100])
    rows = [f"{one.name},{one.demand},{one.min_replicas}" for one in asked]
    files.write("demand.csv", "\n".join(["service,demand,floor", *rows]))
    rows = [
        f"{one.name},{kind.profile},{speed}"
        for one in asked
        for kind, speed in one.throughput.items()
    ]
    files.write("throughput.csv", "\n".join(["service,profile,throughput", *rows]))
    got = files.fields()
    assert got["gpus"] == len(got["layouts"]) > 900
    assert got["gap"] <= 0.005


def test_columns_stand_in_any_order_with_others_and_the_rows_as_well(files: Files) -> None:
    planned = files.fields()
    files.write("demand.csv", "\ufeffFLOOR, demand ,service,flavor\n\n2,300,search,a\n,700,chat\n")
    assert files.fields() == planned


@pytest.mark.parametrize("gpu", ["A100-80GB", "a100-80gb", "NVIDIA-A100-SXM4-80GB"])
def test_a_gpu_goes_by_its_name_or_that_of_its_product(files: Files, gpu: str) -> None:
    assert files.plan(gpu=gpu).text.startswith("2x A100-80GB; fewer are not possible.")


def test_a_gpu_goes_by_the_beginning_that_it_alone_has(files: Files) -> None:
    with pytest.raises(CommandError, match="H200-141GB has no profile"):
        files.plan(gpu="H200")
    with pytest.raises(CommandError, match="is ambiguous; choose one of A100-40GB, A100-80GB"):
        files.plan(gpu="A100")


@pytest.mark.parametrize(
    ("demand", "fix"),
    [
        ("", "has no column service, demand; its first line must name service,demand,[floor]"),
        ("service,demand\n", "has no services; write one row for each"),
        ("service,demand\nchat,many\n", "line 2: demand is many; write a number"),
        ("service,demand\nchat,-1\n", "line 2: demand is -1; write a number"),
        ("service,demand\nchat,nan\n", "line 2: demand is nan; write a number"),
        ("service,demand\nchat,1e11\n", "write demand and throughput in the same unit"),
        ("service,demand\nchat,inf\n", "line 2: demand is inf; write a number"),
        ("service,demand\nchat,\n", "line 2: demand is empty"),
        ("service,demand,floor\nchat,1,1.5\n", "floor is 1.5; write a whole number"),
        ("service,demand\nchat,1\nchat,2\n", "line 3: duplicate row for chat"),
        ("service,demand\nchat,1,2\n", "line 2: 3 cells for 2 columns"),
        ('service,demand\n"chat,1\n', "line 2: not CSV: unexpected end"),
        ("service,demand\n\nchat,1_000\n", "line 3: demand is 1_000; write a number"),
        ("service,demand\nchat,\u0661\n", "write a number"),
        ("service,demand,floor\nchat,1," + "9" * 5000, "999...; write a whole number"),
        ("service,demand\nchat\x1b[2J,1\n", "service is 'chat\\x1b[2J'; remove"),
        ("service,demand,demand\nchat,1,2\n", "has the column demand twice"),
        ("service,demand,floors\nchat,1,2\n", "has the column floors; write floor"),
        ('service,demand\n"a\nb",1\n', "line 2: service is 'a\\nb'; remove"),
        ("service,demand\na\x0c,1\nb,x\n", "line 3: demand is x"),
    ],
)
def test_a_wrong_demand_is_a_sentence_with_its_fix(files: Files, demand: str, fix: str) -> None:
    files.write("demand.csv", demand)
    with pytest.raises(CommandError) as told:
        files.plan()
    assert fix in str(told.value)


@pytest.mark.parametrize(
    ("row", "fix"),
    [
        ("chat,9g.90gb,1", "A100-80GB has no profile 9g.90gb; supported: 1g.10gb"),
        ("chat,1g.10gb,x", "throughput is x; write a number"),
        ("chat,full,2", "duplicate row for chat on full"),
        ("chat,3g.39gb,2", "duplicate row for chat on 3g.39gb"),
    ],
)
def test_a_wrong_throughput_is_a_sentence_with_its_fix(files: Files, row: str, fix: str) -> None:
    files.write("throughput.csv", f"{THROUGHPUT}{row}\n")
    with pytest.raises(CommandError) as told:
        files.plan()
    assert fix in str(told.value)


def slices(*found: tuple[str, int]) -> list[dict[str, object]]:
    return [{"profile": profile, "start": start, "service": "chat"} for profile, start in found]


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
def test_a_wrong_layout_is_a_sentence_with_its_fix(files: Files, current: object, fix: str) -> None:
    with pytest.raises(CommandError) as told:
        files.plan(*files.current(current))
    assert fix in str(told.value)


def test_missing_files_and_unknown_gpus_are_sentences(files: Files) -> None:
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
    """Typed in as it stands, in a shell whose `tessera` is this one."""
    program = tmp_path / "bin" / "tessera"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m tessera.cli.main "$@"\n')
    program.chmod(0o755)
    tried = 0
    for step in steps_of(page_of("plan-layouts")):
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
