"""From a mix to GPUs: every geometry gets its places, every service its slices.

Instances of a service are dealt to GPUs in turn, so that one GPU's death takes few of them.
"""

from collections import Counter, defaultdict
from collections.abc import Mapping
from functools import cache

from tessera.domain.mig.boards import WHOLE, Board
from tessera.domain.mig.demand import Kind
from tessera.domain.mig.fleet import Gpu, Slice
from tessera.domain.mig.layouts import UNCUT, Geometry, Layout, additions
from tessera.domain.mig.mix import Mix
from tessera.domain.mig.patterns import Pattern


@cache
def places(board: Board, way: Geometry, kept: Layout = ()) -> Layout | None:
    """The first layout that adds exactly these slices to what is kept; large slices choose first.

    None when there is none.
    """
    counts = Counter(dict(way))
    if not counts:
        return kept
    if WHOLE in counts:
        return UNCUT if counts == Counter({WHOLE: 1}) and not kept else None
    profile = max(counts, key=lambda one: (_size(board, one), one))
    rest = tuple(sorted((+(counts - Counter({profile: 1}))).items()))
    for spot in additions(board, kept, (profile,)):
        if found := places(board, rest, tuple(sorted((*kept, spot)))):
            return found
    return None


def _size(board: Board, profile: str) -> int:
    cut = board.cut(profile)
    return cut.memory_slices if cut else 0


def deal(mix: Mix, boards: Mapping[str, Board], begin: int = 1) -> tuple[Gpu, ...]:
    """GPUs numbered from a beginning; what no service needs is not cut."""
    layouts: list[tuple[str, str, Layout]] = []
    for (name, way), count in sorted(mix.gpus.items()):
        layout = places(boards[name], way)
        if layout is None:
            raise ValueError(f"{name} cannot be cut into {way}")
        layouts += [(name, f"gpu-{begin + len(layouts) + at:04}", layout) for at in range(count)]
    seats: dict[Kind, list[tuple[int, str, int]]] = defaultdict(list)
    for board, gpu, layout in layouts:
        turn = Counter[str]()
        for spot in layout:
            seats[Kind(board, spot.profile)].append((turn[spot.profile], gpu, spot.start))
            turn[spot.profile] += 1
    taken: dict[str, list[Slice]] = defaultdict(list)
    for kind, seated in _wanted(mix.instances).items():
        for service, (_, gpu, start) in zip(seated, sorted(seats[kind]), strict=False):
            taken[gpu].append(Slice(start, kind.profile, service))
    return tuple(
        Gpu(name=gpu, board=board, slices=tuple(sorted(taken[gpu])))
        for board, gpu, _ in layouts
        if taken[gpu]
    )


def _wanted(instances: Mapping[str, Pattern]) -> dict[Kind, list[str]]:
    """Every kind with the services that take it, once for each instance."""
    found: dict[Kind, list[str]] = defaultdict(list)
    for service, pattern in sorted(instances.items()):
        for kind, count in pattern:
            found[kind] += [service] * count
    return found
