"""What to do with a row after each attempt to have it answered. Pure."""

from dataclasses import dataclass, replace
from enum import Enum, auto

LOSSES = 2
"""Losses in one round after which a row is suspected to be what ends the engine."""
_FIRST_DELAY_SECONDS = 0.5
_LONGEST_DELAY_SECONDS = 30.0
_NARROWER = 16


class Outcome(Enum):
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


class Verdict(Enum):
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


def judge(trial: Trial, outcome: Outcome, *, retries: int, alone: bool) -> tuple[Trial, Verdict]:
    """Decide about a row; `alone` says that no other row was in flight.

    A row pays for its own failures with its retries, and never for the engine's restarts, unless
    the engine ends each time that it has this row and no other.
    """
    match outcome:
        case Outcome.ANSWERED | Outcome.REFUSED:
            return trial, Verdict.FINISH
        case Outcome.UNSENT:
            return trial, Verdict.WAIT
        case Outcome.FAILED | Outcome.TIMED_OUT:
            trial = replace(trial, failures=trial.failures + 1)
            return trial, Verdict.RETRY if trial.failures <= retries else Verdict.FINISH
        case Outcome.LOST:
            trial = replace(trial, losses=trial.losses + 1)
            if trial.losses < LOSSES:
                return trial, Verdict.WAIT
            return trial, Verdict.FINISH if alone else Verdict.SET_ASIDE


def delay_seconds(failures: int, chance: float) -> float:
    """Exponential and capped, with jitter from `chance` in [0, 1)."""
    doublings = min(failures - 1, 10)
    longest = min(_LONGEST_DELAY_SECONDS, _FIRST_DELAY_SECONDS * 2.0**doublings)
    return longest * (0.5 + chance / 2)


def rounds(concurrency: int) -> tuple[int, int, int]:
    """Rows in flight in each round: a row that ends the engine is cornered by the last one."""
    return concurrency, max(1, concurrency // _NARROWER), 1
