"""One world as a process: its name, its folder, its log, and the signals that end it."""

import asyncio
import contextlib
import json
import logging
import os
import shutil
import signal
import sys
from collections.abc import Coroutine, Iterator
from dataclasses import dataclass
from pathlib import Path

from world import binaries, fleet
from world.assembly import run_world
from world.autoscaling import karpenter
from world.binaries import Progress
from world.errors import WorldError, require_linux
from world.folders import worlds
from world.kubelet.logs import ContainerHandler, ContainerStream, inside_container
from world.plan import Facts, Plan
from world.slots import free_slot, sole_holder

READY = "ready: "
FACTS = "world.json"
STDIN, STDOUT, STDERR = 0, 1, 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What a world is started with."""

    fleet: Path
    name: str | None = None
    vllm: Path | None = None
    lifeline: bool = False
    """End when standard input does: the starter holds its other end."""
    quiet: bool = False
    """Let go of standard output and error once ready."""


def run(options: Options, progress: Progress) -> None:
    """Run a world until a signal ends it; raises `WorldError` when it fails."""
    require_linux()
    nodes, groups = fleet.read(options.fleet), fleet.read_groups(options.fleet)
    more = [] if all(node.live for node in nodes) else ["kwok"]
    programs = binaries.ensure(progress, [*binaries.EVERY_WORLD, *more])
    core = any(group.autoscaler == "karpenterCore" for group in groups)
    with free_slot() as slot, _folder(options.name or f"world-{slot.number}") as folder:
        log = folder / "logs" / "world.log"
        _log_to(log)

        def announce(facts: Facts) -> None:
            partial = folder / f".{FACTS}"
            partial.write_text(json.dumps(facts, indent=2))
            partial.rename(folder / FACTS)
            progress(f"{READY}{folder}")
            if options.quiet:
                _redirect_output(log)

        plan = Plan(
            nodes=nodes,
            groups=groups,
            binaries=programs,
            karpenter=karpenter.program(progress) if core else None,
            folder=folder,
            slot=slot,
            vllm=options.vllm,
            lifeline=options.lifeline,
            progress=progress,
            announce=announce,
        )
        asyncio.run(_run_until_signal(run_world(plan), lifeline=options.lifeline))


@contextlib.contextmanager
def _folder(name: str) -> Iterator[Path]:
    """The world's own folder, fresh; it is kept for its reader when the world fails."""
    folder = worlds() / name
    with sole_holder(lock_of(name)):
        shutil.rmtree(folder, ignore_errors=True)
        (folder / "logs").mkdir(parents=True)
        try:
            yield folder
        except (WorldError, ExceptionGroup) as failure:
            raise WorldError(f"{_failure_message(failure)}\n(kept for you: {folder})") from failure
        shutil.rmtree(folder)


def lock_of(name: str) -> Path:
    return worlds() / f"{name}.lock"


def _failure_message(failure: Exception) -> str:
    """The reasons in words; a failure that has none stays what it is."""
    if not isinstance(failure, ExceptionGroup):
        return str(failure)
    known, others = failure.split(WorldError)
    if others is not None or known is None:
        raise failure
    return "\n".join(_failure_message(nested) for nested in known.exceptions)


async def _run_until_signal(
    world_coroutine: Coroutine[None, None, None], *, lifeline: bool
) -> None:
    """Run until a signal or the end of the lifeline; neither is a failure."""
    loop = asyncio.get_running_loop()
    task = asyncio.create_task(world_coroutine)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        loop.add_signal_handler(number, task.cancel)
    if lifeline:
        loop.add_reader(STDIN, _end_of_lifeline, loop, task)
    with contextlib.suppress(asyncio.CancelledError):
        await task


def _end_of_lifeline(loop: asyncio.AbstractEventLoop, task: "asyncio.Task[None]") -> None:
    if not os.read(STDIN, 1):
        loop.remove_reader(STDIN)
        task.cancel()


def _log_to(path: Path) -> None:
    """The world's own log; what coroutine containers log goes to theirs, as processes format it."""
    world, containers = logging.FileHandler(path), ContainerHandler()
    world.addFilter(lambda _: not inside_container())
    world.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    # Without a time: a container that fails again ends with the same message as before.
    containers.setFormatter(logging.Formatter("%(levelname)s %(message)s"))
    logging.basicConfig(level=logging.INFO, handlers=[world, containers])
    sys.stdout, sys.stderr = ContainerStream(sys.stdout), ContainerStream(sys.stderr)


def _redirect_output(log: Path) -> None:
    """Write to the log instead of the terminal or pipe of a starter that may be gone."""
    sys.stdout.flush()
    with log.open("ab") as file:
        os.dup2(file.fileno(), STDOUT)
        os.dup2(file.fileno(), STDERR)
