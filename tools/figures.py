"""The frame of every benchmark: its options, and what it measured, for people and as JSON."""

import argparse
import asyncio
import inspect
import json
import sys
from collections.abc import Awaitable, Callable, Mapping
from typing import Any


def benchmark(
    measure: Callable[..., Mapping[str, Any] | Awaitable[Mapping[str, Any]]],
    width: int = 0,
    *,
    short: Mapping[str, object] | None = None,
    **settings: Mapping[str, Any],
) -> None:
    """Take the parameters of a measurement from the command line, and print its figures.

    Each has a default, whose type its option has; `settings` are what else argparse needs of one.
    With `--short` the values of `short` are the defaults: the least that has all figures.
    """
    parser = argparse.ArgumentParser(description=sys.modules[measure.__module__].__doc__)
    for name, parameter in inspect.signature(measure).parameters.items():
        default = parameter.default
        usual = {"action": "store_true"} if default is False else {"type": type(default)}
        usual |= {"default": default} if default is not False else {}
        parser.add_argument(f"--{name.replace('_', '-')}", **(usual | dict(settings.get(name, {}))))
    if short is not None:
        parser.add_argument("--short", action="store_true", help="measure least, to try all of it")
        if "--short" in sys.argv:
            parser.set_defaults(**short)
    options = vars(parser.parse_args())
    options.pop("short", None)
    figures = measure(**options)
    if isinstance(figures, Mapping):
        print_figures(figures, width)
    else:
        print_figures(asyncio.run(_awaited(figures)), width)


async def _awaited(figures: Awaitable[Mapping[str, Any]]) -> Mapping[str, Any]:
    return await figures


def print_figures(figures: Mapping[str, object], width: int = 0) -> None:
    """Print `BENCH` and the figures as JSON; before it a line for each, if they have a width."""
    if width:
        for name, value in figures.items():
            print(f"{name:>{width}} {value}")
    print(f"BENCH {json.dumps(figures)}")
