"""Retry policy of a row; pure functions."""

from dataclasses import dataclass, replace
from enum import Enum, auto

# Losses in one round after which the row is suspected of crashing the engine.
MAX_LOSSES = 2
_INITIAL_DELAY_SECONDS = 0.5
_MAX_DELAY_SECONDS = 30.0
_NARROWING_FACTOR = 16


class RequestOutcome(Enum):
    """Outcome of a request."""

    ANSWERED = auto()
    REFUSED = auto()
    """The engine rejected the request as invalid."""
    FAILED = auto()
    """The engine failed to process the request."""
    TIMED_OUT = auto()
    LOST = auto()
    """The engine terminated while it processed the request."""
    UNSENT = auto()
    """The engine was not reachable."""
    UNAVAILABLE = auto()
    """The engine failed to process any request."""


class RetryVerdict(Enum):
    """Next step for a row."""

    FINISH = auto()
    """The outcome is final."""
    RETRY = auto()
    """Send the row again after a delay."""
    WAIT = auto()
    """Send the row again once the engine is ready."""
    SET_ASIDE = auto()
    """Leave the row to the next round, which has fewer rows in flight."""


@dataclass(frozen=True, slots=True)
class Trial:
    """Failures and losses of a row in this round."""

    failures: int = 0
    losses: int = 0


def judge(
    trial: Trial, outcome: RequestOutcome, *, retries: int, alone: bool
) -> tuple[Trial, RetryVerdict]:
    """Return the updated trial and the next step; `alone` means that no other row was in flight.

    A row's own failures use up its retries. Those of the engine do not, unless the engine
    terminates each time it processes this row alone.
    """
    match outcome:
        case RequestOutcome.ANSWERED | RequestOutcome.REFUSED:
            return trial, RetryVerdict.FINISH
        case RequestOutcome.UNSENT | RequestOutcome.UNAVAILABLE:
            return trial, RetryVerdict.WAIT
        case RequestOutcome.FAILED | RequestOutcome.TIMED_OUT:
            trial = replace(trial, failures=trial.failures + 1)
            return trial, RetryVerdict.RETRY if trial.failures <= retries else RetryVerdict.FINISH
        case RequestOutcome.LOST:
            trial = replace(trial, losses=trial.losses + 1)
            if trial.losses < MAX_LOSSES:
                return trial, RetryVerdict.WAIT
            return trial, RetryVerdict.FINISH if alone else RetryVerdict.SET_ASIDE


def delay_seconds(failures: int, random_fraction: float) -> float:
    """Return the exponential backoff with a cap, and jitter from `chance` in [0, 1)."""
    doublings = min(failures - 1, 10)
    longest = min(_MAX_DELAY_SECONDS, _INITIAL_DELAY_SECONDS * 2.0**doublings)
    return longest * (0.5 + random_fraction / 2)


def rounds(concurrency: int) -> tuple[int, int, int]:
    """Return the rows in flight of each round."""
    # The last round sends one row at a time, which isolates a row that crashes the engine.
    return concurrency, max(1, concurrency // _NARROWING_FACTOR), 1
