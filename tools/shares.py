"""Shares of their peaks that GPUs reach: fits, and means for hardware without measurements."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TypeVar

from tessera.domain.perf.roofline import ExpertKernel
from tessera.domain.perf.table import ExpertFamily, ExpertShares, ExpertTable
from tessera_lab.fit.least_squares import least_squares

# Pull of each unknown towards its guess: settles what rows of a single model leave open.
_PRIOR = 0.02
NameT = TypeVar("NameT")


def fit_shares(
    guesses: Mapping[NameT, float],
    errors: Callable[[Mapping[NameT, float]], list[float]],
    *,
    digits: int,
) -> dict[NameT, float]:
    """Return the positive values with the smallest squares of relative errors, rounded."""
    start = [math.log(guess) for guess in guesses.values()]

    def values(at: Sequence[float]) -> dict[NameT, float]:
        return {name: math.exp(value) for name, value in zip(guesses, at, strict=True)}

    def residuals(at: Sequence[float]) -> list[float]:
        pulls = [_PRIOR * (value - guess) for value, guess in zip(at, start, strict=True)]
        return errors(values(at)) + pulls

    best = values(least_squares(residuals, start))
    return {name: float(f"{value:.{digits}g}") for name, value in best.items()}


def rms(errors: Iterable[float]) -> float:
    """Return the root mean square."""
    squares = [error * error for error in errors]
    return math.sqrt(sum(squares) / len(squares))


def geometric_mean(values: Iterable[float]) -> float:
    """Return the mean in which a half and a double cancel, to four digits."""
    numbers = list(values)
    return float(f"{math.exp(sum(map(math.log, numbers)) / len(numbers)):.4g}")


def usual_experts(families: Sequence[ExpertFamily]) -> dict[ExpertKernel, ExpertShares]:
    """Return the means of each kernel of experts."""
    return {
        kernel: ExpertShares(
            **{
                name: geometric_mean(getattr(family.kernels[kernel], name) for family in known)
                for name in ExpertShares.model_fields
            }
        )
        for kernel in dict.fromkeys(kernel for family in families for kernel in family.kernels)
        if (known := [family for family in families if kernel in family.kernels])
    }


def without_family(experts: ExpertTable, product: str) -> ExpertTable:
    """Return the shares as they are where the family of a product was not measured."""
    families = tuple(each for each in experts.families if not product.startswith(each.family))
    return experts.model_copy(update={"families": families, "usual": usual_experts(families)})
