"""Moments that lie in the future since the clock was set back.

A moment of a status beyond now counts as now: it is written again, so that its age grows from then
on, and nothing waits until the clock has caught up. What others write counts as the moment at which
the clock was set back.
"""

from dataclasses import replace
from datetime import datetime
from typing import Any, TypeVar

from pydantic import BaseModel

from tessera.domain.observed.snapshot import Pod

StatusT = TypeVar("StatusT", bound=BaseModel)

# Fields that say what is planned.
_PLANNED = frozenset({"next_at", "change_at", "correction_at", "resting_until", "guarded_until"})
# Moments of pods. When one ended decides what it cost, for which metering has a rule of its own.
_OF_PODS = ("created", "bound", "started", "ready_since", "draining_since")


def counted_as_now(status: StatusT, at: datetime) -> StatusT:
    """Return a status none of whose moments that have passed lies after `at`."""
    changed = {
        name: present
        for name in type(status).model_fields
        if name not in _PLANNED
        if (present := _counted_as_now(value := getattr(status, name), at)) is not value
    }
    return status.model_copy(update=changed) if changed else status


def _counted_as_now(value: Any, at: datetime) -> Any:
    if isinstance(value, datetime):
        return at.replace(microsecond=0) if value > at else value
    if isinstance(value, BaseModel):
        return counted_as_now(value, at)
    if isinstance(value, tuple):
        items = tuple([_counted_as_now(item, at) for item in value])
        is_same = all(new is old for new, old in zip(items, value, strict=True))
        return value if is_same else items
    return value


def pod_since_setback(pod: Pod, at: datetime, set_back_at: datetime) -> Pod:
    """Return a pod none of whose moments lies after `at`."""
    moments: dict[str, Any] = {name: getattr(pod, name) for name in _OF_PODS}
    ahead: dict[str, Any] = {
        name: set_back_at for name, moment in moments.items() if moment is not None and moment > at
    }
    return replace(pod, **ahead) if ahead else pod
