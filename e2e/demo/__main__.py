"""`python -m demo [show]`: start the world, install the chart, play the scenes of a show."""

import argparse
import asyncio
import functools
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TypeAlias

import world as worlds
from demo import batch, budget, engine, mig, scale, serve, table
from demo.stage import (
    EXAMPLES,
    Say,
    SceneError,
    Stage,
    all_ready,
    apply_examples,
    cleared,
    install,
)
from world.api import connect

FLEET = Path(__file__).parent / "fleet.yaml"
Scene: TypeAlias = Callable[[Stage], Awaitable[None]]
SHOWS: dict[str, tuple[tuple[str, Scene], ...]] = {
    "main": (("serve", serve.play), ("scale", scale.play), ("table", table.play)),
    "budget": (("budget", budget.play),),
    "batch": (("batch", batch.play),),
}
ALL, MIG = "all", "mig"
MIG_FLEET = Path(__file__).parent / "mig.yaml"


def main() -> int:
    """Exit 1 when a scene fails, naming it."""
    parser = argparse.ArgumentParser(prog="demo")
    parser.add_argument("show", nargs="?", choices=(*SHOWS, MIG, ALL), default="main")
    parser.add_argument("--keep", action="store_true", help="keep the world afterwards")
    parser.add_argument("--engine", choices=("sim", "vllm"), default="sim")
    parser.add_argument(
        "--backend", choices=mig.BACKENDS, default="Agent", help="who cuts GPUs in the show mig"
    )
    options = parser.parse_args()
    begun = time.monotonic()

    def say(text: str) -> None:
        print(f"[{time.monotonic() - begun:5.1f} s] {text}", flush=True)

    try:
        name = "world" if options.keep else None
        vllm = engine.installed() if options.engine == "vllm" else None
        with worlds.start(
            fleet=MIG_FLEET if options.show == MIG else FLEET,
            name=name,
            keep=options.keep,
            progress=say,
            vllm=vllm,
        ) as world:
            if options.show == MIG:
                asyncio.run(play_mig(world, say, options.backend))
            else:
                asyncio.run(play(world, say, options.show, vllm))
            if options.keep:
                _what_to_try(world)
    except (SceneError, worlds.WorldError) as error:
        print(f"demo: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("demo: interrupted; the world is gone", file=sys.stderr)
        return 130
    say("all scenes came out as they must")
    return 0


async def play(world: worlds.World, say: Say, show: str, vllm: Path | None) -> None:
    """Everything between the start and the end of the world."""
    async with connect(world.kubeconfig) as api:
        stage = Stage(world, api, say)
        say("installing the chart with Helm")
        await install(stage)
        for index, name in enumerate(SHOWS if show == ALL else (show,)):
            if index:
                await cleared(stage)
            await _play(stage, name)
        if vllm is not None:
            await _scene(stage, "engine", functools.partial(engine.play, venv=vllm))


async def play_mig(world: worlds.World, say: Say, backend: mig.Backend) -> None:
    """The show whose nodes are cut anew."""
    async with connect(world.kubeconfig) as api:
        stage = Stage(world, api, say)
        say("installing the chart with Helm")
        await mig.install(stage, backend)
        await _scene(stage, MIG, functools.partial(mig.play, backend=backend))


async def _play(stage: Stage, show: str) -> None:
    if show == "main":
        stage.say("applying examples/")
        await apply_examples(stage)
        await all_ready(stage)
    else:
        await stage.run("kubectl", "apply", "-f", str(EXAMPLES / "00-pools.yaml"))
    for name, scene in SHOWS[show]:
        await _scene(stage, name, scene)


async def _scene(stage: Stage, name: str, scene: Scene) -> None:
    stage.say(f"scene {name}")
    try:
        await scene(stage)
    except SceneError as error:
        raise SceneError(f"scene {name}: {error}") from error


def _what_to_try(world: worlds.World) -> None:
    print(
        f"\nThe world is kept. Try:\n\n"
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
