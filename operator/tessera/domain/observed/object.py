"""What is observed of an object of one of Tessera's kinds."""

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Generic, TypeVar

from pydantic import BaseModel

from tessera.api.ref import Ref

SpecT = TypeVar("SpecT", bound=BaseModel)
StatusT = TypeVar("StatusT", bound=BaseModel)

# An object that the API server has not created yet is newer than all others.
NOT_CREATED = datetime.max.replace(tzinfo=UTC)


@dataclass(frozen=True, slots=True, kw_only=True)
class Observed(Generic[SpecT, StatusT]):
    """An object; one whose spec cannot be read has a problem instead of a spec."""

    ref: Ref
    """Without a namespace where its kind has none."""
    uid: str = ""
    created: datetime = NOT_CREATED
    """Of objects that claim the same the older has it."""
    generation: int = 0
    spec: SpecT | None
    problem: str | None = None
    status: StatusT

    @property
    def name(self) -> str:
        """Return its name, by which an object without a namespace is known."""
        return self.ref.name
