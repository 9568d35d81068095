"""What the installation of the operator says about itself."""

import contextlib
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from pydantic import TypeAdapter, ValidationError

from tessera.api.service_class import BUILT_IN_CLASSES, ServiceClasses
from tessera.cli.cluster import Json, Reader
from tessera.cli.errors import DeniedError
from tessera.resources.api_resources import CONFIG_MAPS, DEPLOYMENTS

OPERATOR = "tessera-operator"
OPERATOR_SELECTOR = f"app.kubernetes.io/name={OPERATOR}"
GATEWAY_SELECTOR = "app.kubernetes.io/name=tessera-gateway"
# Set where there are gateways.
GATEWAY_VARIABLE = "TESSERA_GATEWAY_ACCOUNT"
_CLASSES_VARIABLE = "TESSERA_CLASSES"
_POD_KEYS_VARIABLE, _SCRAPERS_VARIABLE = "TESSERA_ALLOWED_POD_KEYS", "TESSERA_MONITORING_NAMESPACES"
_NAMES = TypeAdapter(tuple[str, ...])
# The volume of the operator's pod, and the key of its ConfigMap.
_CATALOGS = "catalogs"

_ANY_DEPLOYMENTS = replace(DEPLOYMENTS, selector=None)

log = logging.getLogger("tessera")


async def operator_deployments(reader: Reader) -> list[Json]:
    """Return the operator's Deployments in all namespaces; there should be one."""
    return await reader.list_objects(_ANY_DEPLOYMENTS, selector=OPERATOR_SELECTOR)


async def gateway_deployments(reader: Reader) -> list[Json]:
    """Return the Deployments of gateways in all namespaces."""
    return await reader.list_objects(_ANY_DEPLOYMENTS, selector=GATEWAY_SELECTOR)


async def installed_classes(reader: Reader) -> ServiceClasses:
    """Return the classes of the operator; the built-in ones where its Deployment says none."""
    try:
        deployments = await operator_deployments(reader)
    except DeniedError:
        return BUILT_IN_CLASSES
    for _, variables in operator_variables(deployments):
        if not (text := variables.get(_CLASSES_VARIABLE)):
            continue
        try:
            return ServiceClasses.model_validate_json(text)
        except ValidationError as error:
            log.error("the classes of the operator are unreadable: %s", error)
    return BUILT_IN_CLASSES


async def installed_pod_keys(reader: Reader) -> tuple[str, ...]:
    """Return the pod keys that the operator allows; none where its Deployment says none."""
    try:
        deployments = await operator_deployments(reader)
    except DeniedError:
        return ()
    return _names_in(deployments, _POD_KEYS_VARIABLE)


async def scraping_namespaces(reader: Reader) -> tuple[str, ...]:
    """Return the namespaces whose pods may scrape, as the operator's Deployment says."""
    return _names_in(await operator_deployments(reader), _SCRAPERS_VARIABLE)


def _names_in(deployments: Sequence[Json], variable: str) -> tuple[str, ...]:
    """Return the list in a variable of operators; () where none sets one that can be read."""
    for _, variables in operator_variables(deployments):
        if text := variables.get(variable):
            with contextlib.suppress(ValidationError):
                return _NAMES.validate_json(text)
    return ()


async def installed_catalogs(reader: Reader) -> str:
    """Return the operator's document of catalog entries; empty without one, or where denied."""
    try:
        deployments = await operator_deployments(reader)
    except DeniedError:
        return ""
    for path in _catalogs_paths(deployments):
        try:
            config_map = await reader.get(path)
        except DeniedError as error:
            log.error("%s: GPUs and models that the installation adds are unknown", error)
        else:
            return str((config_map or {}).get("data", {}).get(f"{_CATALOGS}.json", ""))
    return ""


def _catalogs_paths(deployments: Sequence[Json]) -> Iterator[str]:
    """Yield the paths of the ConfigMaps that operators mount with catalog entries."""
    for deployment in deployments:
        pod = deployment["spec"].get("template", {}).get("spec", {})
        for volume in pod.get("volumes", ()):
            if volume["name"] == _CATALOGS and "configMap" in volume:
                namespace = deployment["metadata"]["namespace"]
                yield CONFIG_MAPS.path(namespace, volume["configMap"]["name"])


async def has_variable(reader: Reader, name: str) -> bool:
    """Return whether the operator's Deployment is known to set a variable."""
    try:
        deployments = await operator_deployments(reader)
    except DeniedError:
        return False
    return any(variables.get(name) for _, variables in operator_variables(deployments))


def operator_variables(
    deployments: Sequence[Json],
) -> Iterator[tuple[str, Mapping[str, str | None]]]:
    """Yield the namespace and the environment of every container."""
    for deployment in deployments:
        pod = deployment["spec"].get("template", {}).get("spec", {})
        for container in pod.get("containers", ()):
            environment = container.get("env", ())
            variables = {variable["name"]: variable.get("value") for variable in environment}
            yield deployment["metadata"]["namespace"], variables
