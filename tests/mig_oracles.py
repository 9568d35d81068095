"""All layouts and geometries of a GPU by exhaustive search, as oracles of tests."""

from collections.abc import Iterable, Sequence

from tessera.domain.hardware.gpu_layouts import Geometry, Layout, fitting_placements, geometry
from tessera.domain.hardware.gpu_models import GpuModel


def enumerate_layouts(
    gpu_model: GpuModel, profiles: Sequence[str], base: Layout = ()
) -> tuple[Layout, ...]:
    """Return every legal layout of the profiles that contains the base, the base included."""
    seen = {base}
    pending = [base]
    while pending:
        layout = pending.pop()
        for placement in fitting_placements(gpu_model, layout, profiles):
            extended = tuple(sorted((*layout, placement)))
            if extended not in seen:
                seen.add(extended)
                pending.append(extended)
    return tuple(sorted(seen))


def maximal_layouts(
    gpu_model: GpuModel, profiles: Sequence[str], base: Layout = ()
) -> tuple[Layout, ...]:
    """Return the layouts to which nothing can be added."""
    return tuple(
        layout
        for layout in enumerate_layouts(gpu_model, profiles, base)
        if next(fitting_placements(gpu_model, layout, profiles), None) is None
    )


def distinct_geometries(layouts: Iterable[Layout]) -> tuple[Geometry, ...]:
    """Return the different counts among layouts."""
    return tuple(sorted({geometry(layout) for layout in layouts}))
