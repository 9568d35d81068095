"""Runs the tests of a push beside the checks that are no tests, and says what both took.

The last line is `BENCH {json}`: processor seconds of all processes, wall time, and the load of the
machine when it began. Options go to pytest.
"""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PYTEST = str(Path(sys.executable).with_name("pytest"))
CHECKS = ("lint", "lint-images", "docs")
# Most tests of a world wait for something.
WORKERS = 6


def main() -> int:
    """Exit with the failure of the tests, else with that of the checks."""
    load, begun = os.getloadavg()[0], time.monotonic()
    built = subprocess.run([sys.executable, "-m", "world", "build"], check=False)
    if built.returncode:
        return built.returncode
    # Tests find their modules by themselves, and their children must not find more.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    log = ROOT / ".bench" / "checks.log"
    log.parent.mkdir(exist_ok=True)
    with log.open("wb") as output:
        checks = subprocess.Popen(
            ["make", "--no-print-directory", *CHECKS], stdout=output, stderr=output
        )
        # One process rewrites assertions for all workers.
        collect = [PYTEST, "-q", "-p", "no:xdist", "--collect-only", "e2e", "tests"]
        subprocess.run(collect, env=environment, stdout=subprocess.DEVNULL, check=False)
        tests = subprocess.run(
            [
                *(PYTEST, "-n", str(WORKERS), "--dist", "loadscope", "--no-loadscope-reorder"),
                *("e2e", "tests", *sys.argv[1:]),
            ],
            env=environment,
            check=False,
        )
        checked = checks.wait()
    print(log.read_text(encoding="utf-8"), flush=True)
    times = os.times()
    figures = {
        "cpu_seconds": round(times.children_user + times.children_system),
        "wall_seconds": round(time.monotonic() - begun),
        "load": round(load, 2),
    }
    print(f"BENCH {json.dumps(figures)}")
    return tests.returncode or checked


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
