"""The command of the demos: options, world, scenes, report."""

import argparse
import asyncio
import contextlib
import fcntl
import os
import resource
import shutil
import signal
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import world as worlds
from demo import mig, report
from demo.cluster import InstalledCluster, Notebook, StepError
from demo.engine import engine_environment
from demo.mission import DEMOS, Demo, find_demo
from demo.recorded import Curves, RecordedRun, RecordedStep, to_json
from demo.scene import play
from demo.signals import read_curves
from tessera import __version__
from world.api import connect

_KEPT_WORLD = "world"
# What a world says of its name.
_RUNS_ALREADY = f"a world named {_KEPT_WORLD} runs already"
SIGNALS = (signal.SIGINT, signal.SIGTERM)


def run(arguments: Sequence[str] | None = None) -> int:
    """Run the demo that the arguments name; return the exit code."""
    options = _parser().parse_args(arguments)
    file = Path(options.report).resolve() if options.demo == DEMOS[0] else None
    try:
        with _reserved(file):
            _run_in_world(options, file)
    except (StepError, worlds.WorldError) as error:
        advice = "; make down ends it" if _RUNS_ALREADY in str(error) else ""
        print(f"demo: {error}{advice}", file=sys.stderr)
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="demo")
    parser.add_argument("demo", nargs="?", choices=DEMOS, default=DEMOS[0])
    parser.add_argument("--keep", action="store_true", help="keep the world afterwards")
    parser.add_argument("--engine", choices=("sim", "vllm"), default="sim")
    parser.add_argument(
        "--report",
        default="report.html",
        help="file of the mission's report; NAME.json has the figures that it is made from",
    )
    parser.add_argument(
        "--backend",
        choices=mig.BACKENDS,
        default="Agent",
        help="what partitions GPUs in the demo mig",
    )
    parser.add_argument("--require-budget", action="store_true", help="install with requireBudget")
    return parser


@contextlib.contextmanager
def _reserved(path: Path | None) -> Iterator[None]:
    """Keep the file of a report for this run, and leave none that is empty.

    StepError if it cannot be written, or another demo has it.
    """
    if path is None:
        yield
        return
    other = "name another file: make demo REPORT=FILE"
    try:
        file = path.open("a", encoding="utf-8")
    except OSError as error:
        raise StepError(f"{path} cannot be written: {error.strerror}; {other}") from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise StepError(
                f"another demo runs, and will write {path}; wait until it has ended, or {other}"
            ) from None
        try:
            yield
        finally:
            if not path.stat().st_size:
                path.unlink()


def _run_in_world(options: argparse.Namespace, file: Path | None) -> None:
    """Play a demo in a world of its own, and write its report.

    KeyboardInterrupt when a signal ends it, which leaves no world.
    """
    # Of what is printed here, and by the commands that this starts.
    os.environ["COLUMNS"] = str(shutil.get_terminal_size((100, 24)).columns)
    vllm = engine_environment() if options.engine == "vllm" else None
    demo = find_demo(options.demo, options.backend, vllm)
    notebook = Notebook()
    values = [f"requireBudget={str(options.require_budget).lower()}"]

    def say(text: str) -> None:
        print(f"[{notebook.seconds:5.1f} s] {text}", flush=True)

    with worlds.start(
        fleet=demo.fleet,
        name=_KEPT_WORLD if options.keep else None,
        keep=options.keep,
        progress=say,
        vllm=vllm,
    ) as world:
        try:
            steps, curves = asyncio.run(_play(demo, world, notebook, values))
        except StepError as error:
            if options.keep:
                raise StepError(f"{error}\nIts cluster stays up: make down ends it.") from error
            raise
        except (asyncio.CancelledError, KeyboardInterrupt):
            if options.keep:
                os.kill(world.pid, signal.SIGTERM)
                os.waitpid(world.pid, 0)
            raise KeyboardInterrupt from None
        if options.keep:
            _print_commands(world)
    seconds = notebook.seconds
    cpu_seconds = None if options.keep else _cpu_seconds()
    used = "" if cpu_seconds is None else f", {cpu_seconds:.0f} s of CPU"
    say(f"all steps succeeded in {seconds:.0f} s{used}")
    if file is None:
        return
    recorded = RecordedRun(
        version=__version__,
        started=notebook.started,
        seconds=round(seconds, 1),
        cpu_seconds=None if cpu_seconds is None else round(cpu_seconds, 1),
        steps=steps,
        curves=curves,
        moments=tuple(notebook.moments),
        mosaic_before=notebook.mosaics[0],
        mosaic_after=notebook.mosaics[-1],
        bill=notebook.bill,
    )
    form = to_json if file.suffix == ".json" else report.page
    file.write_text(form(recorded), encoding="utf-8")
    print(f"Report:     {file}")


async def _play(
    demo: Demo, world: worlds.World, notebook: Notebook, values: Sequence[str]
) -> tuple[tuple[RecordedStep, ...], Curves]:
    """Install the chart, play the scenes, and read what Prometheus has of them."""
    task, loop = asyncio.current_task(), asyncio.get_running_loop()
    assert task is not None

    def interrupt() -> None:
        if not task.cancelling():
            task.cancel()

    # Until the loop is closed, so that a second signal does not interrupt the end.
    for number in SIGNALS:
        loop.add_signal_handler(number, interrupt)

    def write(text: str) -> None:
        print(text, flush=True)

    async with connect(world.kubeconfig) as api:
        cluster = InstalledCluster(
            world, api, lambda text: write(f"[{notebook.seconds:5.1f} s] {text}"), notebook
        )
        await demo.install(cluster, *values)
        steps = await play(cluster, demo.acts, write, int(os.environ["COLUMNS"]))
        return steps, await read_curves(world.prometheus_url, notebook.begun)


def _cpu_seconds() -> float:
    """Return the CPU time of this process and of all children that have ended."""
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def _print_commands(world: worlds.World) -> None:
    print(
        f"\nThe world stays up. Try:\n\n"
        f"  export KUBECONFIG={world.kubeconfig}\n"
        f"  export PATH={world.binaries}:$PATH\n"
        f"  kubectl get tsvc -A -o wide\n"
        f"  kubectl -n team-a describe tsvc chat\n"
        f"  kubectl explain tsvc.spec.scaling\n"
        f"  kubectl get acceleratorpools\n\n"
        f"Prometheus: {world.prometheus_url}\n"
        f"The end:    make down"
    )
