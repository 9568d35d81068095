"""What a platform team says of the surroundings of engines, as parts of their pods."""

from kubernetes.client import (
    V1ConfigMapVolumeSource,
    V1EnvVar,
    V1KeyToPath,
    V1LocalObjectReference,
    V1Volume,
    V1VolumeMount,
)

from tessera.api.inference_service import InferenceServiceSpec
from tessera.api.recipe import Platform, PodTemplateVersion
from tessera.resources.defaults import Defaults, defaults

_CA_DIRECTORY = "/etc/tessera/authorities"
_CA_FILE = "ca.crt"
# Each replaces the certificates that its readers trust: OpenSSL, httpx and Rust; requests; curl.
# So the ConfigMap has to hold all that are trusted, not only those that are added.
_CA_VARIABLES = ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE")


def mirror_image(image: str, registry: str | None) -> str:
    """The image at the mirror; its own registry, if it names one, gives way.

    A first part with a dot or a port is a registry, as everywhere; without one it is Docker's.
    """
    if registry is None:
        return image
    first, slash, rest = image.partition("/")
    has_registry = slash and ("." in first or ":" in first or first == "localhost")
    return f"{registry.rstrip('/')}/{rest if has_registry else image}"


def default_image(version: str, rules: Defaults) -> str:
    """Where vLLM publishes its images."""
    return f"{rules.image}:v{version}"


def engine_image(spec: InferenceServiceSpec, recipe: PodTemplateVersion) -> str:
    """The image that the spec gives, else that of its version, from the mirror if there is one."""
    default = default_image(spec.engine.version, defaults(recipe.builder))
    return spec.engine.image or mirror_image(default, recipe.platform.image_registry)


def pull_secrets(platform: Platform, *more: str) -> list[V1LocalObjectReference] | None:
    """Every Secret once; one that is not there is passed over by the kubelet."""
    names = dict.fromkeys((*more, *platform.image_pull_secrets))
    return [V1LocalObjectReference(name=name) for name in names] or None


def environment(platform: Platform) -> list[V1EnvVar]:
    """How the hub is reached. Proxies stand in both cases, since programs read one or the other."""
    variables = {"HF_ENDPOINT": platform.hub_endpoint}
    for name, value in (("HTTPS_PROXY", platform.https_proxy), ("NO_PROXY", platform.no_proxy)):
        variables |= {name: value, name.lower(): value}
    if platform.ca_config_map is not None:
        variables |= dict.fromkeys(_CA_VARIABLES, f"{_CA_DIRECTORY}/{_CA_FILE}")
    return [V1EnvVar(name=name, value=value) for name, value in variables.items() if value]


def volumes(platform: Platform) -> list[V1Volume]:
    """The certificates."""
    if platform.ca_config_map is None:
        return []
    source = V1ConfigMapVolumeSource(
        name=platform.ca_config_map, items=[V1KeyToPath(key=_CA_FILE, path=_CA_FILE)]
    )
    return [V1Volume(name="authorities", config_map=source)]


def mounts(platform: Platform) -> list[V1VolumeMount]:
    """Where they are."""
    if platform.ca_config_map is None:
        return []
    return [V1VolumeMount(name="authorities", mount_path=_CA_DIRECTORY, read_only=True)]


def priority_class(spec: InferenceServiceSpec, platform: Platform) -> str | None:
    """The chart's PriorityClass for the class of the service, where it makes them."""
    return f"tessera-{spec.service_class}" if platform.priority_classes else None
