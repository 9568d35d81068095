"""Python environments beside `.venv`: in the user's cache, made once for every version of pins."""

import hashlib
import re
import subprocess
import sys
import tarfile
import time
import venv
from collections.abc import Callable
from pathlib import Path

from setup import move_programs
from world.errors import advice
from world.folders import cache, make_once

ROOT = Path(__file__).resolve().parent.parent


def environment(
    name: str,
    *,
    with_dependencies: bool = True,
    finish: Callable[[Path], None] = lambda _: None,
) -> Path:
    """The folder of the environment of `requirements/<name>.txt`; made if missing.

    `finish` completes a new one before anybody sees it.
    """
    pins = ROOT / "requirements" / f"{name}.txt"
    digest = hashlib.sha256(pins.read_bytes()).hexdigest()[:12]
    folder = cache() / "environments" / f"{name}-{digest}"

    def make(partial: Path) -> None:
        begun = time.monotonic()
        say(f"{name}: making {folder} (once)")
        venv.create(partial, with_pip=True)
        pip = [str(partial / "bin" / "python"), "-m", "pip", "install", "--no-input", "--quiet"]
        pip += ["--disable-pip-version-check", "--require-hashes", "-r", str(pins)]
        done = subprocess.run(
            pip + ([] if with_dependencies else ["--no-deps"]),
            check=False,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        if done.returncode:
            say(done.stdout[-2000:])
            sys.exit(f"{name}: installing {pins.name} failed: {advice(done.stdout)}")
        move_programs(partial / "bin", partial, folder)
        finish(partial)
        say(f"{name}: made in {time.monotonic() - begun:.0f} s")

    return make_once(folder, make, say)


def source(name: str, package: str) -> Path:
    """The folder of the unpacked source of a package that `requirements/<name>.txt` pins."""
    pins = (ROOT / "requirements" / f"{name}.txt").read_text(encoding="utf-8")
    match = re.search(rf"^{package}==\S+(?: \\\n +--hash=\S+)+", pins, re.MULTILINE)
    if match is None:
        sys.exit(f"{name}: {package} is not pinned")
    pin = match[0]
    unpacked = pin.split()[0].replace("==", "-")

    def make(partial: Path) -> None:
        pin_file = partial / "pin.txt"
        pin_file.write_text(pin)
        # pip asks the build for its name and version, with what is installed here.
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
        pip += ["--no-deps", "--no-binary", package, "--no-build-isolation", "--require-hashes"]
        subprocess.run([*pip, "-d", str(partial), "-r", str(pin_file)], check=True)
        with tarfile.open(partial / f"{unpacked}.tar.gz") as archive:
            archive.extractall(partial, filter="data")

    digest = hashlib.sha256(pin.encode()).hexdigest()[:12]
    return make_once(cache() / "sources" / f"{package}-{digest}", make, say) / unpacked


def say(line: str) -> None:
    """Print a line of progress."""
    print(line, file=sys.stderr, flush=True)
