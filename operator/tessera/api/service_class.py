"""Service classes: what the fields of a spec are that it omits, by who waits for the answers."""

from collections.abc import Mapping
from datetime import timedelta
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from tessera.api.accelerator_pool import Tier
from tessera.api.meta import Duration, Wire, at_most

ServiceClass = Literal["Interactive", "Standard", "Batch"]

TtftTarget = Annotated[Duration, at_most(timedelta(hours=1))]
ItlTarget = Annotated[Duration, at_most(timedelta(minutes=1))]
WaitingRequests = Annotated[int, Field(ge=1, le=100_000)]
_TIERS = Field(min_length=1, max_length=3, json_schema_extra={"x-kubernetes-list-type": "set"})
Tiers = Annotated[tuple[Tier, ...], _TIERS]


class ClassDefaults(Wire):
    """Defaults of the services of one class."""

    ttft_p95: TtftTarget
    """Default of `spec.slo.ttftP95`."""

    itl_p95: ItlTarget
    """Default of `spec.slo.itlP95`."""

    queue_target: WaitingRequests
    """Default of `spec.scaling.queue.target`, or as many as a replica serves within
    `spec.slo.ttftP95` if these are fewer."""

    min_replicas: Annotated[int, Field(ge=1, le=1000)]
    """Default of `spec.scaling.minReplicas`, at most `spec.scaling.maxReplicas`."""

    tiers: Tiers
    """Default of `spec.placement.tiers`."""


class InteractiveDefaults(ClassDefaults):
    """Defaults of services for which people wait."""

    tiers: Annotated[tuple[Literal["Reserved", "OnDemand"], ...], _TIERS]
    """Default of `spec.placement.tiers`; never `Spot`, whose nodes may be reclaimed within 15 s."""


# People read 30 tokens per second as instant, and programs wait for the end of an answer: 250
# tokens take 15 s with the class Standard. Each number is an edge of vLLM's histograms or close to
# one, so that the engines' counts judge it well.
_BUILT_IN: dict[str, dict[str, Any]] = {
    "Interactive": {
        "ttftP95": "1s",
        "itlP95": "33ms",
        "queueTarget": 4,
        "minReplicas": 2,
        "tiers": ("Reserved", "OnDemand"),
    },
    "Standard": {
        "ttftP95": "2500ms",
        "itlP95": "50ms",
        "queueTarget": 16,
        "minReplicas": 2,
        "tiers": ("Reserved", "OnDemand"),
    },
    "Batch": {
        "ttftP95": "20s",
        "itlP95": "200ms",
        "queueTarget": 50,
        "minReplicas": 1,
        "tiers": ("Reserved", "OnDemand", "Spot"),
    },
}


class ServiceClasses(Wire):
    """The defaults of every class; a field or class that is not given has the built-in ones."""

    interactive: Annotated[InteractiveDefaults, Field(alias="Interactive")]
    """People wait for each token."""

    standard: Annotated[ClassDefaults, Field(alias="Standard")]
    """Programs wait for the answer."""

    batch: Annotated[ClassDefaults, Field(alias="Batch")]
    """No client waits."""

    @model_validator(mode="before")
    @classmethod
    def _add_built_in(cls, given: Any) -> Any:
        if not isinstance(given, Mapping):
            return given
        merged: dict[str, Any] = {**_BUILT_IN, **given}
        for name, fields in given.items():
            if isinstance(fields, Mapping) and name in _BUILT_IN:
                merged[name] = {**_BUILT_IN[name], **fields}
        return merged

    def of(self, service_class: ServiceClass) -> ClassDefaults:
        """Return the defaults of a class."""
        match service_class:
            case "Interactive":
                return self.interactive
            case "Standard":
                return self.standard
            case "Batch":
                return self.batch


BUILT_IN_CLASSES = ServiceClasses.model_validate({})
