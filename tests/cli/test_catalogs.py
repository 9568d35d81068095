"""Commands know the GPUs and models that an installation adds to the catalog."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from tessera.cli.breakeven.arguments import BREAKEVEN
from tessera.cli.cluster import Reader
from tessera.cli.errors import CommandError
from tessera.cli.fleet import read_fleet
from tessera.cli.installation import installed_catalogs
from tessera.cli.main import main
from tessera.cli.size.arguments import SIZE
from tessera.cli.size.request import size_request
from tessera.cli.snapshot.file import read, save, serialize
from tessera.domain.hardware.gpu_catalog import catalog, models, products, shipped
from tests.builders import NOW
from tests.catalogs import A5000, OWN
from tests.cli.memory_api import MemoryApi, a_served_cluster, operator_of

pytestmark = pytest.mark.usefixtures("shipped_catalog")
CATALOGS = json.dumps({"gpus": [A5000], "models": [OWN]})
PRICES = {"prices": [{"product": "NVIDIA-RTX-A5000", "from": "2026-01-01", "perGPUHour": "0.40"}]}
CONFIG_MAP = "/api/v1/namespaces/tessera-system/configmaps/tessera-operator-catalogs"


def write_file(folder: Path, name: str, text: str) -> str:
    (folder / name).write_text(text, encoding="utf-8")
    return str(folder / name)


def test_a_model_is_sized_on_a_gpu_of_a_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = (
        *("--catalogs", write_file(tmp_path, "catalogs.json", CATALOGS)),
        *("--prices", write_file(tmp_path, "prices.json", json.dumps(PRICES))),
    )
    main(["size", "acme/llama-8b-ft", *files, "--json"])
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert {row["gpu"] for row in rows} == {"NVIDIA-RTX-A5000"}


def test_the_break_even_is_sized_with_the_same_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "catalogs" in {parameter.name for parameter in BREAKEVEN.params}
    main(
        [
            *("breakeven", "acme/llama-8b-ft", "--api-price", "2"),
            *("--catalogs", write_file(tmp_path, "catalogs.json", CATALOGS)),
            *("--gpu-prices", write_file(tmp_path, "prices.json", json.dumps(PRICES))),
        ]
    )
    assert "NVIDIA-RTX-A5000" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (None, "cannot be read, so the shipped catalog is used: "),
        ("gpus", "catalogs is not JSON"),
        (json.dumps({"gpus": [A5000 | {"memoryMiB": 0}]}), "catalogs.gpus[0] is left out: "),
    ],
)
def test_a_file_with_an_entry_that_cannot_be_used_is_refused(
    tmp_path: Path, text: str | None, says: str
) -> None:
    name = str(tmp_path / "catalogs.json")
    if text is not None:
        write_file(tmp_path, "catalogs.json", text)
    with pytest.raises(CommandError) as caught:
        size_request(SIZE.parse(["acme/llama-8b-ft", "--catalogs", name]), NOW.date())
    assert str(caught.value).startswith(f"--catalogs {name}: ")
    assert says in str(caught.value)
    assert catalog() == shipped()


async def an_api() -> MemoryApi:
    """Return an API whose operator mounts a ConfigMap of catalog entries."""
    _, api = await a_served_cluster()
    volume = {"name": "catalogs", "configMap": {"name": "tessera-operator-catalogs"}}
    operator_of(api)["spec"]["template"]["spec"]["volumes"] = [volume]
    api.pages[CONFIG_MAP] = {"data": {"catalogs.json": CATALOGS}}
    return api


async def test_a_fleet_is_read_with_the_entries_of_the_operator(tmp_path: Path) -> None:
    fleet = await read_fleet(Reader(await an_api()), None)
    assert fleet.catalogs == CATALOGS
    assert "NVIDIA-RTX-A5000" in products()
    assert "acme/llama-8b-ft" in models()
    path = str(tmp_path / "fleet.json")
    save(path, serialize(fleet))
    save(str(tmp_path / "plain.json"), serialize(replace(fleet, catalogs="")))
    read(str(tmp_path / "plain.json"))
    assert catalog() == shipped()
    assert read(path)[0].catalogs == CATALOGS
    assert "NVIDIA-RTX-A5000" in products()


async def test_entries_that_may_not_be_read_are_said_to_be_unknown(
    caplog: pytest.LogCaptureFixture,
) -> None:
    api = await an_api()
    api.pages.pop(CONFIG_MAP)
    assert await installed_catalogs(Reader(api)) == ""
    assert not caplog.records
    api.refused.add(CONFIG_MAP)
    assert await installed_catalogs(Reader(api)) == ""
    (message,) = [record.getMessage() for record in caplog.records]
    assert "permission denied: get" in message
    assert "GPUs and models that the installation adds are unknown" in message
