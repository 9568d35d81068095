"""What the installation of the operator says about itself."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from pydantic import ValidationError

from tessera.api.service_class import BUILT_IN_CLASSES, ServiceClasses
from tessera.cli.cluster import Json, Reader
from tessera.cli.errors import DeniedError
from tessera.resources.api_resources import DEPLOYMENTS

OPERATOR = "tessera-operator"
OPERATOR_SELECTOR = f"app.kubernetes.io/name={OPERATOR}"
# Set where there are gateways, and where names need a grant.
GATEWAY_VARIABLE = "TESSERA_GATEWAY_ACCOUNT"
NAME_GRANTS_VARIABLE = "TESSERA_REQUIRE_NAME_GRANTS"
_CLASSES_VARIABLE = "TESSERA_CLASSES"

log = logging.getLogger("tessera")


async def operator_deployments(reader: Reader) -> list[Json]:
    """Return the operator's Deployments in all namespaces; there should be one."""
    deployments = replace(DEPLOYMENTS, selector=None)
    return await reader.list_objects(deployments, selector=OPERATOR_SELECTOR)


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
