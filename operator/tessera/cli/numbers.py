"""Numbers on a command line and in reports."""

import math
from datetime import timedelta

from pydantic import TypeAdapter, ValidationError

from tessera.api.inference_service import Slo
from tessera.api.meta import Duration
from tessera.cli.errors import CommandError


def bounded(option: str, value: float, least: float, most: float) -> float:
    """Return the value of an option; raise CommandError where it is not within the bounds."""
    if not (math.isfinite(value) and least <= value <= most):
        raise CommandError(f"{option} {value:g}: write a number from {least:g} to {most:g}")
    return value


def objectives(text: str | None, most: timedelta | None = None) -> tuple[timedelta, timedelta]:
    """Return the TTFT and the ITL of `--slo`, each as in `spec.slo` where it is not named."""
    spans = {"ttft": Slo().ttft_p95, "itl": Slo().itl_p95}
    for item in text.split(",") if text is not None else ():
        key, _, value = item.partition("=")
        try:
            span: timedelta = TypeAdapter(Duration).validate_python(value)
        except ValidationError:
            span = timedelta()
        if key not in spans or span <= timedelta() or (most is not None and span > most):
            limit = "" if most is None else f", up to {most.total_seconds():g}s each"
            raise CommandError(f"--slo {text}: write ttft=1s,itl=33ms, or only one of them{limit}")
        spans[key] = span
    return spans["ttft"], spans["itl"]


def format_seconds(seconds: float) -> str:
    """Return about three digits in a suitable unit."""
    if seconds < 0.01:
        return f"{seconds * 1e3:.2f} ms"
    if seconds < 1:
        return f"{seconds * 1e3:.0f} ms"
    return f"{seconds:.2f} s"
