"""Runs the tests of `make test` or `make test-e2e`, and `sum` prints one closing line for both.

A part ends with `BENCH {json}`: processor seconds of all processes, wall time, and the load of the
machine when it began. Further options go to pytest.
"""

import json
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

from tests.parts import E2E, OUTCOMES, ROOT, TEST, record

PYTEST = str(Path(sys.executable).with_name("pytest"))
# Most tests of a world wait for something.
WORKERS = {TEST: 3, E2E: 4}
FOLDERS = {TEST: "tests", E2E: "e2e"}


def main() -> int:
    """Exit as pytest does."""
    part, options = sys.argv[1], sys.argv[2:]
    if part == "sum":
        print(closing_line([_last_run(part) for part in (TEST, E2E)]))
        return 0
    load, begun = os.getloadavg()[0], time.monotonic()
    record(part).unlink(missing_ok=True)
    # Tests find their modules by themselves, and their children must not find more.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    if not any(ROOT.glob(f"{FOLDERS[part]}/*/__pycache__/*-pytest-*.pyc")):
        # One process rewrites the assertions of a fresh clone for all workers.
        collect = [PYTEST, "-q", "-p", "no:xdist", "--collect-only", "--part", part]
        subprocess.run(collect, env=environment, stdout=subprocess.DEVNULL, check=False)
    workers = ["-n", str(WORKERS[part]), "--dist", "loadscope", "--no-loadscope-reorder"]
    command = [PYTEST, *workers, "--part", part, *options]
    tests = subprocess.run(command, env=environment, check=False)
    times = os.times()
    figures = {
        "cpu_seconds": round(times.children_user + times.children_system),
        "wall_seconds": round(time.monotonic() - begun),
        "load": round(load, 2),
    }
    print(f"BENCH {json.dumps(figures)}")
    return tests.returncode


def _last_run(part: str) -> Mapping[str, Any]:
    try:
        run: Mapping[str, Any] = json.loads(record(part).read_text(encoding="utf-8"))
    except FileNotFoundError:
        sys.exit(f"run_tests: make {part} did not come to its end")
    return run


def closing_line(runs: Sequence[Mapping[str, Any]]) -> str:
    """Return the line with which pytest would end one run of all."""
    outcomes = Counter[str]()
    for run in runs:
        outcomes.update(run["outcomes"])
    counts = ", ".join(f"{outcomes[name]} {name}" for name in OUTCOMES if outcomes[name])
    seconds = sum(run["seconds"] for run in runs)
    return f" {counts} in {seconds:.2f}s ({timedelta(seconds=int(seconds))}) ".center(80, "=")


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
