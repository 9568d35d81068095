"""How long a failing container waits; quicker than the real 10 s to 5 min, in the same shape."""

FIRST_SECONDS = 0.5
LONGEST_SECONDS = 10.0
# A container that ran this long starts again without a history.
FORGIVEN_SECONDS = 2 * LONGEST_SECONDS


def pause(failures: int) -> float:
    """The wait before the next start, after so many ends in a row (one or more)."""
    return min(FIRST_SECONDS * 2.0 ** min(failures - 1, 10), LONGEST_SECONDS)


def failures_after(failures: int, ran_seconds: float) -> int:
    return 1 if ran_seconds >= FORGIVEN_SECONDS else failures + 1
