"""`tessera plan`: MIG layouts for a demand, without a cluster."""

import argparse
import difflib
import json
from collections import Counter
from collections.abc import Iterator

from tessera.cli.cluster import Json
from tessera.cli.errors import CommandError
from tessera.cli.plan_files import services
from tessera.cli.text import table
from tessera.cli.told import Told
from tessera.domain.mig.boards import Board, board_of, boards
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
    try:
        plan = plan_layouts(wanted, [Offer(board=board, price=1)])
    except SolverMissingError:
        raise CommandError(
            "the solver is not installed; install it with: pip install 'tessera[cli]'"
        ) from None
    code = UNMET if plan.unmet else 0
    if arguments.output == "json":
        return Told(json.dumps(_fields(plan, board), indent=2) + "\n", code)
    return Told("\n".join(_lines(plan, board)) + "\n", code)


def _board(name: str) -> Board:
    found = board_of(name)
    if found is None:
        known = [*boards(), *(product for one in boards().values() for product in one.products)]
        near = difflib.get_close_matches(name, known, cutoff=0.5) or list(boards())
        raise CommandError(f"--gpu {name} cannot be cut as far as is known; known are {_all(near)}")
    return found


def _all(names: list[str]) -> str:
    return ", ".join(names)


def _fields(plan: LayoutPlan, board: Board) -> Json:
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
        "moves": [],
    }


def _lines(plan: LayoutPlan, board: Board) -> Iterator[str]:
    proven = "fewer are not possible" if plan.used == plan.bound else f"at least {plan.bound}"
    yield f"{plan.used} of {board.name}; {proven}."
    for name in plan.unmet:
        yield f"{name} cannot be served: {_why(board)}"
    shapes = Counter(_shape(gpu) for gpu in plan.gpus)
    if shapes:
        yield ""
        yield from table(
            ("GPUS", "SLICES"),
            [[str(count), shape] for shape, count in sorted(shapes.items())],
        )


def _why(board: Board) -> str:
    return (
        f"no row of the throughput says that it fits a slice of {board.name} or the whole; add "
        "one, or take a larger GPU"
    )


def _shape(gpu: Gpu) -> str:
    return " ".join(one.profile for one in gpu.slices)
