"""What a node offers of its slices, in the names of the table of boards."""

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from functools import lru_cache

from tessera.domain.mig.boards import GpuModel
from tessera.domain.mig.layouts import Layout, geometry
from tessera.domain.pools import MIG_PREFIX
from tessera.domain.repartition.facts import Ground

PLUGIN = "nvidia.com/gpu.deploy.device-plugin"
DISCOVERY = "nvidia.com/gpu.deploy.gpu-feature-discovery"
PAUSED = "paused-for-mig-change"
"""What such a label says while the GPU operator shall keep a part of itself off a node."""

_COUNT = re.compile(r"nvidia\.com/mig-(.+)\.count")


def spelled(board: GpuModel, profile: str) -> str:
    """A profile by the name used here, whichever a driver gave it."""
    cut = board.find_profile(profile)
    return cut.name if cut else profile


def offered(ground: Ground) -> Counter[str]:
    """Slices that pods may have, by profile; keys with a zero, which kubelets keep, are none."""
    found: Counter[str] = Counter()
    for name, count in ground.allocatable.items():
        profile = profile_of(ground.board, name)
        if profile is not None and count:
            found[profile] += count
    return found


def labelled(ground: Ground) -> Counter[str]:
    """The same by the labels of GPU feature discovery."""
    found: Counter[str] = Counter()
    for label, text in ground.labels.items():
        named = _COUNT.fullmatch(label)
        if named and text.isdecimal() and text.isascii() and int(text):
            found[_written(ground.board, named[1])] += int(text)
    return found


def offers(ground: Ground, wanted: Mapping[int, Layout]) -> bool:
    """Do pods get just what there should be, with these GPUs as wanted and the others as they are?

    Feature discovery has to agree where it says anything: memory of slices is read from it.
    """
    layouts = {card.index: card.layout for card in ground.cards} | dict(wanted)
    expected = counted(layouts.values())
    return offered(ground) == expected and labelled(ground) in (expected, Counter())


def counted(layouts: Iterable[Layout]) -> Counter[str]:
    """Slices by profile."""
    found: Counter[str] = Counter()
    for layout in layouts:
        found.update(dict(geometry(layout)))
    return found


def profile_of(board: GpuModel, resource: str) -> str | None:
    """Of the slices of a board that a resource stands for; None of a resource of no slices."""
    return (
        _written(board, resource.removeprefix(MIG_PREFIX))
        if resource.startswith(MIG_PREFIX)
        else None
    )


@lru_cache(maxsize=1024)
def _written(board: GpuModel, text: str) -> str:
    """Labels and resources have no `+`."""
    names = (*(cut.name for cut in board.profiles), *(name for name, _ in board.aliases))
    return spelled(board, next((name for name in names if name.replace("+", ".") == text), text))
