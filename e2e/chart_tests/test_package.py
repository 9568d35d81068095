"""The chart as a file: the same bytes from any checkout, with what Artifact Hub shows of it."""

import os
import shutil
import tarfile
from pathlib import Path

import yaml

import package_chart
from tessera.api.schema import crd
from tessera.domain.kinds.kinds import KINDS


def test_the_package_is_the_chart_and_the_same_bytes_from_any_checkout(tmp_path: Path) -> None:
    checkout = shutil.copytree(package_chart.CHART, tmp_path / "checkout" / "tessera")
    for path in checkout.rglob("*"):
        os.utime(path, (10**9, 10**9))
    values = checkout / "values.yaml"
    values.chmod(0o600)
    package = package_chart.package(tmp_path / "first")
    again = package_chart.package(tmp_path / "second", checkout)

    assert package.read_bytes() == again.read_bytes()
    with tarfile.open(package) as archive:
        packed = {member.name for member in archive if member.isfile()}
    parent = package_chart.CHART.parent
    assert packed == {
        str(path.relative_to(parent)) for path in package_chart.CHART.rglob("*") if path.is_file()
    }


def test_artifact_hub_gets_the_kinds_of_the_api() -> None:
    chart = yaml.safe_load((package_chart.CHART / "Chart.yaml").read_text("utf-8"))
    annotations = {
        name.removeprefix("artifacthub.io/"): yaml.safe_load(text)
        for name, text in chart["annotations"].items()
    }
    definitions = [crd(kind) for kind in KINDS]
    assert {(each["kind"], each["name"], each["version"]) for each in annotations["crds"]} == {
        (
            definition["spec"]["names"]["kind"],
            definition["metadata"]["name"],
            definition["spec"]["versions"][-1]["name"],
        )
        for definition in definitions
    }
    assert all(set(each) == {"kind", "description"} for each in annotations["changes"])
    assert {each["kind"] for each in annotations["changes"]} <= {
        *("added", "changed", "deprecated", "removed", "fixed", "security"),
    }
