"""Each benchmark of the Makefile runs to its end in its short form, and prints all its figures."""

import json
import re
import subprocess
from collections.abc import Mapping

import pytest
from _pytest.mark import ParameterSet

from tests.parts import ROOT

pytestmark = pytest.mark.long

MAKEFILE = (ROOT / "Makefile").read_text("utf-8")
TARGETS = re.findall(r"^(bench-[a-z-]+):", MAKEFILE, re.MULTILINE)
# Benchmarks with a part in a world, which waits for minutes, and the option that leaves it out; all
# of `bench-control` is in one.
WORLDS: Mapping[str, str | None] = {
    "bench-batch": "--without-world",
    "bench-control": None,
    "bench-scaling": "--without-world",
}
# The short forms that take more than 10 s of processor time: beside them worlds are starved.
LONG = {
    *("bench-affinity", "bench-batch", "bench-engine", "bench-floors", "bench-gateway"),
    *("bench-hostile", "bench-mig", "bench-routes", "bench-scale", "bench-scenarios"),
    "bench-starts",
}
FIGURES = ROOT / "docs" / "figures"


def short_forms() -> list[ParameterSet]:
    """Return the target and the options of each; long forms, and those with a world, are `full`."""
    full = pytest.mark.full
    forms = [
        pytest.param(target, options, id=target, marks=full if target in LONG else ())
        for target in TARGETS
        if (options := WORLDS.get(target, "")) is not None
    ]
    return forms + [pytest.param(each, "", id=f"{each}-world", marks=full) for each in WORLDS]


@pytest.mark.parametrize(("target", "options"), short_forms())
def test_a_benchmark_runs_to_its_end_and_prints_its_figures(target: str, options: str) -> None:
    # Worlds beside it wait for their engines, which answer probes within a second.
    command = ["nice", "-n", "15", "make", "--silent", target, f"OPTIONS=--short {options}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-4000:] + done.stdout[-2000:]
    word, _, text = done.stdout.splitlines()[-1].partition(" ")
    assert word == "BENCH"
    figures = json.loads(text)
    assert figures
    assert [name for name, value in figures.items() if isinstance(value, dict)] == []
    assert committed_names(target) <= figures.keys()


def committed_names(target: str) -> set[str]:
    """Return the names of the figures of the whole form, where the last ones are committed."""
    path = FIGURES / f"{target.removeprefix('bench-')}.json"
    figures = json.loads(path.read_text("utf-8")) if path.exists() else {}
    # Those of traces that are not here.
    return set() if "figures" in figures else set(figures)


def test_each_benchmark_is_named_by_its_target() -> None:
    assert re.findall(r"^\.PHONY: (bench-\S+)", MAKEFILE, re.MULTILINE) == TARGETS
    assert WORLDS.keys() | LONG <= set(TARGETS)
