"""Layouts of a node of which only the slice counts are known."""

from collections import Counter
from collections.abc import Sequence
from functools import partial

from tessera.domain.hardware.gpu_layouts import Geometry, Layout, geometry, place_geometry
from tessera.domain.hardware.gpu_models import GpuModel
from tessera.domain.incremental import tabulated
from tessera.domain.mig.geometries import maximal_fillings


# 16 KiB for 16 GPUs of seven slices.
@partial(tabulated, size=2048)
def layouts_for_counts(
    gpu_model: GpuModel, counts: Geometry, gpus: int, preferred: tuple[Layout, ...] = ()
) -> tuple[Layout, ...] | None:
    """Return layouts of so many GPUs with these counts in total, None when there are none.

    Which GPU has which slices is assumed: its `preferred` layout as far as the counts allow, so
    that a layout that was requested is recognized once it is in place.
    """
    if not all(gpu_model.find_profile(profile) for profile, _ in counts):
        return None
    if _pack(gpu_model, counts, gpus) is None:
        return None
    layouts: list[Layout] = []
    remaining = counts
    for index in range(gpus):
        layout = _preferred_layout(gpu_model, remaining, gpus - index, preferred[index : index + 1])
        if layout is None:
            packing = _pack(gpu_model, remaining, gpus - index) or ()
            layout = place_geometry(gpu_model, packing[0] if packing else ()) or ()
        layouts.append(layout)
        remaining = _subtract(remaining, geometry(layout))
    return tuple(layouts)


@tabulated
def _pack(gpu_model: GpuModel, counts: Geometry, gpus: int) -> tuple[Geometry, ...] | None:
    """Return the slices of each GPU, for at most so many GPUs; None when they do not fit."""
    return _PackingSearch(gpu_model).pack(counts, gpus)


class _PackingSearch:
    """A depth-first search for a packing, with a limit on its steps.

    The slices of real GPUs are packed at once. Refuting impossible counts may take exponentially
    long, so counts that are not packed within the limit are taken for impossible.
    """

    def __init__(self, gpu_model: GpuModel) -> None:
        self._gpu_model = gpu_model
        self._steps_left = 3000
        self._infeasible: set[tuple[Geometry, int]] = set()

    def pack(self, counts: Geometry, gpus: int) -> tuple[Geometry, ...] | None:
        """Return the slices of each GPU, None when no packing is found."""
        if not counts:
            return ()
        if (counts, gpus) in self._infeasible or not _may_fit(self._gpu_model, counts, gpus):
            return None
        self._steps_left -= 1
        # Some GPU has to hold a slice of the largest profile: only fillings with it are tried.
        largest = max(
            (name for name, _ in counts), key=lambda name: _profile_size(self._gpu_model, name)
        )
        for filling in _densest_first(self._gpu_model, tuple(name for name, _ in counts)):
            if largest not in dict(filling) or self._steps_left <= 0:
                continue
            remaining = _subtract(counts, filling)
            rest = self.pack(remaining, gpus - 1)
            if rest is not None:
                return (_subtract(counts, remaining), *rest)
        self._infeasible.add((counts, gpus))
        return None


@tabulated
def _densest_first(gpu_model: GpuModel, profiles: tuple[str, ...]) -> tuple[Geometry, ...]:
    """Return the maximal fillings of one GPU with these profiles, the most memory first."""
    return tuple(
        sorted(
            maximal_fillings(gpu_model, profiles),
            key=lambda filling: (
                -sum(_profile_size(gpu_model, name)[0] * count for name, count in filling),
                filling,
            ),
        )
    )


def _may_fit(gpu_model: GpuModel, counts: Geometry, gpus: int) -> bool:
    """Return False if the counts exceed the memory slices, compute slices or instances in total."""
    sizes = [(_profile_size(gpu_model, name), count) for name, count in counts]
    return (
        sum(memory * count for (memory, _), count in sizes) <= gpus * gpu_model.memory_slices
        and sum(compute * count for (_, compute), count in sizes) <= gpus * gpu_model.compute_slices
        and all(
            count <= gpus * gi_profile.max_instances
            for name, count in counts
            if (gi_profile := gpu_model.find_profile(name))
        )
    )


def _profile_size(gpu_model: GpuModel, profile: str) -> tuple[int, int]:
    gi_profile = gpu_model.find_profile(profile)
    return (gi_profile.memory_slices, gi_profile.compute_slices) if gi_profile else (0, 0)


def _preferred_layout(
    gpu_model: GpuModel, remaining: Geometry, gpus: int, preferred: Sequence[Layout]
) -> Layout | None:
    for layout in preferred:
        layout_counts = geometry(layout)
        fits = not Counter(dict(layout_counts)) - Counter(dict(remaining))
        if fits and _pack(gpu_model, _subtract(remaining, layout_counts), gpus - 1) is not None:
            return layout
    return None


def _subtract(counts: Geometry, subtracted: Geometry) -> Geometry:
    return tuple(sorted((Counter(dict(counts)) - Counter(dict(subtracted))).items()))
