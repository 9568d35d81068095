"""How is a new template rolled out? With one more replica where there is room, else in place.

The manner is chosen before a rollout begins and kept until it ends: the new replica itself takes
the room that was found. Only one that finds no device for long makes it go on in place.
"""

from collections.abc import Sequence
from datetime import datetime, timedelta

from tessera.domain.placement import Choice
from tessera.domain.snapshot import Pod, Workload

PATIENCE = timedelta(seconds=60)
"""A new replica waits so long for the device that it was promised."""


def surges(workload: Workload | None, pods: Sequence[Pod], now: datetime, *, room: bool) -> bool:
    """Does the new start before the old stops? `room` is for one replica beyond the wanted ones."""
    if workload is None or (workload.settled and not rolling(pods)):
        return room
    return workload.surge and not _stuck(pods, now)


def rolling(pods: Sequence[Pod]) -> bool:
    """Replicas of two templates exist."""
    return len({pod.template for pod in pods if not pod.leaving}) > 1


def manner(choice: Choice, *, surge: bool) -> str:
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


def progress(pods: Sequence[Pod]) -> tuple[int, int]:
    """Replicas of the newest template that take requests, and all others that are not leaving."""
    alive = [pod for pod in pods if not pod.leaving]
    newest = max(alive, key=lambda pod: (pod.created, pod.ref)).template
    up = sum(pod.template == newest and pod.ready_since is not None for pod in alive)
    return up, sum(pod.template != newest for pod in alive)


def _stuck(pods: Sequence[Pod], now: datetime) -> bool:
    """A leaving replica of the service still gives its device back; nobody else need."""
    waiting = [pod for pod in pods if pod.unschedulable and not pod.leaving]
    oldest = min((pod.created for pod in waiting), default=now)
    return not any(pod.leaving for pod in pods) and now - oldest >= PATIENCE
