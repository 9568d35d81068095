"""The least value of a function of a few numbers, without its slopes (Nelder and Mead, 1965).

For ground with steps in it, such as percentiles have, where a slope says nothing.
"""

from collections.abc import Callable, Sequence

Point = tuple[float, ...]
_STEP = 0.4
"""Distance of the first corners from the start, along each number."""


def least(
    height: Callable[[Point], float],
    start: Sequence[float],
    *,
    most: int = 600,
    close: float = 1e-4,
) -> Point:
    """A point near `start` from which every small step goes up.

    A valley is walked down by a simplex: the highest corner is mirrored at the middle of the
    others, further or less far as the ground is. It ends when all corners are within `close` of the
    lowest in every number, or after `most` looks at the ground. The same start gives the same end.
    """
    ground = _Ground(height)
    corners = [(ground.at(point), point) for point in _corners(start)]
    while ground.looks < most:
        corners.sort()
        lowest, highest = corners[0], corners[-1]
        if all(_near(lowest[1], point, close) for _, point in corners[1:]):
            break
        middle = _middle([point for _, point in corners[:-1]])
        found = _mirrored(ground, middle, corners)
        if found < highest:
            corners[-1] = found
        else:
            corners[1:] = [
                (ground.at(closer), closer)
                for closer in (_between(lowest[1], point, 0.5) for _, point in corners[1:])
            ]
    return min(corners)[1]


class _Ground:
    """Counts how often it was looked at."""

    def __init__(self, height: Callable[[Point], float]) -> None:
        self._height = height
        self.looks = 0

    def at(self, point: Point) -> float:
        self.looks += 1
        return self._height(point)


Corner = tuple[float, Point]


def _mirrored(ground: _Ground, middle: Point, corners: Sequence[Corner]) -> Corner:
    """The best of what lies on the line from the highest corner through the middle."""
    highest = corners[-1]
    mirrored = _looked(ground, middle, highest[1], -1.0)
    if mirrored < corners[0]:
        return min(mirrored, _looked(ground, middle, highest[1], -2.0))
    if mirrored < corners[-2]:
        return mirrored
    return _looked(ground, middle, min(mirrored, highest)[1], 0.5)


def _looked(ground: _Ground, middle: Point, point: Point, share: float) -> Corner:
    there = _between(middle, point, share)
    return ground.at(there), there


def _corners(start: Sequence[float]) -> list[Point]:
    moved = [
        tuple(value + _STEP * (place == along) for place, value in enumerate(start))
        for along in range(len(start))
    ]
    return [tuple(start), *moved]


def _middle(points: Sequence[Point]) -> Point:
    return tuple(sum(values) / len(points) for values in zip(*points, strict=True))


def _between(begin: Point, end: Point, share: float) -> Point:
    """From one point so much of the way to the other; beyond it above 1, away from it below 0."""
    return tuple(a + share * (b - a) for a, b in zip(begin, end, strict=True))


def _near(one: Point, other: Point, close: float) -> bool:
    return all(abs(a - b) <= close for a, b in zip(one, other, strict=True))
