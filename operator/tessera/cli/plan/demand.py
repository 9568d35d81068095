"""`tessera plan --demand`: MIG layouts for a demand, without a cluster."""

import difflib
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import chain
from types import SimpleNamespace

from tessera.api.text import counted
from tessera.cli.cluster import Json
from tessera.cli.errors import CommandError
from tessera.cli.mosaic.drawing import layouts_svg, strip_lines, write_svg
from tessera.cli.output import Output
from tessera.cli.plan.files import read_layout, read_services
from tessera.domain.hardware.gpu_layouts import format_placement
from tessera.domain.hardware.gpu_models import WHOLE_GPU, GpuModel, find_gpu_model, gpu_models
from tessera.domain.mig.demand import GpuOffer
from tessera.domain.mig.fleet import FleetGpu, FleetSlice
from tessera.domain.mig.integer_program import SolverMissingError
from tessera.domain.mig.layout_changes import (
    GpuRepartition,
    Move,
    SliceLocation,
    repartitions,
    replica_moves,
)
from tessera.domain.mig.plan import LayoutPlan, plan_layouts

# More moves per GPU are as good as any number.
_MAX_MOVES_PER_GPU = 1000
# The exit code when a service does not fit on these GPUs, however many there are.
UNMET = 3


def run(arguments: SimpleNamespace) -> Output:
    """Return the plan, with exit code 3 when a service does not fit."""
    gpu_model = _gpu_model(arguments.gpu)
    wanted = read_services(arguments.demand, arguments.throughput, gpu_model)
    moves = arguments.moves_per_gpu
    if moves is not None and not 0 <= moves < _MAX_MOVES_PER_GPU:
        raise CommandError(
            f"--moves-per-gpu {moves:g}: write a number from 0 to {_MAX_MOVES_PER_GPU}"
        )
    current_gpus = read_layout(arguments.current, gpu_model) if arguments.current else ()
    try:
        offers = [GpuOffer(gpu_model=gpu_model, price=1)]
        with _silent_stdout():
            plan = plan_layouts(wanted, offers, current_gpus, moves_per_gpu=moves)
    except SolverMissingError:
        raise CommandError(
            "the solver is not installed; install it with: pip install '.[cli]' in a checkout"
        ) from None
    moved = replica_moves(current_gpus, plan.gpus)
    steps = repartitions(current_gpus, plan.gpus) if current_gpus else []
    if arguments.svg:
        write_svg(arguments.svg, layouts_svg(gpu_model, current_gpus, plan.gpus))
    return Output.of(
        arguments.output,
        chain(
            _plan_lines(plan, gpu_model, current_gpus),
            _change_lines(current_gpus, plan.gpus, moved, steps),
        ),
        partial(_plan_json, plan, gpu_model, moved, steps),
        exit_code=UNMET if plan.unmet else 0,
    )


def _slices_by_gpu(gpus: Sequence[FleetGpu]) -> dict[str, frozenset[FleetSlice]]:
    return {gpu.name: frozenset(gpu.slices) for gpu in gpus if gpu.slices}


@contextmanager
def _silent_stdout() -> Iterator[None]:
    """Discard what native code prints: HiGHS 1.16 prints a banner before it takes options."""
    stdout, null = os.dup(1), os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    try:
        yield
    finally:
        os.dup2(stdout, 1)
        os.close(stdout)
        os.close(null)


def _gpu_model(name: str) -> GpuModel:
    """Return the GPU model with this name, product label or unique prefix, such as H200."""
    if exact := find_gpu_model(name) or find_gpu_model(name.upper()):
        return exact
    matches = [model for model in gpu_models() if model.startswith(f"{name.upper()}-")]
    if len(matches) == 1:
        return gpu_models()[matches[0]]
    if matches:
        raise CommandError(f"--gpu {name} is ambiguous; choose one of {', '.join(matches)}")
    known = [*gpu_models(), *chain.from_iterable(model.products for model in gpu_models().values())]
    suggestions = difflib.get_close_matches(name, known, cutoff=0.5) or list(gpu_models())
    raise CommandError(
        f"--gpu {name} is not a known GPU model with MIG; try {', '.join(suggestions)}"
    )


def _plan_json(
    plan: LayoutPlan, gpu_model: GpuModel, moved: Sequence[Move], steps: Sequence[GpuRepartition]
) -> Json:
    return {
        "gpu": gpu_model.name,
        "gpus": plan.gpus_in_use,
        "lowerBound": plan.bound,
        "gap": round(plan.gap, 6),
        "unmet": list(plan.unmet),
        "layouts": [
            {
                "gpu": gpu.name,
                "slices": [
                    {
                        "profile": mig_slice.profile,
                        "start": mig_slice.start,
                        "service": mig_slice.service,
                    }
                    for mig_slice in gpu.slices
                ],
            }
            for gpu in plan.gpus
        ],
        "moves": [
            {
                "service": move.service,
                "from": _location_json(move.source),
                "to": _location_json(move.target),
            }
            for move in moved
        ],
        "steps": [
            {
                "gpu": step.gpu,
                "displaced": list(step.displaced),
                "destroy": [format_placement(placement) for placement in step.destroyed],
                "create": [format_placement(placement) for placement in step.created],
            }
            for step in steps
        ],
    }


def _location_json(location: SliceLocation) -> Json:
    return {"gpu": location.gpu, "profile": location.profile, "start": location.start}


def _plan_lines(
    plan: LayoutPlan, gpu_model: GpuModel, current_gpus: Sequence[FleetGpu]
) -> Iterator[str]:
    optimality = f"the lower bound is {plan.bound}"
    if plan.gpus_in_use == plan.bound:
        optimality = "fewer are not possible"
    yield f"{plan.gpus_in_use}x {gpu_model.name}; {optimality}."
    for name in plan.unmet:
        yield (
            f"{name} cannot be served: --throughput has no row for it with a profile of "
            f"{gpu_model.name} or {WHOLE_GPU}. Add one, or choose a larger GPU."
        )
    if current_gpus:
        yield from ("", "Before:", *strip_lines(gpu_model, current_gpus), "", "After:")
    elif plan.gpus:
        yield ""
    yield from strip_lines(gpu_model, plan.gpus)


def _change_lines(
    before: Sequence[FleetGpu],
    after: Sequence[FleetGpu],
    moved: Sequence[Move],
    steps: Sequence[GpuRepartition],
) -> Iterator[str]:
    if not before:
        return
    if _slices_by_gpu(before) == _slices_by_gpu(after):
        yield from ("", "Nothing changes.")
        return
    yield ""
    yield f"{counted(len(moved), 'replica')} moved" + (":" if moved else ".")
    for move in moved:
        source, target = _location_text(move.source), _location_text(move.target)
        yield f"  {move.service} from {source} to {target}"
    if steps:
        yield f"{counted(len(steps), 'GPU')} to repartition, in this order as capacity allows:"
    for number, step in enumerate(steps, start=1):
        yield f"  {number}. {step.gpu}: {_step_text(step)}"


def _step_text(step: GpuRepartition) -> str:
    parts = {
        "displace": step.displaced,
        "destroy": map(format_placement, step.destroyed),
        "create": map(format_placement, step.created),
    }
    texts = ((verb, ", ".join(names)) for verb, names in parts.items())
    return "; ".join(f"{verb} {names}" for verb, names in texts if names)


def _location_text(location: SliceLocation) -> str:
    return f"{location.gpu} {format_placement(location.placement)}"
