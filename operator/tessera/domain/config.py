"""Settings of an installation, which its administrators chose and no cycle observes."""

from dataclasses import dataclass, field
from datetime import timedelta

from tessera.api.template_version import Platform, PodTemplateVersion

# In the field 120 s are used: what halts an engine in the middle of service and passes, such as a
# kernel that is compiled, takes tens of seconds.
STALL_TIMEOUT = timedelta(seconds=120)


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """The settings that decisions depend on, beside what was observed."""

    mig_backends: frozenset[str] = frozenset({"Agent", "MigManager"})
    """The backends that this installation lets partition GPUs."""
    node_agents: bool = True
    """Whether the installation runs tessera-node; without it, layouts of silent agents go."""
    stall_timeout: timedelta = STALL_TIMEOUT
    """How long an engine may hold requests without a step."""
    require_budget: bool = False
    """Whether a namespace without a budget gets nothing new."""
    autoscalers: bool = False
    """Whether HorizontalPodAutoscalers may be written, for services of mode HPA."""
    gateways: bool = False
    """Whether the installation runs gateways, where services have names of their own choice."""
    providers: bool = False
    """Whether gateways may send requests to outside providers."""
    gated_namespaces: frozenset[str] = frozenset()
    """Namespaces in which services have to have a gate."""
    gated_classes: frozenset[str] = frozenset()
    """Classes of services that have to have one in every namespace."""
    builder_version: int = 1
    """The newest version of the rules by which manifests are built."""
    platform: Platform = field(default_factory=Platform)
    """The surroundings of engines, as the platform team sets them now."""

    def demands_gate(self, namespace: str, service_class: str) -> bool:
        """Return whether the platform demands a gate of a service."""
        return namespace in self.gated_namespaces or service_class in self.gated_classes

    @property
    def newest_template(self) -> PodTemplateVersion:
        """The version by which a new replica is built."""
        return PodTemplateVersion(builder_version=self.builder_version, platform=self.platform)
