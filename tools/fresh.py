"""Clones HEAD and runs both README commands as on a fresh machine.

Empty home and cache, and nothing on PATH but python3, go, make, git and the plain userland. With
LOAD=6 as many processes compute all the time beside them.
"""

import argparse
import os
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


def main() -> None:
    """Run both commands cold, then both warm, and say how long each took."""
    parser = argparse.ArgumentParser(prog="fresh", description=__doc__)
    parser.add_argument("--load", type=int, default=0, help="processes that compute beside them")
    with (
        tempfile.TemporaryDirectory(prefix="tessera-fresh-", dir=_temporary_folder()) as folder,
        _busy(parser.parse_args().load),
    ):
        work = Path(folder)
        clone, home, path = work / "tessera", work / "home", work / "bin"
        subprocess.run(["git", "clone", "--quiet", str(ROOT), str(clone)], check=True)
        home.mkdir()
        _link_tools(path)
        environment = {"HOME": str(home), "PATH": str(path), "LANG": "C.UTF-8"}
        environment |= {name: os.environ[name] for name in INHERITED if name in os.environ}
        lines = [
            _timed(command, clone, environment, state)
            for state in ("cold", "warm")
            for command in COMMANDS
        ]
        cache = subprocess.run(
            ["du", "-sm", str(home / ".cache"), str(clone / ".venv")],
            check=False,
            capture_output=True,
            text=True,
        ).stdout
        print("\n".join(["fresh:", *lines, "MiB:", cache]))
        # Go makes its module cache read-only.
        subprocess.run(["chmod", "-R", "u+w", folder], check=False)


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


def _temporary_folder() -> str | None:
    return os.environ.get("TMPDIR")


def _link_tools(path: Path) -> None:
    path.mkdir()
    for name in (*ASSUMED, *USERLAND):
        executable = sys.executable if name == "python3" else shutil.which(name)
        if executable is None:
            sys.exit(f"fresh: {name} is not on this machine")
        # An interpreter behind a launcher script must be linked itself.
        (path / name).symlink_to(Path(executable).resolve() if name in ASSUMED else executable)


def _timed(command: str, clone: Path, environment: dict[str, str], state: str) -> str:
    print(f"fresh: {command} ({state})", flush=True)
    begun = time.monotonic()
    done = subprocess.run(
        command.split(),
        cwd=clone,
        env=environment,
        stdin=subprocess.DEVNULL,
        check=False,
    )
    if done.returncode:
        sys.exit(f"fresh: {command} ({state}) failed with {done.returncode}")
    return f"  {command} ({state}): {time.monotonic() - begun:.0f} s"


if __name__ == "__main__":
    main()
