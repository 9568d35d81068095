"""`tessera version`: the versions of this program, and of what runs in the cluster."""

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from types import SimpleNamespace
from typing import Any

from tessera import __version__
from tessera.cli.cluster import Json, Reader, open_reader
from tessera.cli.errors import CommandError
from tessera.cli.installation import gateway_deployments, operator_deployments
from tessera.cli.output import Output
from tessera.cli.text import table
from tessera.domain.names import APP_VERSION

_UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True, kw_only=True)
class InstalledVersion:
    """The version of a Deployment of the chart."""

    component: str
    version: str
    namespace: str
    available: int
    replicas: int
    image: str
    """The image of its first container, whose tag may differ from the version of the chart."""


def run(arguments: SimpleNamespace) -> Output:
    """Print the versions; what keeps the cluster from answering is one of the lines."""

    async def installed() -> Sequence[InstalledVersion]:
        async with open_reader(arguments) as reader:
            return await installed_versions(reader)

    try:
        versions, problem = asyncio.run(installed()), ""
    except CommandError as error:
        versions, problem = (), str(error)
    return report(__version__, versions, problem, arguments.output)


async def installed_versions(reader: Reader) -> Sequence[InstalledVersion]:
    """Return the versions of operators and gateways; raises CommandError."""
    operators = [_installed("operator", each) for each in await operator_deployments(reader)]
    gateways = [_installed("gateway", each) for each in await gateway_deployments(reader)]
    return (*operators, *gateways)


def report(
    program: str, versions: Sequence[InstalledVersion], problem: str, output_format: str
) -> Output:
    """Return the versions as text or JSON; `problem` says why those of a cluster are unknown."""
    notes = [problem] if problem else list(_differences(program, versions))
    if not problem and not versions:
        notes = ["Tessera is not installed in this cluster: see helm install in README.md"]

    def body() -> Mapping[str, Any]:
        return {
            "tessera": program,
            "installed": [asdict(each) for each in versions],
            "notes": notes,
        }

    return Output.of(output_format, _lines(program, versions, notes), body)


def _lines(
    program: str, versions: Sequence[InstalledVersion], notes: Sequence[str]
) -> Iterator[str]:
    rows = [
        (
            each.component,
            each.version,
            f"{each.available} of {each.replicas} available in {each.namespace}, {each.image}",
        )
        for each in versions
    ]
    yield from table((), [("tessera", program, "this program"), *rows])
    yield from notes


def _differences(program: str, versions: Sequence[InstalledVersion]) -> Iterator[str]:
    """Yield a sentence for each difference that matters: patches of one version agree."""
    operators = [each for each in versions if each.component == "operator"]
    for operator in operators:
        if _minor(operator.version) != _minor(program):
            yield (
                f"The operator in {operator.namespace} has {operator.version}: this program "
                f"explains and plans by the rules of {program}. Use tessera {operator.version}, "
                "or upgrade the chart."
            )
    for gateway in versions:
        others = {each.version for each in operators if each.namespace == gateway.namespace}
        if gateway.component == "gateway" and _minor(gateway.version) not in map(_minor, others):
            known = " and ".join(sorted(others)) or "no operator"
            yield (
                f"The gateway in {gateway.namespace} has {gateway.version} beside {known}: wait "
                "for the upgrade to end, or run helm upgrade again."
            )


def _minor(version: str) -> Sequence[str]:
    return version.split(".")[:2]


def _installed(component: str, deployment: Json) -> InstalledVersion:
    meta, spec = deployment["metadata"], deployment["spec"]
    containers = spec.get("template", {}).get("spec", {}).get("containers") or [{}]
    return InstalledVersion(
        component=component,
        version=meta.get("labels", {}).get(APP_VERSION, _UNKNOWN),
        namespace=meta["namespace"],
        available=deployment.get("status", {}).get("availableReplicas", 0),
        replicas=spec.get("replicas", 1),
        image=containers[0].get("image", _UNKNOWN),
    )
