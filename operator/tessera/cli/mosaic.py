"""`tessera mosaic`: every GPU as a strip of tiles, one for each slice."""

import argparse
import asyncio
import json
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal

from tessera.api.mig import MigPlan
from tessera.cli.cluster import reach
from tessera.cli.errors import CommandError
from tessera.cli.fleet import Fleet, fleet_of, prometheus_of
from tessera.cli.layouts_seen import (
    SeenPool,
    Slices,
    after,
    layouts_seen,
    movers,
    present,
)
from tessera.cli.mosaic_json import fields
from tessera.cli.plan import state
from tessera.cli.text import moment
from tessera.cli.tiles import Rows, Strip, Tile, lines, picture, tiles, write_svg
from tessera.cli.told import Told
from tessera.domain.mig.fleet import Gpu, Slice
from tessera.domain.repartition.facts import Ground
from tessera.domain.repartition.usage import share

_TERMINAL = (110, 24)
"""One that does not tell its size."""
LEGEND = (
    "A tile is a slice: its service, below it where it starts, its load and its price an hour.",
    "- idle, * has to leave, blank not cut, /// nothing can be cut there.",
    "/ at the end of a GPU: the price an hour of what no slice covers.",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Mosaic:
    """The GPUs of one pool at one moment, ready to be drawn."""

    pool: str
    summary: tuple[str, ...]
    notes: tuple[str, ...] = ()
    rows: Rows = ()
    plan: str = ""
    """The plan that is proposed or carried out, as far as it makes a difference, and for what it
    waits."""
    coming: Rows = ()
    """The GPUs as it cuts them."""


def run(arguments: argparse.Namespace) -> Told:
    """The strips, drawn as wide as the terminal."""
    return asyncio.run(_run(arguments))


async def _run(arguments: argparse.Namespace) -> Told:
    async with reach(arguments) as reader:
        fleet = await fleet_of(reader, prometheus_of(arguments))
    width = shutil.get_terminal_size(_TERMINAL).columns
    return told(fleet, arguments.pool, arguments.output, width, arguments.svg)


def told(fleet: Fleet, name: str | None, form: str, width: int, file: str | None = None) -> Told:
    """What is drawn of all pools, or of the one of this name; with a file also there."""
    seen = _drawable(fleet, name)
    found = [mosaic(pool) for pool in seen]
    if file is not None:
        write_svg(file, drawn(found))
    if form == "json":
        body = {"pools": [fields(pool) for pool in seen], "notes": list(fleet.unread)}
        return Told(json.dumps(body, indent=2) + "\n")
    notes = [f"Note: {note}" for note in fleet.unread]
    return Told("\n".join([*notes, *shown(found, width)]) + "\n")


def mosaics(fleet: Fleet, name: str | None = None) -> Sequence[Mosaic]:
    """Of all pools with GPUs that are cut, or of the one of this name."""
    return [mosaic(pool) for pool in _drawable(fleet, name)]


def _drawable(fleet: Fleet, name: str | None) -> Sequence[SeenPool]:
    seen = layouts_seen(fleet, name)
    found = [pool for pool in seen if pool.usage.gpus or pool.view.slices]
    if not found:
        which = "no AcceleratorPool has" if name is None else f"pool {name} has no"
        raise CommandError(
            f"{which} GPUs in MIG mode; nvidia-smi -mig 1 on a node switches it on, and tessera "
            "doctor tells what else may be missing"
        )
    return found


def shown(found: Sequence[Mosaic], width: int) -> Iterator[str]:
    """In the terminal; with a plan before and after."""
    for one in found:
        yield from one.summary
        yield from one.notes
        if one.plan:
            yield from ("", "Before:", *lines(one.rows, width))
            yield from ("", f"After plan {one.plan}:", *lines(one.coming, width), "")
        else:
            yield from ("", *lines(one.rows, width), "")
    yield from LEGEND


def between(before: Sequence[Mosaic], later: Sequence[Mosaic], width: int) -> Iterator[str]:
    """Two readings of the same pools."""
    for title, found in (("Before:", before), ("After:", later)):
        yield title
        for one in found:
            yield from (*one.summary, *lines(one.rows, width), "")
    yield from LEGEND


def drawn(found: Sequence[Mosaic], later: Sequence[Mosaic] = ()) -> str:
    """As SVG, with another reading or a plan beside it."""
    now = [row for one in found for row in (*one.summary, *one.rows)]
    if later:
        coming = [row for one in later for row in (*one.summary, *one.rows)]
        return picture([("before", now), ("after", coming)])
    plans = [one.plan for one in found if one.plan]
    if not plans:
        return picture([("", now)])
    blank = [("",) * (len(one.summary) - 1) for one in found]
    coming = [
        row
        for one, gap in zip(found, blank, strict=True)
        for row in (one.pool, *gap, *(one.coming or one.rows))
    ]
    return picture([("before", now), (f"after plan {', '.join(plans)}", coming)])


def mosaic(pool: SeenPool) -> Mosaic:
    """Of one pool."""
    plan, known = pool.coming, _known(pool)
    later = replace(known, loads={}, leaving=frozenset())
    return Mosaic(
        pool=pool.name,
        summary=tuple(_summary(pool)),
        notes=tuple(_notes(pool)),
        rows=tuple(_rows(pool, present(pool), known)),
        plan=_plan(pool, plan) if plan is not None else "",
        coming=tuple(_rows(pool, after(pool, plan), later)) if plan is not None else (),
    )


def _plan(pool: SeenPool, plan: MigPlan) -> str:
    if plan is not pool.status.proposed:
        return plan.name
    waits = f"{moment(pool.begins)} UTC" if pool.begins is not None else "it is approved"
    work = " and until the GPUs in work are done" if pool.status.units else ""
    return f"{plan.name}, which waits until {waits}{work}"


def _summary(pool: SeenPool) -> Iterator[str]:
    yield state(pool) if pool.mig is not None else f"{pool.name}: slices are taken as they are"
    usage, price = pool.usage, pool.view.price
    if price is not None:
        total, idle, stranded = (
            f"{part * price.per_gpu_hour:.2f}" for part in (usage.gpus, usage.idle, usage.stranded)
        )
        yield (
            f"{usage.gpus} GPUs in MIG mode for {total} {price.currency} an hour, of which {idle} "
            f"are idle and {stranded} stranded"
        )


def _notes(pool: SeenPool) -> Iterator[str]:
    if not pool.places_known:
        yield "Places are assumed where no agent (tessera-node) tells them; their counts are right."
    if not pool.loads:
        yield "Loads are not known; --prometheus URL reads them."
    if whole := sum(ground.uncut for ground in pool.grounds):
        yield f"{whole} GPUs are not in MIG mode."
    for ground in pool.grounds:
        if ground.disagrees is not None:
            yield f"Node {ground.name} is not drawn: {ground.disagrees}."
        for card in ground.cards:
            if card.fault is not None:
                yield f"Node {ground.name} GPU {card.index}: {card.fault}: {card.message}"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Known:
    """What tiles are labelled with besides their services; places are node, GPU and start."""

    names: Mapping[str, str]
    hourly: Decimal | None
    """The price of a GPU."""
    loads: Mapping[tuple[str, int, int], float]
    leaving: frozenset[tuple[str, int, int]]


def _known(pool: SeenPool) -> _Known:
    plan = pool.coming
    leaving = movers(pool, plan) if plan is not None else frozenset()
    places = {(seat.node, seat.gpu, seat.spot.start): seat for seat in pool.seats}
    loads = {place: pool.load(seat) for place, seat in places.items()}
    return _Known(
        names=_shortened(pool),
        hourly=pool.view.price.per_gpu_hour if pool.view.price is not None else None,
        loads={place: load for place, load in loads.items() if load is not None},
        leaving=frozenset(
            place for place, seat in places.items() if not leaving.isdisjoint(seat.holders)
        ),
    )


def _shortened(pool: SeenPool) -> Mapping[str, str]:
    """Services by their names alone where nobody else is called so: tiles are small."""
    plan = pool.coming
    known = {*pool.services.values(), *(one.service for one in (plan.services if plan else ()))}
    heirs = Counter(_last(name) for name in known)
    return {name: _last(name) for name in known if heirs[_last(name)] == 1}


def _last(name: str) -> str:
    return name.rpartition("/")[2]


def _rows(pool: SeenPool, slices: Slices, known: _Known) -> Iterator[Strip | str]:
    """A heading for each node, a strip for each GPU."""
    for ground in pool.grounds:
        if ground.cards:
            yield f"{ground.name}: {ground.board.name}{', assumed' * (not ground.tells_pods)}"
        for card in ground.cards:
            yield _strip(ground, card.index, slices[ground.name, card.index], known)


def _strip(ground: Ground, index: int, slices: tuple[Slice, ...], known: _Known) -> Strip:
    gpu = Gpu(name=str(index), board=ground.board.name, slices=slices)
    covered = sum((share(ground.board, one.profile) for one in slices), Decimal(0))
    return Strip(
        name=gpu.name,
        tiles=tuple(_tile(ground, index, tile, known) for tile in tiles(ground.board, gpu)),
        stranded=(1 - covered) * known.hourly if known.hourly is not None else None,
    )


def _tile(ground: Ground, index: int, tile: Tile, known: _Known) -> Tile:
    if tile.profile is None:
        return tile
    place = ground.name, index, tile.start
    part = share(ground.board, tile.profile)
    return replace(
        tile,
        service=known.names.get(tile.service, tile.service) if tile.service else None,
        placed=ground.tells_pods,
        leaves=place in known.leaving,
        load=known.loads.get(place),
        price=part * known.hourly if known.hourly is not None else None,
    )
