"""What is said of a rollout: with a surge replica if a device is free, else in place."""

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta

from tessera.domain.observed.snapshot import Pod
from tessera.domain.placement.candidates import HardwareChoice

# How long a surge replica may stay unschedulable.
SURGE_TIMEOUT = timedelta(seconds=60)


def is_rolling_out(pods: Sequence[Pod]) -> bool:
    """Return whether replicas of two templates of one variant exist."""
    templates = {(pod.variant, pod.template) for pod in pods if not pod.terminating}
    return len(templates) > len({variant for variant, _ in templates})


def replaces_in_place(pods: Sequence[Pod]) -> bool:
    """Return whether a replica of an older template is still stopping for a newer one."""
    newest = _newest_by_variant(pods)
    return any(
        pod.template != newest[pod.variant].template and not newest[pod.variant].terminating
        for pod in pods
    )


def _newest_by_variant(pods: Sequence[Pod]) -> Mapping[str, Pod]:
    return {pod.variant: pod for pod in sorted(pods, key=lambda pod: (pod.created, pod.ref))}


def strategy_message(
    choice: HardwareChoice,
    *,
    surge: bool,
    unpaid: bool = False,
    extra_on: HardwareChoice | None = None,
) -> str:
    """Return the rollout strategy with its reason: no device, or an `unpaid` further replica.

    Where one more replica serves meanwhile is said with its price.
    """
    device, pool = choice.fit.hardware.name, choice.offer.pool
    if surge:
        return (
            f"a new replica starts before an old one stops, since AcceleratorPool/{pool} had 1 "
            "free "
            f"{device}"
        )
    if unpaid:
        reason = f"the TenantBudget grants no further {device} of AcceleratorPool/{pool}"
    else:
        reason = f"AcceleratorPool/{pool} had no free {device}"
    if extra_on is not None:
        return (
            f"in place beside one more replica on {extra_on.variant} at {extra_on.hourly} per hour "
            f"until the rollout ends, since {reason}"
        )
    return f"in place, an old replica stops first, since {reason}"


def rollout_progress(pods: Sequence[Pod]) -> tuple[int, int]:
    """Return the ready replicas of the newest template, and the active ones of older templates."""
    active = [pod for pod in pods if not pod.terminating]
    newest = _newest_by_variant(active)
    new = [pod for pod in active if pod.template == newest[pod.variant].template]
    return sum(pod.ready_since is not None for pod in new), len(active) - len(new)


def surge_timed_out(pods: Sequence[Pod], now: datetime) -> bool:
    """Return whether a replica has been unschedulable for too long, and none will leave."""
    waiting = [pod for pod in pods if pod.unschedulable and not pod.terminating]
    oldest = min((pod.created for pod in waiting), default=now)
    # A terminating replica of the service is about to release its device.
    return not any(pod.terminating for pod in pods) and now - oldest >= SURGE_TIMEOUT
