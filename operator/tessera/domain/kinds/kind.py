"""What a row declares of a kind that users write."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from dataclasses import field as dataclass_field
from enum import Enum, auto
from typing import Any, Generic, get_args

from pydantic import BaseModel
from typing_extensions import override

from tessera.api.api_resource import STATUS
from tessera.api.schema import CustomResource, PrinterColumn
from tessera.domain.observed.object import ObservedT

Body = Mapping[str, Any]
# Returns further fields of what is observed, from the object as it is in the API server, its spec
# and its status; each of these two is None if it cannot be read.
More = Callable[[Body, BaseModel | None, BaseModel | None], Mapping[str, Any]]


class Process(Enum):
    """What may watch a kind."""

    OPERATOR = auto()
    GATEWAY = auto()


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Kind(CustomResource, Generic[ObservedT]):
    """A kind with a spec and a status: its CRD, rights, watches and what is observed of it."""

    observed: type[ObservedT]
    field: str = ""
    """The field of a Snapshot that holds its objects; empty where no decision but a report reads
    them."""
    subresources: tuple[tuple[str, tuple[str, ...]], ...] = STATUS
    watched_by: frozenset[Process] = frozenset({Process.OPERATOR})
    reviewed_on: tuple[str, ...] = ("CREATE", "UPDATE")
    """Operations on which the webhook is asked."""
    completed_by_class: bool = False
    """Whether what its spec omits is that of its class of service."""
    status_in_parts: bool = True
    """Whether the parts of a status that can be read stay without the others, as after an upgrade;
    else it is read whole or not at all."""
    more: More | None = None
    """What is observed of it beside the fields of all kinds."""

    spec: type[BaseModel] = dataclass_field(init=False)
    status: type[BaseModel] = dataclass_field(init=False)

    @override
    def __post_init__(self) -> None:
        CustomResource.__post_init__(self)
        spec, status = (self.model.model_fields[name].annotation for name in ("spec", "status"))
        object.__setattr__(self, "spec", spec)
        object.__setattr__(self, "status", get_args(status)[0])


def condition_path(condition: str, field_name: str) -> str:
    """Return the path of a field of a condition for a column."""
    return f'.status.conditions[?(@.type=="{condition}")].{field_name}'


def accepted_columns(*columns: PrinterColumn) -> tuple[PrinterColumn, ...]:
    """Return the columns of a kind that is accepted or not, with its own in between."""
    return (
        PrinterColumn(name="Accepted", path=condition_path("Accepted", "status")),
        PrinterColumn(name="Reason", path=condition_path("Accepted", "reason")),
        *columns,
        PrinterColumn(name="Age", type="date", path=".metadata.creationTimestamp"),
        PrinterColumn(name="Message", path=condition_path("Accepted", "message"), priority=1),
    )


def annotation(body: Body, name: str) -> str | None:
    """Return an annotation of an object."""
    text: str | None = body["metadata"].get("annotations", {}).get(name)
    return text
