"""Where a world keeps its files."""

import os
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
MANIFESTS = HERE / "manifests"
DEFAULT_FLEET = HERE / "fleets" / "default.yaml"
# In the folder of a world: the token of its Prometheus.
SCRAPE_TOKEN = "prometheus.token"  # noqa: S105 - a file's name


def cache() -> Path:
    """The user's cache folder of this project, made when missing."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    folder = Path(base) / "tessera"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def sockets(slot: int) -> Path:
    """Where the sockets of a world are, by the number of its address range."""
    return Path(tempfile.gettempdir()) / f"tessera-{os.getuid()}" / str(slot)


def worlds() -> Path:
    folder = cache() / "worlds"
    folder.mkdir(exist_ok=True)
    return folder
