"""Entries of an installation reach a process by a file, and no bad one stops it."""

import json
from pathlib import Path

import pytest

from tessera.adapters.catalog_file import install_catalog
from tessera.domain.hardware.gpu_catalog import catalog, products, shipped
from tests.catalogs import A5000, ADA

pytestmark = pytest.mark.usefixtures("shipped_catalog")


def test_without_a_file_the_catalog_is_the_shipped_one() -> None:
    install_catalog(None)
    assert catalog() == shipped()


def test_what_is_left_out_is_logged_and_the_rest_is_known(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "catalogs.json"
    path.write_text(json.dumps({"gpus": [A5000 | {"memoryMiB": "much"}, ADA]}), encoding="utf-8")
    install_catalog(path)
    assert [name for name in products() if name not in shipped().products] == [ADA["product"]]
    (record,) = caplog.records
    assert record.levelname == "ERROR"
    assert record.getMessage().startswith("catalogs.gpus[0] is left out: memoryMiB: ")


@pytest.mark.parametrize("content", [None, b"\xff\xfe", b"{"])
def test_a_file_that_cannot_be_read_leaves_the_shipped_catalog(
    tmp_path: Path, content: bytes | None, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "catalogs.json"
    if content is not None:
        path.write_bytes(content)
    install_catalog(path)
    assert catalog() == shipped()
    assert len(caplog.records) == 1
