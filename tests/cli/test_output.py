"""What commands write for other programs."""

import ast
import csv
import io
from pathlib import Path

import pytest

import tessera
from tessera.cli.output import Output


@pytest.mark.parametrize(
    "text", ["=1+1", "+x", "-x", "@x", "\tx", "=HYPERLINK(a)", "-1+2", "\uff1d1"]
)
def test_no_cell_is_a_formula(text: str) -> None:
    written = Output.of_csv(("tag", "cost"), [{"tag": text, "cost": 1}]).text
    (row,) = csv.DictReader(io.StringIO(written, newline=""))
    assert row == {"tag": f"'{text}", "cost": "1"}


@pytest.mark.parametrize("cell", ["chat", "", "-1.50", "+3", "-1e-9", -2, None])
def test_other_cells_stay_as_they_are(cell: object) -> None:
    (row,) = csv.reader(
        io.StringIO(Output.of_csv(("cell", "x"), [{"cell": cell, "x": ""}]).text.partition("\n")[2])
    )
    assert row[0] == ("" if cell is None else str(cell))


def test_no_cell_begins_a_row() -> None:
    written = Output.of_csv(("tag", "cost"), [{"tag": "x\r=1+1", "cost": 1}]).text
    assert written == "tag,cost\nx =1+1,1\n"


def test_csv_is_written_in_one_place() -> None:
    root = Path(tessera.__file__).parent.parent
    writers = {
        str(file.relative_to(root))
        for file in root.rglob("*.py")
        for node in ast.walk(ast.parse(file.read_text()))
        if (
            isinstance(node, ast.Attribute)
            and node.attr in ("writer", "DictWriter")
            and isinstance(node.value, ast.Name)
            and node.value.id == "csv"
        )
        or (isinstance(node, ast.ImportFrom) and node.module == "csv")
    }
    assert writers == {"tessera/cli/output.py"}
