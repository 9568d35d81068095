"""Makes what a command needs beside `.venv`, before its first test: `prepare.py NAME [--full]`.

Go builds programs while pip installs packages; each says what it makes.
"""

import argparse
import subprocess
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TypeAlias

from environments import environment, say, source
from setup import described
from world import binaries
from world.autoscaling import karpenter
from world.errors import AGAIN, WorldError
from world.object_store import binary

Part: TypeAlias = Callable[[], object]


def _karpenter() -> None:
    """Build Karpenter, which needs a later Go than the others; its tests are skipped without it."""
    try:
        karpenter.program(say)
    except WorldError as error:
        say(f"without Karpenter: {error}")


# What Go makes and what pip makes, each one after another.
PROGRAMS: dict[str, Sequence[Part]] = {
    "lint": (partial(binaries.ensure, say, ["helm"]),),
    "test": (partial(binaries.ensure, say, binaries.EVERY_WORLD), binary),
    "test-e2e": (partial(binaries.ensure, say), binary, _karpenter),
}
PACKAGES: dict[str, Sequence[Part]] = {
    "lint": (partial(environment, "images"), partial(environment, "docs")),
    "test": (partial(environment, "postgresql"),),
    "test-e2e": (partial(environment, "postgresql"),),
}
PACKAGES_OF_FULL = (
    partial(environment, "langchain"),
    partial(environment, "litellm"),
    partial(environment, "openai-tests"),
    partial(source, "openai-tests", "openai"),
)


def main() -> None:
    """Exit with a sentence where something cannot be made; what is made stays."""
    parser = argparse.ArgumentParser(prog="prepare", description=__doc__)
    parser.add_argument("command", choices=PROGRAMS)
    parser.add_argument("--full", action="store_true")
    options = parser.parse_args()
    packages = [*PACKAGES[options.command], *(PACKAGES_OF_FULL if options.full else ())]
    try:
        with ThreadPoolExecutor(max_workers=2) as pool:
            sides = [
                pool.submit(lambda parts: [part() for part in parts], side)
                for side in (PROGRAMS[options.command], packages)
            ]
        for side in sides:
            side.result()
    except WorldError as error:
        sys.exit(f"prepare: {error}")
    except (OSError, subprocess.CalledProcessError) as error:
        sys.exit(f"prepare: {described(error)}")
    except KeyboardInterrupt:
        sys.exit(f"prepare: interrupted: {AGAIN}")


if __name__ == "__main__":
    main()
