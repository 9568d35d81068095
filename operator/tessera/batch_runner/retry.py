"""What to do with a row after each attempt to have it answered. Pure."""

from dataclasses import dataclass, replace
from enum import Enum, auto

# Losses in one round after which a row is suspected to be what ends the engine.
MAX_LOSSES = 2
_INITIAL_DELAY_SECONDS = 0.5
_MAX_DELAY_SECONDS = 30.0
_NARROWING_FACTOR = 16


class RequestOutcome(Enum):
    """What became of a request."""

    ANSWERED = auto()
    REFUSED = auto()
    """The engine says that the request is wrong."""
    FAILED = auto()
    """The engine says that it could not."""
    TIMED_OUT = auto()
    LOST = auto()
    """The engine ended while it had the request."""
    UNSENT = auto()
    """The engine was not there."""


class RetryVerdict(Enum):
    """What to do next."""

    FINISH = auto()
    """The outcome is final."""
    RETRY = auto()
    """Send it again after a delay."""
    WAIT = auto()
    """Send it again once the engine is back."""
    SET_ASIDE = auto()
    """Leave it to the next round, which has fewer rows in flight."""


@dataclass(frozen=True, slots=True)
class Trial:
    """What a row went through in this round."""

    failures: int = 0
    losses: int = 0


def judge(
    trial: Trial, outcome: RequestOutcome, *, retries: int, alone: bool
) -> tuple[Trial, RetryVerdict]:
    """Decide about a row; `alone` says that no other row was in flight.

    A row pays for its own failures with its retries, and never for the engine's restarts, unless
    the engine ends each time that it has this row and no other.
    """
    match outcome:
        case RequestOutcome.ANSWERED | RequestOutcome.REFUSED:
            return trial, RetryVerdict.FINISH
        case RequestOutcome.UNSENT:
            return trial, RetryVerdict.WAIT
        case RequestOutcome.FAILED | RequestOutcome.TIMED_OUT:
            trial = replace(trial, failures=trial.failures + 1)
            return trial, RetryVerdict.RETRY if trial.failures <= retries else RetryVerdict.FINISH
        case RequestOutcome.LOST:
            trial = replace(trial, losses=trial.losses + 1)
            if trial.losses < MAX_LOSSES:
                return trial, RetryVerdict.WAIT
            return trial, RetryVerdict.FINISH if alone else RetryVerdict.SET_ASIDE


def delay_seconds(failures: int, chance: float) -> float:
    """Exponential and capped, with jitter from `chance` in [0, 1)."""
    doublings = min(failures - 1, 10)
    longest = min(_MAX_DELAY_SECONDS, _INITIAL_DELAY_SECONDS * 2.0**doublings)
    return longest * (0.5 + chance / 2)


def rounds(concurrency: int) -> tuple[int, int, int]:
    """Rows in flight in each round: a row that ends the engine is cornered by the last one."""
    return concurrency, max(1, concurrency // _NARROWING_FACTOR), 1
