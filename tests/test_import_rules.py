"""Every import rule catches a violation that is planted for it."""

import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

PLANTED = {
    "Data flows one way": ("domain/money.py", "import tessera.resources.api_resources"),
    "The core is pure": ("domain/scaling/autoscale.py", "import time"),
    "kopf stays in controller": ("reconcile/loop.py", "import kopf"),
    "The Kubernetes client stays in adapters, its models in resources": (
        "reconcile/store.py",
        "import kubernetes.client",
    ),
    "Prometheus is asked in one adapter": (
        "adapters/engine_client.py",
        "import prometheus_api_client",
    ),
    "The GPU driver is asked in one adapter": ("node_agent/reconcile.py", "import pynvml"),
    "The kubelet is asked in one adapter": ("node_agent/reconcile.py", "import grpc"),
    "Certificates are made in one adapter": ("controller/certificates.py", "import cryptography"),
    "The simulator knows no operator": (
        "../tessera_lab/sim/text.py",
        "import tessera.adapters.clock",
    ),
}


def contracts() -> list[str]:
    config = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    return [contract["name"] for contract in config["tool"]["importlinter"]["contracts"]]


def lint(sources: Path) -> str:
    done = subprocess.run(
        [str(Path(sys.executable).parent / "lint-imports"), "--no-cache"],
        cwd=sources,
        env=os.environ | {"PYTHONPATH": str(sources)},
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stdout + done.stderr


@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_violation_is_caught(name: str, tmp_path: Path) -> None:
    for package in ("tessera", "tessera_lab"):
        shutil.copytree(ROOT / "operator" / package, tmp_path / package)
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    module, line = PLANTED[name]
    planted = tmp_path / "tessera" / module
    planted.write_text(planted.read_text(encoding="utf-8") + f"\n{line}\n", encoding="utf-8")
    assert f"{name} BROKEN" in lint(tmp_path)


def test_every_rule_has_a_planted_violation() -> None:
    assert contracts() == list(PLANTED)


def test_the_source_root_never_becomes_a_package() -> None:
    assert not (ROOT / "operator" / "__init__.py").exists()
