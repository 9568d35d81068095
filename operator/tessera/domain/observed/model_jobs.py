"""What the cluster knows of errands: Jobs that models need before their engines."""

from dataclasses import dataclass

from tessera.api.ref import Ref


@dataclass(frozen=True, slots=True, kw_only=True)
class ObservedModelJob:
    """The Job of an errand."""

    ref: Ref
    service: Ref
    task: str
    uid: str = ""
    failed: bool = False
    """Its controller makes no more pods: the condition Failed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelJobRun:
    """What only the pods of errands have."""

    service: Ref
    job_uid: str = ""
    """The uid of its Job."""
    exit_code: int | None = None
    """That of its container, once it ended."""
    report: str = ""
    """The termination message."""
