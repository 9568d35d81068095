"""Time series that policies remember: windows of samples."""

from collections import deque


class TimeWindow:
    """The values of the last seconds."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._values: deque[tuple[float, float]] = deque()

    def add(self, at: float, value: float) -> None:
        """Add a value; those that are as old as the window leave."""
        self._values.append((at, value))
        while self._values[0][0] <= at - self._seconds and len(self._values) > 1:
            self._values.popleft()

    def mean(self) -> float:
        """Return the mean of the values; at least one was added."""
        return sum(value for _, value in self._values) / len(self._values)

    def max(self) -> float:
        """Return the largest value."""
        return max(value for _, value in self._values)

    def min(self) -> float:
        """Return the smallest value."""
        return min(value for _, value in self._values)
