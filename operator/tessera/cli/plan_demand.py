"""`tessera plan --demand`: MIG layouts for a demand, without a cluster."""

import argparse
import difflib
import json
from collections.abc import Iterator, Sequence

from tessera.cli.cluster import Json
from tessera.cli.errors import CommandError
from tessera.cli.plan_files import layout, services
from tessera.cli.tiles import strips, svg, write_svg
from tessera.cli.told import Told
from tessera.domain.mig.boards import Board, board_of, boards
from tessera.domain.mig.changes import Seat
from tessera.domain.mig.demand import Offer
from tessera.domain.mig.fleet import Gpu
from tessera.domain.mig.plan import LayoutPlan, plan_layouts
from tessera.domain.mig.solver import SolverMissingError
from tessera.domain.mig.steps import Deed, Step, ordered

_MANY = 1000
"""Moves for a GPU; more are as good as any number."""
UNMET = 3
"""The exit code when a service cannot be served by any number of these GPUs."""


def run(arguments: argparse.Namespace) -> Told:
    """The plan, and 3 when somebody is left out."""
    board = _board(arguments.gpu)
    wanted = services(arguments.demand, arguments.throughput, board)
    if arguments.moves_per_gpu is not None and not 0 <= arguments.moves_per_gpu < _MANY:
        raise CommandError(
            f"--moves-per-gpu {arguments.moves_per_gpu:g}: write a number from 0 to {_MANY}"
        )
    there = layout(arguments.current, board) if arguments.current else ()
    try:
        worth = arguments.moves_per_gpu
        plan = plan_layouts(wanted, [Offer(board=board, price=1)], there, worth=worth)
    except SolverMissingError:
        raise CommandError(
            "the solver is not installed; install it with: pip install 'tessera[cli]'"
        ) from None
    steps = ordered(there, plan.gpus, wanted, {board.name: board}) if there else ()
    if arguments.svg:
        write_svg(arguments.svg, svg(board, there, plan.gpus))
    code = UNMET if plan.unmet else 0
    if arguments.output == "json":
        return Told(json.dumps(_fields(plan, board, steps), indent=2) + "\n", code)
    lines = _lines(plan, board, there)
    return Told("\n".join((*lines, *(_changed(plan, steps) if there else ()))) + "\n", code)


def _board(name: str) -> Board:
    """By its name or a product's, or by the beginning that it alone has, as A30 and H200."""
    if found := board_of(name) or board_of(name.upper()):
        return found
    begun = [one for own, one in boards().items() if own.startswith(f"{name.upper()}-")]
    if len(begun) == 1:
        return begun[0]
    if begun:
        several = ", ".join(one.name for one in begun)
        raise CommandError(f"--gpu {name} may be any of {several}: write which")
    known = [*boards(), *(product for one in boards().values() for product in one.products)]
    near = difflib.get_close_matches(name, known, cutoff=0.5) or list(boards())
    raise CommandError(
        f"--gpu {name} cannot be cut as far as is known; known are {', '.join(near)}"
    )


def _fields(plan: LayoutPlan, board: Board, steps: Sequence[Step]) -> Json:
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
        "steps": [
            {
                "do": step.deed,
                "at": _seat(step.seat),
                "service": step.service,
                "temporary": step.temporary,
                "short": step.short,
            }
            for step in steps
        ],
    }


def _seat(seat: Seat) -> Json:
    return {"gpu": seat.gpu, "profile": seat.profile, "start": seat.start}


def _lines(plan: LayoutPlan, board: Board, there: Sequence[Gpu]) -> Iterator[str]:
    proven = "fewer are not possible" if plan.used == plan.bound else f"at least {plan.bound}"
    yield f"{plan.used} of {board.name}; {proven}."
    for name in plan.unmet:
        yield (
            f"{name} cannot be served: no row of the throughput says that it fits a slice of "
            f"{board.name} or the whole; add one, or take a larger GPU."
        )
    if there:
        yield from ("", "Before:", *strips(board, there), "", "After:")
    elif plan.gpus:
        yield ""
    yield from strips(board, plan.gpus)


def _changed(plan: LayoutPlan, steps: Sequence[Step]) -> Iterator[str]:
    yield ""
    if plan.changes.none:
        yield "Nothing changes."
        return
    moves = plan.changes.moves
    yield f"{len(moves)} moved" + (":" if moves else ".")
    for move in moves:
        yield f"  {move.service} from {_told(move.source)} to {_told(move.target)}"
    yield "Steps:"
    for number, step in enumerate(steps, start=1):
        yield f"  {number}. {_step(step)}"


def _step(step: Step) -> str:
    where = _told(step.seat)
    match step.deed:
        case Deed.CREATE:
            return f"cut {where}"
        case Deed.DESTROY:
            return f"destroy {where}"
        case Deed.START:
            return f"start {step.service} on {where}" + ", for a while" * step.temporary
        case Deed.STOP:
            told = f"stop {step.service} on {where}"
            return told + ": it has less than it should until its next start" * step.short


def _told(seat: Seat) -> str:
    return f"{seat.gpu} {seat.profile}@{seat.start}"
