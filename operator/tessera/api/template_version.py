"""What determines a replica besides its spec: the version of the builder, and the platform."""

from typing import Annotated

from pydantic import Field

from tessera.api.meta import DnsLabel, Duration, Wire

Url = Annotated[str, Field(max_length=512, pattern=r"^https?://[^\s]+$")]


class Platform(Wire):
    """Environment of all engines, as set in the chart's values."""

    image_registry: Annotated[str, Field(max_length=253)] | None = None
    """Registry, with an optional path, that engine images are pulled from instead of the default,
    for example a mirror."""

    image_pull_secrets: Annotated[tuple[DnsLabel, ...], Field(max_length=16)] = ()
    """Secrets for private registries; they must exist in the namespaces of the services."""

    hub_endpoint: Url | None = None
    """Base URL of the model hub or its mirror, instead of the public hub."""

    https_proxy: Url | None = None
    """Proxy for the outgoing HTTPS connections of engines and downloads."""

    no_proxy: Annotated[str, Field(max_length=2048)] | None = None
    """Hosts and networks that bypass the proxy, separated by commas."""

    ca_config_map: DnsLabel | None = None
    """ConfigMap with `ca.crt` in the namespaces of the services: all trusted certificates, since it
    replaces those in the image."""

    priority_classes: bool = False
    """Pods get the PriorityClass `tessera-<class of the service>`; the chart creates all three. Off
    by default, since engines with it preempt pods of lower priority."""


class PodTemplateVersion(Wire):
    """What stays the same while a service's spec does, so that an upgrade does not restart its
    replicas."""

    builder_version: Annotated[int, Field(ge=1)] = 1
    """Version of the rules that build the manifests."""

    platform: Platform = Field(default_factory=Platform)
    """Environment of the engines at that time."""


class EffectiveValues(Wire):
    """Values in the engine's pods that the spec leaves open: defaults and planned numbers."""

    engine_version: str
    """vLLM version."""

    drain_timeout: Duration
    """Time that running streams have to finish."""

    max_model_len: int
    """Maximum length of prompt plus answer, in tokens."""

    max_num_seqs: int
    """Maximum concurrent requests per replica."""

    max_num_batched_tokens: int
    """Maximum tokens per engine step."""

    weights_mib: int
    """Weights per device, in MiB; the pod's memory and startup time are derived from them."""


class PodTemplateVersionStatus(PodTemplateVersion):
    """Template that the replicas were created from, and what it was chosen for."""

    template_hash: str
    """Hash of the parts of spec and placement that shape the pods; the template changes only with
    it."""

    effective_values: EffectiveValues
    """Values in the engine's pods that the spec leaves open."""

    observed_update: str | None = None
    """Value of the annotation `tessera.dev/update` that was applied last."""

    gated: str | None = None
    """Digest of what can change answers and behind `/` the precision, of a service whose changes
    wait for a gate."""

    downgraded_from: int | None = None
    """Builder version of a newer Tessera that created the replicas, if this Tessera does not know
    it."""
