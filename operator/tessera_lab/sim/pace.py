"""Steps on the wall clock: the mean speed holds although single waits are never exact."""


class StepPacer:
    """When the present step ends, and how far the machine falls behind."""

    def __init__(self) -> None:
        self.max_late_seconds = 0.0
        """The latest that a step ended after its time."""
        self.lost_seconds = 0.0
        """What was never caught up before the engine became idle."""
        self._started_seconds = 0.0
        """What all steps so far should take, the present one in full."""
        self._due: float | None = None
        self._late_seconds = 0.0

    def busy_seconds(self, now: float) -> float:
        """Engine work so far; of the present step only what has passed."""
        remaining = 0.0 if self._due is None else max(0.0, self._due - now)
        return self._started_seconds - remaining

    def begin_step(self, seconds: float, now: float) -> float:
        """Begin a step that takes so long; wait the returned time before its end.

        A step begins where the one before it should have ended, so that a late one is made up for.
        """
        self._started_seconds += seconds
        self._due = (now if self._due is None else self._due) + seconds
        return max(0.0, self._due - now)

    def end_step(self, now: float) -> None:
        """The step was given out."""
        self._late_seconds = max(0.0, now - (now if self._due is None else self._due))
        self.max_late_seconds = max(self.max_late_seconds, self._late_seconds)

    def pause(self) -> None:
        """Nothing is left to do: the next step begins when there is."""
        self.lost_seconds += self._late_seconds
        self._due, self._late_seconds = None, 0.0
