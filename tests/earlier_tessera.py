"""Tessera 0.1 as its users have it: operator, gateway, chart and CRDs of commit 48e4eabe."""

import os
import tarfile
from pathlib import Path

from world.folders import cache, make_once
from world.kubelet.images import EARLIER_TESSERA

# `git archive` of operator/tessera, charts and crds: the last one that edited its Deployments.
_ARCHIVE = Path(__file__).parents[1] / "e2e" / "scenarios" / "data" / f"{EARLIER_TESSERA}.tar.xz"


def unpacked() -> Path:
    """Return the folder with it, which is in the cache: an image of the world runs from there."""

    def unpack(folder: Path) -> None:
        with tarfile.open(_ARCHIVE) as archive:
            archive.extractall(folder, filter="data")

    return make_once(cache() / EARLIER_TESSERA, unpack, print)


def environment() -> dict[str, str]:
    """Return the environment of a process that imports its modules instead of today's."""
    return {**os.environ, "PYTHONPATH": str(unpacked() / "operator")}
