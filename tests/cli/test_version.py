"""`tessera version`: what this program, the operator and the gateways have."""

import json
import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest

from tessera import __version__
from tessera.cli.cluster import Reader
from tessera.cli.errors import DeniedError
from tessera.cli.main import main
from tessera.cli.version import InstalledVersion, installed_versions, report
from tessera.resources.api_resources import DEPLOYMENTS
from tests.cli.memory_api import a_served_cluster

OPERATOR = InstalledVersion(
    component="operator",
    version="0.2.0",
    namespace="tessera-system",
    available=1,
    replicas=1,
    image="ghcr.io/acme/tessera/operator:0.2.0",
)
GATEWAY = replace(OPERATOR, component="gateway", available=1, replicas=2)


def said(program: str, *versions: InstalledVersion) -> str:
    return report(program, versions, "", "text").text


def test_each_version_has_its_line() -> None:
    assert said("0.2.0", OPERATOR, GATEWAY).splitlines() == [
        "tessera   0.2.0  this program",
        "operator  0.2.0  1 of 1 available in tessera-system, ghcr.io/acme/tessera/operator:0.2.0",
        "gateway   0.2.0  1 of 2 available in tessera-system, ghcr.io/acme/tessera/operator:0.2.0",
    ]


@pytest.mark.parametrize(
    ("program", "operator", "gateway", "note"),
    [
        ("0.2.1", "0.2.0", "0.2.3", None),
        ("0.2.0", "0.1.0", "0.1.0", "The operator in tessera-system has 0.1.0: this program .* "),
        ("0.2.0", "0.2.0", "0.1.0", "The gateway in tessera-system has 0.1.0 beside 0.2.0: wait"),
        ("0.2.0", "0.2.0", "unknown", "The gateway in tessera-system has unknown beside 0.2.0"),
    ],
)
def test_a_difference_is_said_where_it_matters(
    program: str, operator: str, gateway: str, note: str | None
) -> None:
    installed = (replace(OPERATOR, version=operator), replace(GATEWAY, version=gateway))
    lines = said(program, *installed).splitlines()
    assert len(lines) == (3 if note is None else 4)
    assert note is None or re.match(note, lines[-1])


def test_a_cluster_without_tessera_is_named() -> None:
    assert said("0.2.0").splitlines()[1:] == [
        "Tessera is not installed in this cluster: see helm install in README.md"
    ]


async def test_the_versions_are_read_from_the_deployments() -> None:
    _, api = await a_served_cluster()
    (operator,) = await installed_versions(Reader(api))
    assert (operator.component, operator.available, operator.replicas) == ("operator", 1, 1)


def test_what_keeps_the_cluster_from_answering_is_a_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KUBECONFIG", "/nowhere")
    main(["version"])
    first, second = capsys.readouterr().out.splitlines()
    assert first == f"tessera  {__version__}  this program"
    assert second.startswith("no cluster: /nowhere not found. Give --kubeconfig FILE")
    main(["version", "-o", "json"])
    body: Mapping[str, Any] = json.loads(capsys.readouterr().out)
    assert (body["tessera"], body["installed"]) == (__version__, [])
    assert body["notes"] == [second]


async def test_who_may_not_list_deployments_hears_it() -> None:
    _, api = await a_served_cluster()
    api.hidden.add(DEPLOYMENTS.plural)
    with pytest.raises(DeniedError, match="permission denied: list deployments"):
        await installed_versions(Reader(api))


def test_the_option_asks_no_cluster(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", ["tessera"])
    main(["--version"])
    assert capsys.readouterr().out == f"tessera {__version__}\n"
