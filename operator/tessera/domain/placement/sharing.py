"""Which variants of a service may serve together behind a plain Kubernetes Service."""

from collections.abc import Sequence

from tessera.api.text import counted
from tessera.domain.perf.sources import OFF_TOLERANCE
from tessera.domain.placement.candidates import HardwareChoice


def may_share_service(choices: Sequence[HardwareChoice]) -> str | None:
    """Return why requests may not be spread evenly over replicas of these variants; None if so.

    A Service sends each replica as many requests, whatever its speed, so the slowest is full first.
    Replicas are as fast as predicted give or take `OFF_TOLERANCE`, which scaling makes up for by
    what is attained: those within it count as equal. With nearly all that they carry together, as
    simulated, three that carry 14 % more than a fourth keep the objectives, and with 38 % more a
    sixth is late. The gateway knows the speed of each and needs no bound.
    """
    slowest = min(choices, key=_rate)
    fastest = max(choices, key=_rate)
    if _rate(fastest) <= (1 + OFF_TOLERANCE) * _rate(slowest):
        return None
    rate = counted(round(_rate(fastest)), "token")
    return (
        f"a replica of {fastest.variant} carries {rate} per second and one of {slowest.variant} "
        f"{round(_rate(slowest))}, and without the gateway both get as many requests: send them "
        f"through the gateway, or list pools that differ by {OFF_TOLERANCE:.0%} at most in "
        "spec.placement.pools"
    )


def _rate(choice: HardwareChoice) -> float:
    """Return the tokens per second of a replica within the SLO, as predicted."""
    return choice.fit.limits.tokens_per_second
