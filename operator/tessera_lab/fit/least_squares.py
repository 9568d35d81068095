"""Least squares without a library: damped Gauss-Newton steps on a handful of unknowns."""

from collections.abc import Callable, Sequence

Residuals = Callable[[Sequence[float]], list[float]]

_DELTA = 1e-5
_MAX_STEPS = 100
# A step that lowers the sum of squares by no more than this share is the last.
_TOLERANCE = 1e-10
_MAX_DAMPING = 1e8


def least_squares(residuals: Residuals, start: Sequence[float]) -> list[float]:
    """Return the unknowns near `start` whose residuals have the smallest sum of squares.

    Unknowns should be of similar size (logarithms of shares are). Equal input gives equal output.
    """
    unknowns, damping = list(start), 1e-2
    errors = residuals(unknowns)
    for _ in range(_MAX_STEPS):
        jacobian = _jacobian(residuals, unknowns, errors)
        normal = [[_dot(slope, column) for column in jacobian] for slope in jacobian]
        descent = [-_dot(slope, errors) for slope in jacobian]
        better = None
        while better is None and damping < _MAX_DAMPING:
            step = solve(_damped(normal, damping), descent)
            trial = [value + change for value, change in zip(unknowns, step, strict=True)]
            remaining = residuals(trial)
            if _dot(remaining, remaining) < _dot(errors, errors):
                better = trial
                damping /= 3
            else:
                damping *= 4
        if better is None:
            return unknowns
        improvement = _dot(errors, errors) - _dot(remaining, remaining)
        last = improvement <= _TOLERANCE * _dot(errors, errors)
        unknowns, errors = better, remaining
        if last:
            return unknowns
    return unknowns


def solve(matrix: Sequence[Sequence[float]], right: Sequence[float]) -> list[float]:
    """Return the solution of a square system, by elimination with the largest pivot."""
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
    solution = [0.0] * size
    for i in reversed(range(size)):
        known_sum = sum(rows[i][j] * solution[j] for j in range(i + 1, size))
        solution[i] = (rows[i][size] - known_sum) / rows[i][i]
    return solution


def _jacobian(residuals: Residuals, point: list[float], errors: list[float]) -> list[list[float]]:
    """Return how every residual changes with each unknown."""
    jacobian = []
    for i, value in enumerate(point):
        shifted = residuals([*point[:i], value + _DELTA, *point[i + 1 :]])
        jacobian.append([(b - a) / _DELTA for a, b in zip(errors, shifted, strict=True)])
    return jacobian


def _damped(normal: list[list[float]], damping: float) -> list[list[float]]:
    return [
        [value + (damping * (value + 1e-9) if i == j else 0.0) for j, value in enumerate(row)]
        for i, row in enumerate(normal)
    ]


def _dot(left: Sequence[float], right: Sequence[float]) -> float:
    return sum(a * b for a, b in zip(left, right, strict=True))
