"""By which target of its route a request is answered."""

from collections.abc import Iterable
from dataclasses import dataclass

from tessera.api.model_route import TargetTimeouts
from tessera.api.ref import Ref
from tessera.domain.gateway.directory import OfferedModel
from tessera.gateway.refusals import Headers


@dataclass(frozen=True, slots=True, kw_only=True)
class RoutedTo:
    """The target that a request goes to now, and those that it does not go to."""

    route: Ref
    target: str
    reason: str
    """Why it is asked: how it was chosen, or `Fallback`."""
    skipped: tuple[tuple[str, str], ...] = ()
    """Targets before it, each with why it gave no answer."""
    waits: bool
    """It waits for a place, or a replica, as a request for the service itself does; else no longer
    than `spec.slo` allows."""
    is_repeated: bool = False
    """It was tried before, without a wait."""
    gives_less: bool = False
    """All were tried: where money is left for a part of its answer, it gives that."""
    timeouts: TargetTimeouts
    overflowed: OfferedModel | None = None
    """The first before it that had no place in time."""

    @property
    def headers(self) -> Headers:
        """Return what the client learns about it."""
        return [
            (b"x-tessera-route", str(self.route).encode()),
            (b"x-tessera-target", self.target.encode()),
            (b"x-tessera-target-reason", self.reason.encode()),
        ]

    def record_fields(self) -> dict[str, str]:
        """Return what is recorded of it."""
        return {
            "model_route": str(self.route),
            "target": self.target,
            "target_reason": self.reason,
            "skipped_targets": skipped_text(self.skipped),
        }


def skipped_text(skipped: Iterable[tuple[str, str]]) -> str:
    """Return targets with why they gave no answer, as `name=reason` pairs joined by commas."""
    return ",".join(f"{target}={reason}" for target, reason in skipped)
