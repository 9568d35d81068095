"""The minimum of a function of a few numbers, without its derivatives (Nelder and Mead, 1965).

It suits functions with steps, such as percentiles have, where a derivative says nothing.
"""

from collections.abc import Callable, Sequence

Point = tuple[float, ...]
# Distance of the first corners from the start, along each number.
_START_STEP = 0.4


def minimize(
    function: Callable[[Point], float],
    start: Sequence[float],
    *,
    max_evaluations: int = 600,
    tolerance: float = 1e-4,
) -> Point:
    """Return a point near `start` from which every small step goes up.

    A simplex walks downhill: its highest corner is reflected at the middle of the others, farther
    or less far depending on the values there. It ends when all corners are within `tolerance` of
    the lowest in every coordinate, or after `max_evaluations`. Equal input gives equal output.
    """
    objective = _Objective(function)
    vertices = [(objective.evaluate(point), point) for point in _start_simplex(start)]
    while objective.evaluations < max_evaluations:
        vertices.sort()
        lowest, highest = vertices[0], vertices[-1]
        if all(_is_near(lowest[1], point, tolerance) for _, point in vertices[1:]):
            break
        others = [point for _, point in vertices[:-1]]
        centroid = tuple(sum(values) / len(others) for values in zip(*others, strict=True))
        candidate = _reflect(objective, centroid, vertices)
        if candidate < highest:
            vertices[-1] = candidate
        else:
            vertices[1:] = [
                (objective.evaluate(shrunk), shrunk)
                for shrunk in (_between(lowest[1], point, 0.5) for _, point in vertices[1:])
            ]
    return min(vertices)[1]


class _Objective:
    """The function, with a count of its evaluations."""

    def __init__(self, function: Callable[[Point], float]) -> None:
        self._function = function
        self.evaluations = 0

    def evaluate(self, point: Point) -> float:
        self.evaluations += 1
        return self._function(point)


Vertex = tuple[float, Point]


def _reflect(objective: _Objective, centroid: Point, vertices: Sequence[Vertex]) -> Vertex:
    """Return the best point on the line from the highest corner through the middle."""
    highest = vertices[-1]
    reflected = _evaluate_between(objective, centroid, highest[1], -1.0)
    if reflected < vertices[0]:
        return min(reflected, _evaluate_between(objective, centroid, highest[1], -2.0))
    if reflected < vertices[-2]:
        return reflected
    return _evaluate_between(objective, centroid, min(reflected, highest)[1], 0.5)


def _evaluate_between(objective: _Objective, centroid: Point, point: Point, share: float) -> Vertex:
    candidate = _between(centroid, point, share)
    return objective.evaluate(candidate), candidate


def _start_simplex(start: Sequence[float]) -> list[Point]:
    shifted = [
        tuple(value + _START_STEP * (index == axis) for index, value in enumerate(start))
        for axis in range(len(start))
    ]
    return [tuple(start), *shifted]


def _between(begin: Point, end: Point, share: float) -> Point:
    """Return the point at `share` of the way; above 1 beyond the end, below 0 before the start."""
    return tuple(a + share * (b - a) for a, b in zip(begin, end, strict=True))


def _is_near(point: Point, other: Point, tolerance: float) -> bool:
    return all(abs(a - b) <= tolerance for a, b in zip(point, other, strict=True))
