"""Where a world keeps its files."""

import fcntl
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

HERE = Path(__file__).parent
MANIFESTS = HERE / "manifests"
SHIM = HERE / "shim"
"""What the Python of each container imports as it starts."""
DEFAULT_FLEET = HERE / "fleets" / "default.yaml"
# In the folder of a world: the token of its Prometheus.
SCRAPE_TOKEN = "prometheus.token"  # noqa: S105 - a file's name


def cache() -> Path:
    """The user's cache folder of this project, made when missing."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    folder = Path(base) / "tessera"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def service_names(world: Path) -> Path:
    """Where the addresses of the Services of a world are, by namespace and name."""
    return world / "services"


def sockets(slot: int) -> Path:
    """Where the sockets of a world are, by the number of its address range."""
    return Path(tempfile.gettempdir()) / f"tessera-{os.getuid()}" / str(slot)


def worlds() -> Path:
    folder = cache() / "worlds"
    folder.mkdir(exist_ok=True)
    return folder


def make_once(folder: Path, make: Callable[[Path], None], say: Callable[[str], None]) -> Path:
    """Return a folder of the cache; what is missing is made by one process while others wait.

    `make` fills an empty folder beside it, which is renamed when it is whole: an interrupted one is
    made again.
    """
    if folder.exists():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with sole_maker(folder, say):
        if not folder.exists():
            partial = folder.with_name(f"{folder.name}.partial")
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir()
            make(partial)
            partial.rename(folder)
    return folder


@contextmanager
def sole_maker(folder: Path, say: Callable[[str], None]) -> Iterator[None]:
    """Wait until no other process makes this folder, and keep others from it in this block."""
    with folder.with_name(f"{folder.name}.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"waiting for another process that makes {folder}")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield
