"""Python environments beside `.venv`: in the user's cache, made once for every version of pins."""

import hashlib
import os
import re
import subprocess
import sys
import tarfile
import time
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
_MADE = "made"


def environment(name: str, *, with_dependencies: bool = True) -> Path:
    """The folder of the environment of `requirements/<name>.txt`; made if missing."""
    pins = ROOT / "requirements" / f"{name}.txt"
    digest = hashlib.sha256(pins.read_bytes()).hexdigest()[:12]
    folder = cache() / name / digest
    if (folder / _MADE).exists():
        return folder
    begun = time.monotonic()
    print(f"{name}: making {folder} (once)", file=sys.stderr, flush=True)
    venv.create(folder, with_pip=True, clear=True)
    pip = [str(folder / "bin" / "python"), "-m", "pip", "install", "--no-input", "--quiet"]
    pip += ["--disable-pip-version-check", "--require-hashes", "-r", str(pins)]
    done = subprocess.run(pip + ([] if with_dependencies else ["--no-deps"]), check=False)
    if done.returncode:
        sys.exit(f"{name}: installing {pins.name} failed with {done.returncode}")
    (folder / _MADE).touch()
    print(f"{name}: made in {time.monotonic() - begun:.0f} s", file=sys.stderr, flush=True)
    return folder


def source(name: str, package: str) -> Path:
    """The folder of the unpacked source of a package that `requirements/<name>.txt` pins."""
    pins = (ROOT / "requirements" / f"{name}.txt").read_text(encoding="utf-8")
    match = re.search(rf"^{package}==\S+(?: \\\n +--hash=\S+)+", pins, re.MULTILINE)
    if match is None:
        sys.exit(f"{name}: {package} is not pinned")
    pin = match[0]
    digest = hashlib.sha256(pin.encode()).hexdigest()[:12]
    folder = cache() / f"{package}-source" / digest
    unpacked = folder / pin.split()[0].replace("==", "-")
    if (folder / _MADE).exists():
        return unpacked
    folder.mkdir(parents=True, exist_ok=True)
    pin_file = folder / "pin.txt"
    pin_file.write_text(pin)
    # pip asks the build for its name and version, with what is installed here.
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
    pip += ["--no-deps", "--no-binary", package, "--no-build-isolation", "--require-hashes"]
    subprocess.run([*pip, "-d", str(folder), "-r", str(pin_file)], check=True)
    with tarfile.open(f"{unpacked}.tar.gz") as archive:
        archive.extractall(folder, filter="data")
    (folder / _MADE).touch()
    return unpacked


def cache() -> Path:
    """The user's cache of this project."""
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(base) / "tessera"
