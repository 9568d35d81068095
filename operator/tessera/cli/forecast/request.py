"""The assumptions of `tessera forecast`, from its options or from a saved forecast."""

import re
from types import SimpleNamespace

from pydantic import ValidationError

from tessera.cli.errors import CommandError
from tessera.cli.files import read_text
from tessera.domain.economics.forecast import PER_MONTH, Assumptions, Factor, FactorRange

_NUMBER = r"\d{1,15}(?:\.\d{0,9})?(?:e\d{1,2})?"
_RANGE = re.compile(rf"({_NUMBER})(?::({_NUMBER}):({_NUMBER}))?")
# Without them nothing can be said.
_NEEDED = (Factor.REQUESTS, Factor.PROMPT, Factor.ANSWER)
_EXAMPLE = (
    "such as tessera forecast --requests 50:80:200/min --prompt-tokens 300 --answer-tokens 200"
)


def requested_assumptions(arguments: SimpleNamespace) -> Assumptions:
    """Return what the options assume; CommandError where they are invalid."""
    for factor in _NEEDED:
        if getattr(arguments, factor) is None:
            raise CommandError(f"no {_option(factor)}: write what you expect, {_EXAMPLE}")
    ranges = {factor: _factor_range(factor, getattr(arguments, factor)) for factor in Factor}
    try:
        return Assumptions(service=arguments.service, **ranges)
    except ValidationError as error:
        raise CommandError(f"{_problem(error)}; {_EXAMPLE}") from None


def saved_assumptions(arguments: SimpleNamespace) -> Assumptions:
    """Return those of the file of --compare; CommandError where it is none of a forecast."""
    for name in (*_NEEDED, "model", "save"):
        if getattr(arguments, name) is not None:
            raise CommandError(
                f"{_option(name)} is of a new forecast, and --compare reads a saved one: write "
                "only one of them"
            )
    path = arguments.compare
    text = read_text("--compare", path)
    try:
        assumptions = Assumptions.model_validate_json(text)
        if arguments.service is not None:
            fields = assumptions.model_dump() | {"service": arguments.service}
            assumptions = Assumptions.model_validate(fields)
    except ValidationError as error:
        raise CommandError(
            f"--compare {path}: {_problem(error)}; write the file with tessera forecast --save"
        ) from None
    return assumptions


def _factor_range(factor: Factor, text: str) -> FactorRange:
    number, slash, unit = text.partition("/")
    match = _RANGE.fullmatch(number)
    is_rate = factor is Factor.REQUESTS
    if match is None or bool(slash) != is_rate or (is_rate and unit not in PER_MONTH):
        rate = f" with /{', /'.join(PER_MONTH)}" if is_rate else ""
        raise CommandError(
            f"{_option(factor)} {text}: write a number or low:likely:high{rate}, {_EXAMPLE}"
        )
    times = PER_MONTH[unit] if is_rate else 1
    low, likely, high = (float(each or match[1]) * times for each in match.groups())
    try:
        return FactorRange(low=low, likely=likely, high=high)
    except ValidationError:
        raise CommandError(
            f"{_option(factor)} {text}: write ascending numbers low:likely:high, {_EXAMPLE}"
        ) from None


def _option(name: str) -> str:
    return name.upper() if name == "model" else f"--{name.replace('_', '-')}"


def _problem(error: ValidationError) -> str:
    """Return the first problem, with the path of its field."""
    first = error.errors()[0]
    path = ".".join(map(str, first["loc"]))
    message = first["msg"].removeprefix("Value error, ")
    return f"{path}: {message}" if path else message
