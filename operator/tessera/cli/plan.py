"""`tessera plan`: MIG layouts for a demand, without a cluster."""

import argparse
import difflib
import json
from collections.abc import Iterator

from tessera.cli.cluster import Json
from tessera.cli.errors import CommandError
from tessera.cli.plan_files import layout, services
from tessera.cli.text import table
from tessera.cli.told import Told
from tessera.domain.mig.boards import Board, board_of, boards
from tessera.domain.mig.changes import Changes, Placed, Seat
from tessera.domain.mig.demand import Offer
from tessera.domain.mig.fleet import Gpu
from tessera.domain.mig.plan import LayoutPlan, plan_layouts
from tessera.domain.mig.solver import SolverMissingError

UNMET = 3
"""The exit code when a service cannot be served by any number of these GPUs."""


def run(arguments: argparse.Namespace) -> Told:
    """The plan, and 3 when somebody is left out."""
    board = _board(arguments.gpu)
    wanted = services(arguments.demand, arguments.throughput, board)
    there = layout(arguments.current, board) if arguments.current else ()
    try:
        plan = plan_layouts(wanted, [Offer(board=board, price=1)], there)
    except SolverMissingError:
        raise CommandError(
            "the solver is not installed; install it with: pip install 'tessera[cli]'"
        ) from None
    code = UNMET if plan.unmet else 0
    if arguments.output == "json":
        fields = _fields(plan, board, anew=not arguments.current)
        return Told(json.dumps(fields, indent=2) + "\n", code)
    return Told("\n".join(_lines(plan, board, anew=not arguments.current)) + "\n", code)


def _board(name: str) -> Board:
    found = board_of(name)
    if found is None:
        known = [*boards(), *(product for one in boards().values() for product in one.products)]
        near = difflib.get_close_matches(name, known, cutoff=0.5) or list(boards())
        raise CommandError(
            f"--gpu {name} cannot be cut as far as is known; known are {', '.join(near)}"
        )
    return found


def _fields(plan: LayoutPlan, board: Board, *, anew: bool) -> Json:
    changes = plan.changes
    return {
        "gpu": board.name,
        "gpus": plan.used,
        "lower_bound": plan.bound,
        "gap": round(plan.gap, 6),
        "unmet": list(plan.unmet),
        "layouts": [
            {
                "gpu": gpu.name,
                "slices": [
                    {"profile": one.profile, "start": one.start, "service": one.service}
                    for one in gpu.slices
                ],
            }
            for gpu in plan.gpus
        ],
        "moves": [
            {"service": move.service, "from": _seat(move.source), "to": _seat(move.target)}
            for move in changes.moves
        ],
        "starts": [] if anew else [_placed(one) for one in changes.starts],
        "stops": [_placed(one) for one in changes.stops],
    }


def _seat(seat: Seat) -> Json:
    return {"gpu": seat.gpu, "profile": seat.profile, "start": seat.start}


def _placed(placed: Placed) -> Json:
    return {"service": placed.service, "at": _seat(placed.seat)}


def _lines(plan: LayoutPlan, board: Board, *, anew: bool) -> Iterator[str]:
    proven = "fewer are not possible" if plan.used == plan.bound else f"at least {plan.bound}"
    yield f"{plan.used} of {board.name}; {proven}."
    for name in plan.unmet:
        yield (
            f"{name} cannot be served: no row of the throughput says that it fits a slice of "
            f"{board.name} or the whole; add one, or take a larger GPU."
        )
    if plan.gpus:
        yield ""
        yield from table(("GPU", "SLICES"), [[gpu.name, _slices(gpu)] for gpu in plan.gpus])
    if not anew:
        yield ""
        yield from _changed(plan.changes)


def _slices(gpu: Gpu) -> str:
    parts = (f"{one.profile}@{one.start} {one.service or '-'}" for one in gpu.slices)
    return ", ".join(parts) or "not cut"


def _changed(changes: Changes) -> Iterator[str]:
    if changes.none:
        yield "Nothing changes."
        return
    for move in changes.moves:
        yield f"{move.service} moves from {_told(move.source)} to {_told(move.target)}"
    for one in changes.starts:
        yield f"{one.service} starts on {_told(one.seat)}"
    for one in changes.stops:
        yield f"{one.service} stops on {_told(one.seat)}"
    for verb, seats in (("is cut", changes.created), ("is destroyed", changes.destroyed)):
        for seat in seats:
            yield f"{_told(seat)} {verb}"


def _told(seat: Seat) -> str:
    return f"{seat.gpu} {seat.profile}@{seat.start}"
