"""Makes `.venv` from the pinned requirements. Standard library only: nothing is installed yet."""

import fcntl
import os
import shutil
import subprocess
import sys
import time
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
MADE = VENV / "made"
# tessera and tessera-lab.
PACKAGES = (ROOT, ROOT / "operator" / "tessera_lab")
OLDEST = (3, 11)


def main() -> None:
    """Create the environment, unless another process just did; every missing piece is named."""
    _check_requirements()
    folder = os.open(ROOT, os.O_RDONLY)
    fcntl.flock(folder, fcntl.LOCK_EX)  # until this process ends
    if not _is_made():
        _make()
        MADE.touch()


def _is_made() -> bool:
    """Whether the environment is newer than what it is made from, as make compares them."""
    sources = (ROOT / "requirements" / "dev.txt", Path(__file__))
    return MADE.exists() and all(
        MADE.stat().st_mtime >= source.stat().st_mtime for source in sources
    )


def _make() -> None:
    begun = time.monotonic()
    print("setup: making .venv", file=sys.stderr)
    try:
        venv.create(VENV, with_pip=True, clear=True, symlinks=True)
    except subprocess.CalledProcessError:
        sys.exit("setup: this Python has no ensurepip; on Debian: apt-get install python3-venv")
    print("setup: installing the pinned requirements", file=sys.stderr)
    pip = [str(VENV / "bin" / "python"), "-m", "pip", "install", "--quiet", "--no-input"]
    pip.append("--disable-pip-version-check")
    _run([*pip, "--require-hashes", "-r", str(ROOT / "requirements" / "dev.txt")])
    packages = [word for folder in PACKAGES for word in ("--editable", str(folder))]
    _run([*pip, "--no-deps", "--no-build-isolation", *packages])
    print(f"setup: done in {time.monotonic() - begun:.0f} s", file=sys.stderr)


def _check_requirements() -> None:
    missing = []
    if sys.version_info < OLDEST:
        missing.append(f"Python {OLDEST[0]}.{OLDEST[1]}+ (this is {sys.version.split()[0]})")
    if not sys.platform.startswith("linux"):
        missing.append("Linux (pods get loopback addresses, which only Linux has)")
    missing += [tool for tool in ("go", "git", "make") if shutil.which(tool) is None]
    if missing:
        sys.exit(f"setup: missing: {', '.join(missing)}")


def _run(command: list[str]) -> None:
    done = subprocess.run(command, check=False)
    if done.returncode:
        sys.exit(f"setup: failed ({done.returncode}): {' '.join(command)}")


if __name__ == "__main__":
    main()
