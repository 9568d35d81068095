"""Commands compute as the installed operator does, with its classes and gateways."""

import json
from dataclasses import replace
from pathlib import Path

from tessera.api.service_class import BUILT_IN_CLASSES, ServiceClasses
from tessera.cli.cluster import Reader
from tessera.cli.fleet import FleetInputs, read_fleet
from tessera.cli.installation import installed_classes
from tessera.cli.snapshot.file import read, save, serialize
from tessera.resources.api_resources import DEPLOYMENTS
from tests.cli.memory_api import MemoryApi, a_served_cluster, operator_of

TABLE = {"Interactive": {"ttftP95": "2s"}}


async def an_api(value: str | None) -> MemoryApi:
    """Return an API whose operator has the variable TESSERA_CLASSES."""
    _, api = await a_served_cluster()
    if value is not None:
        (container,) = operator_of(api)["spec"]["template"]["spec"]["containers"]
        container["env"].append({"name": "TESSERA_CLASSES", "value": value})
    return api


def ttft_seconds(fleet: FleetInputs) -> float:
    (service,) = fleet.snapshot.services
    assert service.spec is not None
    return service.spec.slo.ttft_p95.total_seconds()


async def test_a_fleet_is_read_with_the_classes_of_the_operator(
    tmp_path: Path,
) -> None:
    api = await an_api(json.dumps(TABLE))
    assert await installed_classes(Reader(api)) == ServiceClasses.model_validate(TABLE)
    fleet = await read_fleet(Reader(api), None)
    assert ttft_seconds(fleet) == 2
    path = str(tmp_path / "fleet.json")
    save(path, serialize(fleet))
    assert ttft_seconds(read(path)[0]) == 2


async def test_without_a_readable_table_the_classes_are_the_built_in_ones() -> None:
    for value in (None, "{", json.dumps({"Background": {}})):
        assert await installed_classes(Reader(await an_api(value))) == BUILT_IN_CLASSES
    denied = replace(await an_api(json.dumps(TABLE)), hidden={DEPLOYMENTS.plural})
    assert await installed_classes(Reader(denied)) == BUILT_IN_CLASSES


async def test_variants_of_any_speed_are_planned_together_where_gateways_are_installed(
    tmp_path: Path,
) -> None:
    api = await an_api(None)
    assert not (await read_fleet(Reader(api), None)).gateways
    (container,) = operator_of(api)["spec"]["template"]["spec"]["containers"]
    container["env"].append({"name": "TESSERA_GATEWAY_ACCOUNT", "value": "tessera-gateway"})
    fleet = await read_fleet(Reader(api), None)
    assert fleet.gateways
    path = str(tmp_path / "fleet.json")
    save(path, serialize(fleet))
    assert read(path)[0].gateways
