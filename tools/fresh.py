"""Clones HEAD and runs both README commands as on a fresh machine, and says what each took.

Each has a clone, a home and a cache of its own, empty at first, and nothing on PATH but python3,
go, make, git and the plain userland. With LOAD=6 as many processes compute beside them all the
time. Network is what came to this machine meanwhile, also for others.
"""

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
ASSUMED = ("python3", "go", "make", "git")
USERLAND = (
    *("awk", "basename", "bash", "cat", "chmod", "cp", "cut", "date", "dirname", "env", "expr"),
    *("find", "grep", "head", "ln", "ls", "mkdir", "mktemp", "mv", "printf", "ps", "pwd", "rm"),
    *("sed", "seq", "sh", "sleep", "sort", "tail", "tar", "tee", "touch", "tr", "true", "uname"),
    *("uniq", "wc", "which", "xargs"),
)
COMMANDS = ("make demo", "make test")
# How this machine reaches its package registries; a fresh machine of its kind has the same.
INHERITED = (
    "SSL_CERT_FILE",
    "PIP_CERT",
    "REQUESTS_CA_BUNDLE",
    "GOPROXY",
    "GOFLAGS",
    "PIP_INDEX_URL",
)


# What a command fills below its home: programs and environments, and the caches of Go and pip.
CACHES = {
    "tessera": ".cache/tessera",
    "go": "go",
    "go_build": ".cache/go-build",
    "pip": ".cache/pip",
}


def main() -> None:
    """Run each command cold and then warm."""
    parser = argparse.ArgumentParser(prog="fresh", description=__doc__)
    parser.add_argument("--load", type=int, default=0, help="processes that compute beside them")
    parser.add_argument("--only", choices=COMMANDS, help="one of the commands")
    options = parser.parse_args()
    figures: dict[str, float] = {"load": options.load}
    for command in (options.only,) if options.only else COMMANDS:
        with (
            tempfile.TemporaryDirectory(prefix="tessera-fresh-") as folder,
            _busy(options.load),
        ):
            figures |= _run_fresh(command, Path(folder))
            # Go makes its module cache read-only.
            subprocess.run(["chmod", "-R", "u+w", folder], check=False)
    print(f"BENCH {json.dumps(figures)}")


def _run_fresh(command: str, work: Path) -> dict[str, float]:
    clone, home, path = work / "tessera", work / "home", work / "bin"
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(clone)], check=True)
    home.mkdir()
    _link_tools(path)
    environment = {"HOME": str(home), "PATH": str(path), "LANG": "C.UTF-8"}
    environment |= {name: os.environ[name] for name in INHERITED if name in os.environ}
    figures = {}
    for state in ("cold", "warm"):
        print(f"fresh: {command} ({state})", flush=True)
        for what, value in _measured(command, clone, environment).items():
            figures[f"{command.replace(' ', '_')}_{state}_{what}"] = value
    for name, folder in {
        **{k: home / v for k, v in CACHES.items()},
        "venv": clone / ".venv",
    }.items():
        if folder.exists():
            figures[f"{command.replace(' ', '_')}_{name}_mib"] = _mib(folder)
    return figures


@contextmanager
def _busy(processes: int) -> Iterator[None]:
    command = [sys.executable, "-c", "while True: pass"]
    running = [subprocess.Popen(command) for _ in range(processes)]
    try:
        yield
    finally:
        for process in running:
            process.kill()
            process.wait()


def _link_tools(path: Path) -> None:
    path.mkdir()
    for name in (*ASSUMED, *USERLAND):
        executable = sys.executable if name == "python3" else shutil.which(name)
        if executable is None:
            sys.exit(f"fresh: {name} is not on this machine")
        # An interpreter behind a launcher script must be linked itself.
        (path / name).symlink_to(Path(executable).resolve() if name in ASSUMED else executable)


def _measured(command: str, clone: Path, environment: dict[str, str]) -> dict[str, float]:
    """Run a command; return its seconds of wall and of CPU, and the MiB that came meanwhile."""
    before, begun, received = _cpu_seconds(), time.monotonic(), _received_mib()
    done = subprocess.run(
        command.split(), cwd=clone, env=environment, stdin=subprocess.DEVNULL, check=False
    )
    if done.returncode:
        sys.exit(f"fresh: {command} failed with {done.returncode}")
    return {
        "seconds": round(time.monotonic() - begun),
        "cpu_seconds": round(_cpu_seconds() - before),
        "network_mib": round(_received_mib() - received),
    }


def _cpu_seconds() -> float:
    """Return the CPU time of all children that have ended."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def _received_mib() -> float:
    """Return what this machine has received on all interfaces but loopback."""
    lines = Path("/proc/net/dev").read_text(encoding="ascii").splitlines()[2:]
    rows = {name.strip(): row.split() for name, _, row in (line.partition(":") for line in lines)}
    return sum(int(row[0]) for name, row in rows.items() if name != "lo") / 2**20


def _mib(folder: Path) -> float:
    done = subprocess.run(["du", "-sm", str(folder)], check=True, capture_output=True, text=True)
    return float(done.stdout.split()[0])


if __name__ == "__main__":
    main()
