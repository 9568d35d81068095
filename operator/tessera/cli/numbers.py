"""Numbers on a command line and in reports."""

import math

from tessera.cli.errors import CommandError


def bounded(option: str, value: float, least: float, most: float) -> float:
    """Return the value of an option; raise CommandError where it is not within the bounds."""
    if not (math.isfinite(value) and least <= value <= most):
        raise CommandError(f"{option} {value:g}: write a number from {least:g} to {most:g}")
    return value


def format_seconds(seconds: float) -> str:
    """Return about three digits in a suitable unit."""
    if seconds < 0.01:
        return f"{seconds * 1e3:.2f} ms"
    if seconds < 1:
        return f"{seconds * 1e3:.0f} ms"
    return f"{seconds:.2f} s"
