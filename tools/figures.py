"""The end of every benchmark: what it measured, for people and as JSON."""

import json
from collections.abc import Mapping


def print_figures(figures: Mapping[str, object], width: int = 0) -> None:
    """Print `BENCH` and the figures as JSON; before it a line for each, if they have a width."""
    if width:
        for name, value in figures.items():
            print(f"{name:>{width}} {value}")
    print(f"BENCH {json.dumps(figures)}")
