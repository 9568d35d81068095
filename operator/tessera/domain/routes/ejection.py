"""When a provider is left alone for a time, since it fails or takes no more requests."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

# A call waits for so long, and is then sent once more.
PATIENCE_SECONDS = 2.0
# Of what providers ask for.
_MAX_SECONDS = 60.0
_FAILURES, _REFUSALS = 3, 2
_MAX_PAUSE_SECONDS, _MAX_PAUSES = 30.0, 6


@dataclass(frozen=True, slots=True, kw_only=True)
class Ejection:
    """What came of the last calls of one tenant at one provider.

    Moments are seconds of a monotonic clock.
    """

    failures: int = 0
    """Since its last answer."""
    refusals: int = 0
    """By a status of 429, since its last answer."""
    pauses: int = 0
    """Times that it was ejected since its last answer, as far as they count."""
    until: float = 0.0
    """It is asked nothing before."""
    tried_until: float = 0.0
    """After an ejection one call tries it: others wait for its end, and until then at most."""

    def seconds(self, now: float) -> float:
        """Return for how long it is asked nothing; 0 if it may be asked."""
        return max(0.0, self.until - now, self.tried_until - now)

    def asked(self, now: float) -> "Ejection":
        """Return what follows a call."""
        return replace(self, tried_until=now + self._pause_seconds) if self.pauses else self

    def finished(self, asked_at: float) -> "Ejection":
        """Return what follows the end of a call that was asked at a moment, whatever came of it."""
        was_trial = self.tried_until == asked_at + self._pause_seconds
        return replace(self, tried_until=0.0) if was_trial else self

    def answered(self, now: float) -> "Ejection":
        """Return what follows an answer; one of a call from before an ejection does not end it."""
        return self if self.until > now else Ejection()

    def failed(self, now: float) -> "Ejection":
        """Return what follows a failure."""
        failed = replace(self, failures=self.failures + 1)
        return failed._ejected(now, 0.0) if failed.failures >= _FAILURES else failed

    def refused(self, now: float, retry_after_seconds: float) -> "Ejection":
        """Return what follows a status of 429, with the pause that the provider asks for."""
        refused = replace(self, refusals=self.refusals + 1)
        ejects = retry_after_seconds > PATIENCE_SECONDS or refused.refusals >= _REFUSALS
        return refused._ejected(now, min(retry_after_seconds, _MAX_SECONDS)) if ejects else refused

    @property
    def _pause_seconds(self) -> float:
        return min(2.0 ** (self.pauses - 1), _MAX_PAUSE_SECONDS)

    def _ejected(self, now: float, least_seconds: float) -> "Ejection":
        """Return the same with a pause; what fails during one makes it no longer by itself."""
        pauses = self.pauses if self.until > now else min(self.pauses + 1, _MAX_PAUSES)
        ejected = replace(self, pauses=pauses)
        seconds = least_seconds if self.until > now else max(least_seconds, ejected._pause_seconds)
        return replace(ejected, until=max(self.until, now + seconds))


def ejected_seconds(ejections: Mapping[str, Ejection], tenant: str | None, now: float) -> float:
    """Return for how long a provider is asked nothing for a tenant, or for any; 0 if it is.

    What one tenant sends may be why it fails or refuses: for others it is ejected as long as it is
    for two.
    """
    seconds = sorted((each.seconds(now) for each in ejections.values()), reverse=True)
    if tenant is None:
        return max(seconds, default=0.0)
    own = ejections[tenant].seconds(now) if tenant in ejections else 0.0
    return max(own, 0.0, *seconds[1:2])
