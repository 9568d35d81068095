"""What the cluster knows of model jobs: Jobs that models need before their engines."""

from dataclasses import dataclass
from datetime import datetime

from tessera.api.ref import Ref


@dataclass(frozen=True, slots=True, kw_only=True)
class ObservedModelJob:
    """A Job that reads or fetches a model, as observed."""

    ref: Ref
    service: Ref
    """Without a name for the Job of a batch."""
    task: str
    uid: str = ""
    created: datetime | None = None
    failed: bool = False
    """Its controller makes no more pods: the condition Failed."""
    refusal: str | None = None
    """Why the API server refuses its pod; None while nothing says so."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelJobRun:
    """What only the pods of model jobs have."""

    service: Ref
    job_uid: str = ""
    """The uid of its Job."""
    exit_code: int | None = None
    """That of its container, once it ended."""
    report: str = ""
    """The termination message."""
