"""Every import rule catches a violation that is planted for it."""

import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Mapping
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

PLANTED = {
    "Data flows one way": ("domain/money.py", "import tessera.resources.api_resources"),
    "Decisions build on each other in one direction": (
        "domain/hardware/pools.py",
        "import tessera.domain.planning.plan",
    ),
    "Commands build on each other in one direction": (
        "cli/breakeven/sized.py",
        "import tessera.cli.breakeven.request",
    ),
    "A request passes the rooms of the gateway in one direction": (
        "gateway/http/sse.py",
        "import tessera.gateway.paths",
    ),
    "The loop of a request knows stations by their entries": (
        "gateway/requests/course.py",
        "import tessera.gateway.queue.queues",
    ),
    "A request reaches neither layouts nor budgets": (
        "domain/limits/account.py",
        "import tessera.domain.layout.problem",
    ),
    "The agent of a node reaches neither layouts nor budgets": (
        "adapters/pod_resources.py",
        "import tessera.domain.mig.plan",
    ),
    "A batch runner reaches neither layouts nor budgets": (
        "domain/model/families.py",
        "import tessera.domain.budget.budgets",
    ),
    "Observations know the API types alone": (
        "domain/observed/batches.py",
        "import tessera.domain.money",
    ),
    "The core is pure": ("domain/scaling/policies/queue_and_activity.py", "import time"),
    "Few modules know vLLM": ("domain/scaling/target.py", "import tessera.domain.vllm.facts"),
    "Aspects alone ask the rules of what is measured": (
        "domain/status/service.py",
        "import tessera.domain.slo.condition",
    ),
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
    "The database is asked in one package": ("gateway/http/token_counts.py", "import sqlalchemy"),
    "The product does without the lab": ("domain/money.py", "import tessera_lab.engine"),
    "The lab's data flows one way": (
        "../tessera_lab/load/responses.py",
        "import tessera_lab.sim.text",
    ),
    "The lab stands on domain and api": (
        "../tessera_lab/sim/text.py",
        "import tessera.adapters.clock",
    ),
    "The lab's commands take options, output, plots and fleets of the CLI": (
        "../tessera_lab/cli/bench/plan.py",
        "import tessera.cli.fleet",
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


@pytest.fixture(scope="module")
def faults(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, str]:
    """Plant all violations in one copy; return what is said of each broken rule."""
    copy = tmp_path_factory.mktemp("planted")
    for package in ("tessera", "tessera_lab"):
        shutil.copytree(ROOT / "operator" / package, copy / package)
    shutil.copy(ROOT / "pyproject.toml", copy)
    for module, line in PLANTED.values():
        with (copy / "tessera" / module).open("a", encoding="utf-8") as planted:
            planted.write(f"\n{line}\n")
    parts = re.split(r"\n(.+)\n-{4,}\n", lint(copy))
    return {
        name: " ".join(text.split()) for name, text in zip(parts[1::2], parts[2::2], strict=True)
    }


@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_violation_is_caught(name: str, faults: Mapping[str, str]) -> None:
    path, line = PLANTED[name]
    module = os.path.normpath(f"tessera/{path}").removesuffix(".py").replace("/", ".")
    imported = line.removeprefix("import ")
    # Of other packages the linter names the first part.
    target = imported if imported.startswith("tessera.") else imported.partition(".")[0]
    # A circle is told by the names within its package.
    siblings = f" .{module.rpartition('.')[2]} -> .{target.rpartition('.')[2]}"
    assert f" {module} -> {target}" in faults[name] or siblings in faults[name]


def test_every_rule_has_a_planted_violation() -> None:
    assert contracts() == list(PLANTED)


def test_the_lab_is_forbidden_every_other_package_of_the_product() -> None:
    config = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    forbidden = [
        set(contract["forbidden_modules"])
        for contract in config["tool"]["importlinter"]["contracts"]
        if any(source.startswith("tessera_lab.") for source in contract.get("source_modules", ()))
    ]
    [layers] = [
        contract["layers"]
        for contract in config["tool"]["importlinter"]["contracts"]
        if contract.get("containers") == ["tessera"]
    ]
    packages = {f"tessera.{name}" for layer in layers for name in layer.split(" | ")}
    assert forbidden == [packages - {"tessera.api", "tessera.domain"}] * 2


def test_observations_are_forbidden_every_other_package_of_the_product() -> None:
    config = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    by_name = {
        contract["name"]: contract for contract in config["tool"]["importlinter"]["contracts"]
    }
    packages = {
        f"{container}.{name}"
        for rule in ("Data flows one way", "Decisions build on each other in one direction")
        for container in by_name[rule]["containers"]
        for layer in by_name[rule]["layers"]
        for name in layer.split(" | ")
    }
    assert set(by_name["Observations know the API types alone"]["forbidden_modules"]) == (
        packages - {"tessera.api", "tessera.domain", "tessera.domain.observed"}
    )


def test_the_source_root_never_becomes_a_package() -> None:
    assert not (ROOT / "operator" / "__init__.py").exists()


@pytest.mark.parametrize(
    ("entry", "bar"),
    [
        # Both know directories, which have prices and limits of charges; a request reserves money,
        # pays it, and its stream may end by it. A limit may be raised for a time, and throttled.
        # A spec says how its changes are rolled out. Tenants share the rate limits of providers.
        ("tessera.gateway.requests.app", 147),
        # The parser of objects knows routes, and those of gates with their reasons, as in a runner;
        # the client of the API server reads what nests too deeply for other readers. What
        # is observed of services has their recorded load.
        ("tessera.node_agent.main", 101),
        # A runner takes money for rows, by prices that a gateway tells it; that of a gate scores
        # answers and judges them. One that reads a model knows caches that are compressed.
        ("tessera.batch_runner.main", 148),
    ],
)
def test_a_process_loads_few_modules_of_the_product(entry: str, bar: int) -> None:
    """Packages do not count: whoever raises a bar says what the process needs there."""
    script = (
        f"import sys, {entry}\n"
        "for name, module in list(sys.modules.items()):\n"
        "    if name.startswith('tessera.') and not hasattr(module, '__path__'):\n"
        "        print(name)"
    )
    listed = subprocess.run(
        [sys.executable, "-c", script],
        env=os.environ | {"PYTHONPATH": str(ROOT / "operator")},
        capture_output=True,
        text=True,
        check=True,
    )
    loaded = listed.stdout.split()
    assert entry in loaded
    assert len(loaded) <= bar, loaded
