"""Numbers on a command line."""

import math

from tessera.cli.errors import CommandError


def bounded(option: str, value: float, least: float, most: float) -> float:
    """Return the value of an option; raise CommandError where it is not within the bounds."""
    if not (math.isfinite(value) and least <= value <= most):
        raise CommandError(f"{option} {value:g}: write a number from {least:g} to {most:g}")
    return value
