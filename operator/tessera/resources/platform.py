"""The platform team's registry mirror, proxies and CA bundle as parts of pods."""

from kubernetes import client

from tessera.api.inference_service import InferenceServiceSpec
from tessera.api.template_version import Platform, PodTemplateVersion
from tessera.resources.defaults import Defaults, defaults

_CA_DIRECTORY = "/etc/tessera/authorities"
_CA_FILE = "ca.crt"
# Each variable replaces the trusted certificates of its readers: OpenSSL, httpx and Rust; requests;
# curl. So the ConfigMap has to hold all trusted certificates, not only the additional ones.
_CA_VARIABLES = ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE")


def mirror_image(image: str, registry: str | None) -> str:
    """Return the image at the mirror, which replaces the image's own registry.

    A first component with a dot or a port is a registry; without one it is Docker Hub.
    """
    if registry is None:
        return image
    first, slash, rest = image.partition("/")
    has_registry = slash and ("." in first or ":" in first or first == "localhost")
    return f"{registry.rstrip('/')}/{rest if has_registry else image}"


def default_image(version: str, rules: Defaults) -> str:
    """Return the image that vLLM publishes for a version."""
    return f"{rules.image}:v{version}"


def engine_image(spec: InferenceServiceSpec, template_version: PodTemplateVersion) -> str:
    """Return the image of the spec, or that of its version, from the mirror if there is one."""
    default = default_image(spec.engine.version, defaults(template_version.builder_version))
    return spec.engine.image or mirror_image(default, template_version.platform.image_registry)


def pull_secrets(platform: Platform, *more: str) -> list[client.V1LocalObjectReference] | None:
    """Return every Secret once; the kubelet skips one that does not exist."""
    names = dict.fromkeys((*more, *platform.image_pull_secrets))
    return [client.V1LocalObjectReference(name=name) for name in names] or None


def environment(platform: Platform) -> list[client.V1EnvVar]:
    """Return the variables for hub and proxies."""
    # Proxies are set in upper and lower case, since programs read one or the other.
    variables = {"HF_ENDPOINT": platform.hub_endpoint}
    for name, value in (("HTTPS_PROXY", platform.https_proxy), ("NO_PROXY", platform.no_proxy)):
        variables |= {name: value, name.lower(): value}
    if platform.ca_config_map is not None:
        variables |= dict.fromkeys(_CA_VARIABLES, f"{_CA_DIRECTORY}/{_CA_FILE}")
    return [client.V1EnvVar(name=name, value=value) for name, value in variables.items() if value]


def volumes(platform: Platform) -> list[client.V1Volume]:
    """Return the volume with the CA bundle, if there is one."""
    if platform.ca_config_map is None:
        return []
    source = client.V1ConfigMapVolumeSource(
        name=platform.ca_config_map, items=[client.V1KeyToPath(key=_CA_FILE, path=_CA_FILE)]
    )
    return [client.V1Volume(name="authorities", config_map=source)]


def mounts(platform: Platform) -> list[client.V1VolumeMount]:
    """Return the mount of the CA bundle, if there is one."""
    if platform.ca_config_map is None:
        return []
    return [client.V1VolumeMount(name="authorities", mount_path=_CA_DIRECTORY, read_only=True)]


def priority_class(spec: InferenceServiceSpec, platform: Platform) -> str | None:
    """Return the chart's PriorityClass for the service's class, if the chart creates them."""
    return f"tessera-{spec.service_class.lower()}" if platform.priority_classes else None
