"""`tessera mosaic`: every GPU as a strip of tiles, one for each slice."""

import shutil
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from itertools import chain
from types import SimpleNamespace

from tessera.api.mig import MigPlan
from tessera.api.ref import Ref
from tessera.api.text import counted
from tessera.cli.cluster import Reader, cluster_command
from tessera.cli.errors import CommandError
from tessera.cli.fleet import FleetInputs, prometheus_url, read_fleet
from tessera.cli.mosaic.drawing import (
    MosaicTile,
    Rows,
    Strip,
    mosaic_lines,
    slice_width,
    svg_document,
    with_free_tiles,
    write_svg,
)
from tessera.cli.mosaic.json_output import pool_json
from tessera.cli.output import Output
from tessera.cli.pool_layouts import (
    PoolSnapshot,
    SlicesByGpu,
    current_slices,
    moving_pods,
    planned_slices,
    pool_snapshots,
)
from tessera.cli.text import format_time
from tessera.domain.mig_backends.usage import share

# Columns and lines of a terminal that does not report its size.
_DEFAULT_TERMINAL_SIZE = (110, 24)
LEGEND = (
    "A tile is a slice: its service, and below it start, GPU activity and price per hour.",
    "- idle, * displaced, blank not partitioned, /// stranded (no profile fits).",
    "/ at the end of a GPU: the price per hour of what no slice covers.",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Mosaic:
    """The GPUs of one pool, ready to be drawn."""

    pool: str
    summary: tuple[str, ...]
    notes: tuple[str, ...] = ()
    rows: Rows = ()
    plan: str = ""
    """The pending plan and what it waits for; empty if no plan changes a layout."""
    planned_rows: Rows = ()
    """The GPUs with their layouts of the plan."""


@cluster_command
async def run(reader: Reader, arguments: SimpleNamespace) -> Output:
    """Return the mosaic of the pools, as wide as the terminal."""
    fleet = await read_fleet(reader, prometheus_url(arguments))
    width = shutil.get_terminal_size(_DEFAULT_TERMINAL_SIZE).columns
    return render_mosaic(fleet, arguments.pool, arguments.output, width, arguments.svg)


def render_mosaic(
    fleet: FleetInputs, name: str | None, output_format: str, width: int, file: str | None = None
) -> Output:
    """Return the mosaic of all pools, or of the named one, and write it to the file as SVG."""
    pools = _mig_pools(fleet, name)
    pool_mosaics = mosaics(pools)
    if file is not None:
        write_svg(file, mosaic_svg(pool_mosaics))
    notes = (f"Note: {note}" for note in fleet.read_errors)
    return Output.of(
        output_format,
        chain(notes, terminal_lines(pool_mosaics, width)),
        lambda: {"pools": [*map(pool_json, pools)], "notes": list(fleet.read_errors)},
    )


def _mig_pools(fleet: FleetInputs, name: str | None) -> Sequence[PoolSnapshot]:
    pools = pool_snapshots(fleet, name, assume_gpus=True)
    mig_pools = [pool for pool in pools if pool.usage.gpus or pool.view.slices]
    if not mig_pools:
        which = "no AcceleratorPool has a" if name is None else f"AcceleratorPool/{name} has no"
        raise CommandError(
            f"{which} GPU in MIG mode. Run nvidia-smi -mig 1 on a node to enable it; tessera "
            "doctor shows what else is missing."
        )
    return mig_pools


def terminal_lines(pool_mosaics: Sequence[Mosaic], width: int) -> Iterator[str]:
    """Yield the mosaics as lines of text, before and after a pending plan."""
    for drawn_mosaic in pool_mosaics:
        yield from drawn_mosaic.summary
        yield from drawn_mosaic.notes
        yield ""
        if drawn_mosaic.plan:
            yield from ("Before:", *mosaic_lines(drawn_mosaic.rows, width))
            yield from ("", f"After plan {drawn_mosaic.plan}:")
        yield from mosaic_lines(drawn_mosaic.planned_rows or drawn_mosaic.rows, width)
        yield ""
    if any(drawn_mosaic.rows for drawn_mosaic in pool_mosaics):
        yield from LEGEND


def mosaic_svg(pool_mosaics: Sequence[Mosaic]) -> str:
    """Return the mosaics as SVG, with a pending plan beside them."""
    current_rows: list[Strip | str] = []
    planned_rows: list[Strip | str] = []
    for drawn_mosaic in pool_mosaics:
        summary, rows = drawn_mosaic.summary, drawn_mosaic.rows
        current_rows += [*summary, *rows]
        # Blank rows keep the GPUs of both columns at the same height.
        padding = [""] * (len(summary) - 1)
        planned_rows += [drawn_mosaic.pool, *padding, *(drawn_mosaic.planned_rows or rows)]
    plans = [drawn_mosaic.plan for drawn_mosaic in pool_mosaics if drawn_mosaic.plan]
    if not plans:
        return svg_document([("", current_rows)])
    return svg_document(
        [("before", current_rows), (f"after plan {', '.join(plans)}", planned_rows)]
    )


def mosaics(pools: Sequence[PoolSnapshot]) -> list[Mosaic]:
    """Return the mosaics of pools; no two services have the same name in them."""
    short_names = _short_names(pools)
    return [_mosaic(pool, short_names) for pool in pools]


def _mosaic(pool: PoolSnapshot, short_names: Mapping[str, str]) -> Mosaic:
    plan, slices = pool.pending_plan, current_slices(pool)
    rows = _rows(pool, slices, short_names, moving_pods(pool, plan) if plan is not None else ())
    planned = planned_slices(pool, plan) if plan is not None else None
    return Mosaic(
        pool=pool.name,
        summary=tuple(_summary_lines(pool)),
        notes=tuple(_note_lines(pool)),
        rows=tuple(rows),
        plan=_plan_title(pool, plan) if plan is not None else "",
        planned_rows=tuple(_rows(pool, planned, short_names)) if planned is not None else (),
    )


def _plan_title(pool: PoolSnapshot, plan: MigPlan) -> str:
    if plan is not pool.status.proposed:
        return plan.name
    waiting_for = (
        f"{format_time(pool.adoption_time)} UTC"
        if pool.adoption_time is not None
        else "it is approved"
    )
    units = " and until the current units are finished" if pool.status.units else ""
    return f"{plan.name}, which waits until {waiting_for}{units}"


def _summary_lines(pool: PoolSnapshot) -> Iterator[str]:
    unmanaged = f"{pool.name}: no spec.mig, the existing layouts are used"
    yield unmanaged if pool.mig is None else pool.state_line
    usage, price = pool.usage, pool.view.price
    # A node that is not drawn has an unknown number of GPUs in MIG mode.
    if price is not None and (usage.gpus or all(node.inconsistency is None for node in pool.nodes)):
        total, idle, stranded = (
            f"{part * price.per_gpu_hour:.2f}" for part in (usage.gpus, usage.idle, usage.stranded)
        )
        yield (
            f"{counted(usage.gpus, 'GPU')} in MIG mode for {total} {price.currency} per hour, of "
            f"which {idle} is idle and {stranded} stranded"
        )


def _note_lines(pool: PoolSnapshot) -> Iterator[str]:
    if not pool.placements_known:
        yield "Placements are assumed on nodes without tessera-node; their counts are right."
    if not pool.load_of_pod:
        yield "GPU activity is unknown; --prometheus URL reads it."
    if whole_gpus := sum(mig_node.whole_gpus for mig_node in pool.nodes):
        yield f"{counted(whole_gpus, 'GPU')} not in MIG mode."
    for mig_node in pool.nodes:
        if mig_node.inconsistency is not None:
            yield f"Node {mig_node.name} is not drawn: {mig_node.inconsistency}."
        for mig_gpu in mig_node.gpus:
            if mig_gpu.fault is not None:
                yield (
                    f"Node {mig_node.name} GPU {mig_gpu.index}: {mig_gpu.fault}: {mig_gpu.message}"
                )


def _short_names(pools: Sequence[PoolSnapshot]) -> Mapping[str, str]:
    """Return services by their names without namespace, where these are unique: tiles are small."""
    names = {name for pool in pools for name in pool.service_of_pod.values()}
    names |= {
        assignment.service
        for pool in pools
        for assignment in (pool.pending_plan.services if pool.pending_plan else ())
    }
    short_names = {name: name.rpartition("/")[2] for name in names}
    counts = Counter(short_names.values())
    return {name: short for name, short in short_names.items() if counts[short] == 1}


def _rows(
    pool: PoolSnapshot,
    slices: SlicesByGpu,
    short_names: Mapping[str, str],
    leaving: Collection[Ref] = (),
) -> Iterator[Strip | str]:
    """Yield a heading for each node and a strip for each GPU."""
    for mig_node in pool.nodes:
        gpu_model = mig_node.gpu_model
        if mig_node.gpus:
            yield f"{mig_node.name}: {gpu_model.name}{', assumed' * (not mig_node.reports_pods)}"
        for mig_gpu in mig_node.gpus:
            gpu_slices = slices.get((mig_node.name, mig_gpu.index), ())
            layout = tuple(pool_slice.placement for pool_slice in gpu_slices)
            tiles = [
                MosaicTile(
                    start=pool_slice.placement.start,
                    width=slice_width(gpu_model, pool_slice.placement.profile),
                    profile=pool_slice.placement.profile,
                    service=pool_slice.service
                    and short_names.get(pool_slice.service, pool_slice.service),
                    start_known=mig_node.reports_pods,
                    must_leave=any(pod in leaving for pod in pool_slice.pods),
                    load=pool_slice.activity,
                    hourly_price=pool.hourly_price(share(gpu_model, pool_slice.placement.profile)),
                )
                for pool_slice in gpu_slices
            ]
            shares = (share(gpu_model, placement.profile) for placement in layout)
            stranded = 1 - sum(shares, Decimal(0))
            yield Strip(
                name=str(mig_gpu.index),
                tiles=with_free_tiles(gpu_model, layout, tiles),
                # Shares are rounded, so those of a full GPU add up to nearly 1.
                stranded_price=pool.hourly_price(stranded if round(stranded, 9) else Decimal(0)),
            )
