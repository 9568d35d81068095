"""Least squares without a library: damped Gauss-Newton steps on a handful of unknowns."""

from collections.abc import Callable, Sequence

Residuals = Callable[[Sequence[float]], list[float]]

_NUDGE = 1e-5
_STEPS = 100
_ENOUGH = 1e-10
"""A step that lowers the sum of squares by no more than this share is the last."""
_MOST_DAMPING = 1e8


def least_squares(residuals: Residuals, start: Sequence[float]) -> list[float]:
    """The unknowns near `start` whose residuals have the smallest sum of squares.

    Unknowns should be of like size (logarithms of shares are). Equal input gives equal output.
    """
    found, damping = list(start), 1e-2
    left = residuals(found)
    for _ in range(_STEPS):
        slopes = _slopes(residuals, found, left)
        normal = [[_dot(one, other) for other in slopes] for one in slopes]
        downhill = [-_dot(one, left) for one in slopes]
        better = None
        while better is None and damping < _MOST_DAMPING:
            step = solve(_damped(normal, damping), downhill)
            moved = [value + change for value, change in zip(found, step, strict=True)]
            remaining = residuals(moved)
            if _dot(remaining, remaining) < _dot(left, left):
                better = moved
                damping /= 3
            else:
                damping *= 4
        if better is None:
            return found
        gained = _dot(left, left) - _dot(remaining, remaining)
        last = gained <= _ENOUGH * _dot(left, left)
        found, left = better, remaining
        if last:
            return found
    return found


def solve(matrix: Sequence[Sequence[float]], right: Sequence[float]) -> list[float]:
    """The solution of a square system, by elimination with the largest pivot."""
    size = len(right)
    rows = [[*row, value] for row, value in zip(matrix, right, strict=True)]
    for i in range(size):
        best = max(range(i, size), key=lambda j: abs(rows[j][i]))
        rows[i], rows[best] = rows[best], rows[i]
        if rows[i][i] == 0:
            raise ValueError("the system has no single solution")
        for row in rows[i + 1 :]:
            share = row[i] / rows[i][i]
            row[i:] = [a - share * b for a, b in zip(row[i:], rows[i][i:], strict=True)]
    found = [0.0] * size
    for i in reversed(range(size)):
        known = sum(rows[i][j] * found[j] for j in range(i + 1, size))
        found[i] = (rows[i][size] - known) / rows[i][i]
    return found


def _slopes(residuals: Residuals, at: list[float], left: list[float]) -> list[list[float]]:
    """How every residual changes with each unknown."""
    slopes = []
    for i, value in enumerate(at):
        nudged = residuals([*at[:i], value + _NUDGE, *at[i + 1 :]])
        slopes.append([(b - a) / _NUDGE for a, b in zip(left, nudged, strict=True)])
    return slopes


def _damped(normal: list[list[float]], damping: float) -> list[list[float]]:
    return [
        [value + (damping * (value + 1e-9) if i == j else 0.0) for j, value in enumerate(row)]
        for i, row in enumerate(normal)
    ]


def _dot(one: Sequence[float], other: Sequence[float]) -> float:
    return sum(a * b for a, b in zip(one, other, strict=True))
