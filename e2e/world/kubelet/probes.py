"""Probes: when they run, and how many answers in a row count."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass

from world.api import Json

# Asked sooner, every server would be found closed, and asked again only after a whole period.
FIRST_SECONDS = 0.2


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeTiming:
    """The timing of one probe."""

    delay: float
    period: float
    timeout: float
    successes: int
    failures: int


def probe_timing(probe: Json) -> ProbeTiming:
    return ProbeTiming(
        delay=probe.get("initialDelaySeconds", 0),
        period=probe.get("periodSeconds", 10),
        timeout=probe.get("timeoutSeconds", 1),
        successes=probe.get("successThreshold", 1),
        failures=probe.get("failureThreshold", 3),
    )


@dataclass(frozen=True, slots=True)
class Streak:
    """Equal answers in a row."""

    passed: bool | None = None
    length: int = 0

    def then(self, passed: bool) -> "Streak":
        return Streak(passed, self.length + 1 if passed == self.passed else 1)

    def verdict(self, timing: ProbeTiming) -> bool | None:
        """What the streak proves; None while it is too short."""
        enough = timing.successes if self.passed else timing.failures
        return self.passed if self.length >= enough else None


async def verdicts(timing: ProbeTiming, ask: Callable[[], Awaitable[bool]]) -> AsyncIterator[bool]:
    """Ask for ever; tells each verdict that differs from the one before."""
    streak, known = Streak(), None
    await asyncio.sleep(max(timing.delay, FIRST_SECONDS))
    while True:
        streak = streak.then(await ask())
        verdict = streak.verdict(timing)
        if verdict is not None and verdict != known:
            known = verdict
            yield verdict
        await asyncio.sleep(timing.period)
