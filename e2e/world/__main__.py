"""The commands of a world: up, down, env, run and build."""

import argparse
import os
import select
import shlex
import shutil
import signal
import sys
from functools import partial
from pathlib import Path
from textwrap import indent

from world import binaries, client, supervisor
from world.autoscaling import karpenter
from world.errors import WorldError
from world.folders import DEFAULT_FLEET, worlds
from world.slots import holder
from world.supervisor import Options, lock_of

END_TIMEOUT_MILLISECONDS = 60_000
# The name of the world that `make world` starts and `make down` ends.
DEFAULT_NAME = "world"


def main() -> int:
    options = _parser().parse_args()
    try:
        options.act(options)
    except WorldError as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


def _up(options: argparse.Namespace) -> None:
    say = partial(print, flush=True)
    with client.start(
        options.fleet, options.name, keep=True, progress=say, vllm=options.vllm
    ) as world:
        print(
            f'Cluster "{options.name}" is up. Try:\n'
            f"\n"
            f"{indent(_exports(world), '  ')}\n"
            f"  kubectl get nodes --label-columns nvidia.com/gpu.product\n"
            f"\n"
            f"Prometheus: {world.prometheus_url}\n"
            f"Logs:       {world.folder / 'logs'}\n"
            f"Stop it:    {_stop_command(options.name)}"
        )


def _stop_command(name: str) -> str:
    return (
        "make down"
        if name == DEFAULT_NAME
        else f"PYTHONPATH=e2e python -m world down --name {name}"
    )


def _env(options: argparse.Namespace) -> None:
    try:
        world = client.read(worlds() / options.name)
    except WorldError:
        # The shell that evaluates this must not reach another cluster afterwards.
        print(f"export KUBECONFIG={os.devnull}")
        raise
    print(_exports(world))


def _exports(world: client.World) -> str:
    """What a shell needs to use a world: its programs, beside the commands of Tessera."""
    exported = {
        "KUBECONFIG": world.kubeconfig,
        "TESSERA_PROMETHEUS_URL": world.prometheus_url,
        "HELM_CACHE_HOME": world.folder / "helm",
        "HELM_CONFIG_HOME": world.folder / "helm",
        "HELM_DATA_HOME": world.folder / "helm",
    }
    lines = [f"export {name}={shlex.quote(str(value))}" for name, value in exported.items()]
    path = f"{shlex.quote(str(Path(sys.executable).parent))}:{shlex.quote(str(world.binaries))}"
    return "\n".join([*lines, f"export PATH={path}:$PATH"])


def _node(options: argparse.Namespace) -> None:
    world = client.read(worlds() / options.name)
    acts = {"end": world.end_node, "silence": world.silence, "wake": world.wake}
    acts[options.does](options.node)


def _down(options: argparse.Namespace) -> None:
    folder = worlds() / options.name
    if (pid := holder(lock_of(options.name))) is not None:
        _end(pid)
    elif not folder.exists():
        raise WorldError(f"no world is named {options.name}")
    shutil.rmtree(folder, ignore_errors=True)
    print(f'Cluster "{options.name}" has been removed.')


def _end(pid: int) -> None:
    """Ask the supervisor to end, and insist after a minute."""
    process_fd = os.pidfd_open(pid)
    try:
        os.kill(pid, signal.SIGTERM)
        poller = select.poll()
        poller.register(process_fd, select.POLLIN)
        if not poller.poll(END_TIMEOUT_MILLISECONDS):
            os.kill(pid, signal.SIGKILL)
            poller.poll(END_TIMEOUT_MILLISECONDS)
    finally:
        os.close(process_fd)


def _run(options: argparse.Namespace) -> None:
    run_options = Options(
        fleet=options.fleet,
        name=options.name,
        vllm=options.vllm,
        lifeline=options.lifeline,
        quiet=options.quiet,
    )
    supervisor.run(run_options, partial(print, flush=True))


def _build(_: argparse.Namespace) -> None:
    progress = partial(print, flush=True)
    print(binaries.ensure(progress))
    try:
        print(karpenter.program(progress))
    except WorldError as error:
        # It needs a later Go than the others; what needs it is left out.
        print(f"without Karpenter: {error}", file=sys.stderr)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("world", description="A Kubernetes world on one machine.")
    commands = parser.add_subparsers(required=True)
    up = commands.add_parser("up", help="start a world and leave it running")
    down = commands.add_parser("down", help="end a world")
    env = commands.add_parser("env", help="print what to export for a world that is up")
    node = commands.add_parser("node", help="let a node die or fall silent, or bring it back")
    node.add_argument("does", choices=("end", "silence", "wake"))
    node.add_argument("node")
    run = commands.add_parser("run", help="run a world in the foreground")
    build = commands.add_parser("build", help="only build the programs")
    acts = ((up, _up), (down, _down), (env, _env), (node, _node), (run, _run), (build, _build))
    for command, act in acts:
        command.set_defaults(act=act)
    for command in (up, run):
        command.add_argument("--fleet", type=Path, default=DEFAULT_FLEET, help="the fleet file")
        command.add_argument("--vllm", type=Path, help="virtual environment with a real vLLM")
    for command in (up, down, env, node):
        command.add_argument("--name", default=DEFAULT_NAME, help="default: world")
    run.add_argument("--name", help="default: by its address range")
    run.add_argument("--lifeline", action="store_true", help=argparse.SUPPRESS)
    run.add_argument("--quiet", action="store_true", help=argparse.SUPPRESS)
    return parser


if __name__ == "__main__":
    sys.exit(main())
