"""How is a new template rolled out? With one more replica where there is room, else in place.

The manner is chosen before a rollout begins and kept until it ends: the new replica itself takes
the room that was found. Only one that finds no device for long makes it go on in place.
"""

from collections.abc import Sequence
from datetime import datetime, timedelta

from tessera.domain.observed.snapshot import Pod, Workload
from tessera.domain.placement.placement import HardwareChoice

# A new replica waits so long for the device that it was promised.
SURGE_TIMEOUT = timedelta(seconds=60)


def should_surge(
    workload: Workload | None, pods: Sequence[Pod], now: datetime, *, has_capacity: bool
) -> bool:
    """Does the new start before the old stops? `room` is for one replica beyond the wanted ones."""
    if workload is None or (workload.rollout_complete and not is_rolling_out(pods)):
        return has_capacity
    return workload.surge and not _surge_timed_out(pods, now)


def is_rolling_out(pods: Sequence[Pod]) -> bool:
    """Replicas of two templates exist."""
    return len({pod.template for pod in pods if not pod.terminating}) > 1


def strategy_message(choice: HardwareChoice, *, surge: bool) -> str:
    """The manner with its reason."""
    device, pool = choice.fit.hardware.name, choice.offer.pool
    if surge:
        return (
            f"a new one is up before an old one stops, since the pool {pool} had room for 1 more "
            f"{device}"
        )
    return (
        f"in place, an old one stops first, since the pool {pool} had no room for 1 more {device}"
    )


def rollout_progress(pods: Sequence[Pod]) -> tuple[int, int]:
    """Replicas of the newest template that take requests, and all others that are not leaving."""
    active = [pod for pod in pods if not pod.terminating]
    newest = max(active, key=lambda pod: (pod.created, pod.ref)).template
    ready = sum(pod.template == newest and pod.ready_since is not None for pod in active)
    return ready, sum(pod.template != newest for pod in active)


def _surge_timed_out(pods: Sequence[Pod], now: datetime) -> bool:
    """A leaving replica of the service still gives its device back; nobody else need."""
    waiting = [pod for pod in pods if pod.unschedulable and not pod.terminating]
    oldest = min((pod.created for pod in waiting), default=now)
    return not any(pod.terminating for pod in pods) and now - oldest >= SURGE_TIMEOUT
