"""`python -m demo [NAME]`: start the world, install the chart, run the steps of a demo."""

import argparse
import asyncio
import functools
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TypeAlias

import world as worlds
from demo import batch, budget, burst, engine, gateway, mig, scale, serve, table
from demo.cluster import (
    EXAMPLES,
    InstalledCluster,
    Say,
    StepError,
    all_ready,
    apply_examples,
    clear,
    fund,
    install,
)
from world.api import connect

FLEET = Path(__file__).parent / "fleet.yaml"
Step: TypeAlias = Callable[[InstalledCluster], Awaitable[None]]
DEMOS: dict[str, tuple[tuple[str, Step], ...]] = {
    "main": (
        ("serve", serve.run),
        ("scale", scale.run),
        ("burst", burst.run),
        ("table", table.run),
    ),
    "budget": (("budget", budget.run),),
    "batch": (("batch", batch.run),),
    "gateway": (("gateway", gateway.run),),
}
ALL, MIG = "all", "mig"
# The namespaces of each demo that its own steps give no budget.
NAMESPACES = {
    "main": ("team-a", "team-b"),
    "budget": (),
    "batch": (batch.NAMESPACE,),
    "gateway": (),
}


def main() -> int:
    """Run a demo; exit with 1 when a step fails, naming it."""
    parser = argparse.ArgumentParser(prog="demo")
    parser.add_argument("demo", nargs="?", choices=(*DEMOS, MIG, ALL), default="main")
    parser.add_argument("--keep", action="store_true", help="keep the world afterwards")
    parser.add_argument("--engine", choices=("sim", "vllm"), default="sim")
    parser.add_argument(
        "--backend",
        choices=mig.BACKENDS,
        default="Agent",
        help="what partitions GPUs in the demo mig",
    )
    parser.add_argument(
        "--require-budget",
        action="store_true",
        help="install with requireBudget, and give every tenant of a demo a budget",
    )
    options = parser.parse_args()
    begun = time.monotonic()

    def say(text: str) -> None:
        print(f"[{time.monotonic() - begun:5.1f} s] {text}", flush=True)

    try:
        name = "world" if options.keep else None
        vllm = engine.engine_environment() if options.engine == "vllm" else None
        with worlds.start(
            fleet=mig.WHOLE.nodes if options.demo == MIG else FLEET,
            name=name,
            keep=options.keep,
            progress=say,
            vllm=vllm,
        ) as world:
            if options.demo == MIG:
                asyncio.run(
                    run_mig(world, say, options.backend, require_budget=options.require_budget)
                )
            else:
                asyncio.run(
                    run_demo(world, say, options.demo, vllm, require_budget=options.require_budget)
                )
            if options.keep:
                _print_commands(world)
    except (StepError, worlds.WorldError) as error:
        print(f"demo: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("demo: interrupted; the world has ended", file=sys.stderr)
        return 130
    say("all steps succeeded")
    return 0


async def run_demo(
    world: worlds.World, say: Say, demo: str, vllm: Path | None, *, require_budget: bool
) -> None:
    """Install the chart in the world, and run the steps of a demo or of all."""
    async with connect(world.kubeconfig) as api:
        cluster = InstalledCluster(world, api, say)
        say("installing the chart with Helm")
        await install(cluster, f"requireBudget={str(require_budget).lower()}")
        for index, name in enumerate(DEMOS if demo == ALL else (demo,)):
            if index:
                await clear(cluster)
                await cluster.run("kubectl", "delete", "tenantbudgets", "--all")
            if require_budget and NAMESPACES[name]:
                await fund(cluster, f"demo-{name}", *NAMESPACES[name])
            await _run_steps(cluster, name)
        if vllm is not None:
            await _run_step(cluster, "engine", functools.partial(engine.run, venv=vllm))


async def run_mig(
    world: worlds.World,
    say: Say,
    backend: mig.Backend,
    fleet: mig.Fleet = mig.WHOLE,
    *,
    require_budget: bool = False,
) -> None:
    """Run the demo whose GPUs are repartitioned."""
    async with connect(world.kubeconfig) as api:
        cluster = InstalledCluster(world, api, say)
        say("installing the chart with Helm")
        await mig.install(cluster, backend, require_budget=require_budget)
        if require_budget:
            await fund(cluster, "demo-mig", mig.NAMESPACE)
        await _run_step(cluster, MIG, functools.partial(mig.run, backend=backend, fleet=fleet))


async def _run_steps(cluster: InstalledCluster, demo: str) -> None:
    if demo == "main":
        cluster.say("applying examples/")
        await apply_examples(cluster)
        await all_ready(cluster)
    else:
        await cluster.run("kubectl", "apply", "-f", str(EXAMPLES / "00-pools.yaml"))
    for name, step in DEMOS[demo]:
        await _run_step(cluster, name, step)


async def _run_step(cluster: InstalledCluster, name: str, step: Step) -> None:
    cluster.say(f"step {name}")
    try:
        await step(cluster)
    except StepError as error:
        raise StepError(f"step {name}: {error}") from error


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


if __name__ == "__main__":
    sys.exit(main())
