"""Python environments beside `.venv`: in the user's cache, made once for every version of pins."""

import hashlib
import os
import subprocess
import sys
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


def cache() -> Path:
    """The user's cache of this project."""
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(base) / "tessera"
