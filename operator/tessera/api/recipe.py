"""By what a replica was made besides its spec: the builder of this version, and the platform."""

from typing import Annotated

from pydantic import Field

from tessera.api.meta import DnsLabel, Duration, Wire

Url = Annotated[str, Field(max_length=512, pattern=r"^https?://[^\s]+$")]


class Platform(Wire):
    """What the platform team says of the surroundings of every engine; the chart's values."""

    image_registry: Annotated[str, Field(max_length=253)] | None = None
    """Registry, with a path if need be, from which engine images are pulled instead of the default
    one: a mirror."""

    image_pull_secrets: Annotated[tuple[DnsLabel, ...], Field(max_length=16)] = ()
    """Secrets for private registries; they have to exist in the namespaces of the services."""

    hub_endpoint: Url | None = None
    """Base URL of the model hub or of its mirror, instead of the public one."""

    https_proxy: Url | None = None
    """Proxy by which engines and downloads reach the outside."""

    no_proxy: Annotated[str, Field(max_length=2048)] | None = None
    """Hosts and networks that are reached without the proxy, separated by commas."""

    ca_config_map: DnsLabel | None = None
    """ConfigMap with `ca.crt`, in the namespaces of the services: all certificates to trust, since
    it takes the place of those in the image."""

    priority_classes: bool = False
    """Pods get the PriorityClass `tessera-<class of the service>`; the chart makes all three. Off,
    since with it engines push out pods of lower priority."""


class PodTemplateVersion(Wire):
    """What is kept while a service's spec stays, so that an upgrade leaves its replicas alone."""

    builder_version: Annotated[int, Field(ge=1)] = 1
    """Version of the rules by which manifests are built."""

    platform: Platform = Field(default_factory=Platform)
    """The surroundings as they were."""


class EffectiveValues(Wire):
    """What stands in the engine's pods where the spec is silent: defaults, and planned numbers."""

    engine_version: str
    """Version of vLLM."""

    drain_timeout: Duration
    """How long running streams may take to end."""

    max_model_len: int
    """Longest prompt plus answer, in tokens."""

    max_num_seqs: int
    """Requests that one replica works on at a time."""

    max_num_batched_tokens: int
    """Tokens of one engine step."""

    weights_mib: int
    """Weights on one device, in MiB; the pod's memory and time to start follow from them."""


class PodTemplateVersionStatus(PodTemplateVersion):
    """By what the replicas were made, and for what it was chosen."""

    template_hash: str
    """Digest of what shapes the pods in spec and placement: while it stays, so does the recipe."""

    effective_values: EffectiveValues
    """What stands in the pods where the spec is silent."""

    observed_update: str | None = None
    """The value of the annotation `tessera.dev/update` that was honoured last."""

    downgraded_from: int | None = None
    """The builder version by which a newer Tessera made the replicas, if this one does not know
    it."""
