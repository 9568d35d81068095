"""Makes `.venv` from the pinned requirements. Standard library only: nothing is installed yet.

The packages are installed once, into the user's cache; each checkout gets links to them. With
`--world` the programs of the simulated cluster are built beside that: pip keeps one core busy.
Whatever ends it, the next run goes on with what is complete.
"""

import fcntl
import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
import time
import venv
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "e2e"))

from world.errors import AGAIN, advice

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
MADE = VENV / "made"
# tessera and tessera-lab.
PACKAGES = (ROOT, ROOT / "operator" / "tessera_lab")
# The check of the world says whether Go is new enough.
TOOLS = {"go": "Go from https://go.dev/dl/", "git": "git", "make": "make"}


def main() -> None:
    """Create the environment, unless another process just did; every missing piece is named."""
    _check_requirements()
    try:
        _run()
    except KeyboardInterrupt:
        sys.exit(f"setup: interrupted: {AGAIN}")
    except (OSError, subprocess.CalledProcessError) as error:
        sys.exit(f"setup: {described(error)}")


def described(error: OSError | subprocess.CalledProcessError) -> str:
    """Return what failed, and what to do then."""
    output = getattr(error, "output", None) or b""
    return f"{error}: {advice(f'{error} {output!r}')}"


def _run() -> None:
    folder = os.open(ROOT, os.O_RDONLY)
    fcntl.flock(folder, fcntl.LOCK_EX)  # until this process ends
    if not _is_made():
        with _programs_built(wanted="--world" in sys.argv[1:]):
            _make()
        MADE.touch()


def _is_made() -> bool:
    """Whether the environment is newer than what it is made from, as make compares them."""
    sources = (ROOT / "requirements" / "dev.txt", Path(__file__))
    return MADE.exists() and all(
        MADE.stat().st_mtime >= source.stat().st_mtime for source in sources
    )


@contextmanager
def _programs_built(*, wanted: bool) -> Iterator[None]:
    """Build what every world runs while the block goes on, and wait for it."""
    if not wanted:
        yield
        return
    environment = os.environ | {"PYTHONPATH": str(ROOT / "e2e")}
    with subprocess.Popen([sys.executable, "-m", "world.binaries"], env=environment) as build:
        try:
            yield
        except BaseException:
            build.terminate()
            raise
        if build.wait():
            sys.exit(build.returncode)


def _make() -> None:
    begun = time.monotonic()
    print("setup: making .venv", file=sys.stderr)
    packages = _pinned_packages()
    shutil.rmtree(VENV, ignore_errors=True)
    shutil.copytree(packages, VENV, symlinks=True, copy_function=_link)
    move_programs(VENV / "bin", packages, VENV)
    editable = [word for folder in PACKAGES for word in ("--editable", str(folder))]
    _install(VENV, ["--no-deps", "--no-build-isolation", *editable])
    print(f"setup: done in {time.monotonic() - begun:.0f} s", file=sys.stderr)


def _pinned_packages() -> Path:
    """Return an environment of the user's cache, which every checkout with these pins links to."""
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    pins = (ROOT / "requirements" / "dev.txt").read_bytes()
    digest = hashlib.sha256(pins + sys.version.encode()).hexdigest()[:12]
    folder = base / "tessera" / "environments" / f"dev-{digest}"
    folder.parent.mkdir(parents=True, exist_ok=True)
    with (folder.parent / "dev.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not folder.exists():
            partial = folder.with_suffix(".partial")
            venv.create(partial, with_pip=True, clear=True, symlinks=True)
            print("setup: installing the pinned requirements", file=sys.stderr)
            _install(partial, ["--require-hashes", "-r", str(ROOT / "requirements" / "dev.txt")])
            move_programs(partial / "bin", partial, folder)
            partial.rename(folder)
    return folder


def move_programs(programs: Path, before: Path, after: Path) -> None:
    """Name an environment in its programs by its new path; each becomes a file of its own."""
    for program in programs.iterdir():
        if program.is_symlink() or not program.is_file():
            continue
        if bytes(before) in (content := program.read_bytes()):
            mode = program.stat().st_mode
            program.unlink()
            program.write_bytes(content.replace(bytes(before), bytes(after)))
            program.chmod(mode)


def _link(source: str, target: str) -> None:
    """Give a file a second name where the file system allows it, else copy it."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def _install(environment: Path, arguments: list[str]) -> None:
    pip = [str(environment / "bin" / "python"), "-m", "pip", "install", "--quiet", "--no-input"]
    command = [*pip, "--disable-pip-version-check", *arguments]
    done = subprocess.run(
        command, check=False, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    if done.returncode:
        sys.exit(f"{done.stdout[-2000:]}\nsetup: pip failed: {advice(done.stdout)}")


def _check_requirements() -> None:
    """Name all that is missing; make itself asks whether this Python is new enough."""
    missing = [text for tool, text in TOOLS.items() if shutil.which(tool) is None]
    if not sys.platform.startswith("linux"):
        missing.append("Linux (pods get loopback addresses, which only Linux has)")
    if importlib.util.find_spec("ensurepip") is None:
        missing.append("ensurepip of this Python (Debian: apt-get install python3-venv)")
    if missing:
        sys.exit(f"setup: install what is missing, and try again: {', '.join(missing)}")


if __name__ == "__main__":
    main()
