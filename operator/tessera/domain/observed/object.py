"""What is observed of an object of one of Tessera's kinds."""

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Protocol, TypeVar

from tessera.api.ref import Ref

# An object that the API server has not created yet is newer than all others.
NOT_CREATED = datetime.max.replace(tzinfo=UTC)


@dataclass(frozen=True, slots=True, kw_only=True)
class Observed:
    """An object; one whose spec cannot be read has a problem instead of a spec.

    Its subclasses say of which types spec and status are.
    """

    ref: Ref
    """Without a namespace where its kind has none."""
    uid: str = ""
    created: datetime = NOT_CREATED
    """Of objects that claim the same the older has it."""
    generation: int = 0
    spec: Any
    problem: str | None = None
    status: Any

    @property
    def name(self) -> str:
        """Return its name, by which an object without a namespace is known."""
        return self.ref.name


ObservedT = TypeVar("ObservedT", bound=Observed)


ObservedT_co = TypeVar("ObservedT_co", bound=Observed, covariant=True)


class KindOf(Protocol[ObservedT_co]):
    """The kind of such objects, as far as observations know it."""

    @property
    def plural(self) -> str:
        """Return its name in paths of the API server."""

    @property
    def observed(self) -> type[ObservedT_co]:
        """Return the type of what is observed."""

    @property
    def field(self) -> str:
        """Return the field of a Snapshot that holds its objects; empty without one of its own."""
