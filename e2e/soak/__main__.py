"""`make soak`: MINUTES and SEED come from the environment; the last line is for programs."""

import argparse
import asyncio
import json
import secrets
import sys

from soak.run import Soak
from world import start
from world.errors import WorldError


def main() -> int:
    parser = argparse.ArgumentParser("soak", description="Faults for a while, then a comparison.")
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument(
        "--rest", type=float, help="minutes without faults at the end (half of 60 and more)"
    )
    parser.add_argument("--period", type=float, default=20.0, help="seconds between two faults")
    parser.add_argument("--seed", type=int, default=None)
    options = parser.parse_args()
    seed = secrets.randbelow(10**6) if options.seed is None else options.seed
    rest = options.rest
    if rest is None:
        rest = options.minutes / 2 if options.minutes >= 60 else 0.0
    print(f"SEED={seed}", flush=True)
    try:
        with start(fleet=Soak.FLEET) as world:
            soak = Soak(
                world,
                seed,
                seconds=(options.minutes - rest) * 60,
                period=options.period,
                rest_seconds=rest * 60,
            )
            figures = asyncio.run(soak.run())
    except WorldError as error:
        print(error, file=sys.stderr)
        return 1
    for line in figures["different"]:
        print(f"differs: {line}")
    print(f"BENCH {json.dumps(figures)}")
    return 1 if figures["different"] else 0


if __name__ == "__main__":
    sys.exit(main())
