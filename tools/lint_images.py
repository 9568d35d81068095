"""Lints the Dockerfiles and the rendered chart, with hadolint and checkov."""

import subprocess
import sys
import tempfile
from pathlib import Path

from environments import ROOT, environment, say
from world.binaries import ensure

DOCKERFILES = (ROOT / "Dockerfile", *sorted((ROOT / "images").glob("*/Dockerfile")))
CHART = ROOT / "charts" / "tessera"
PRODUCTION = CHART / "values-production.yaml"
# What the production values ask for.
SECRETS = "gateway.database.secretName=gateway-database,gateway.tls.secretName=gateway-tls"
# Checks that do not apply, with the reason.
SKIPPED = {
    "CKV_K8S_11": "no CPU limit: throttling the leader would delay its lease",
    "CKV_K8S_15": "the image is released by version, so it need not be pulled every time",
    "CKV_K8S_35": "the database's URL is read once, by the only process of the gateway's container",
    "CKV_K8S_38": "the operator needs its ServiceAccount token",
    "CKV_K8S_43": "a digest is set by those who mirror the image",
    "CKV_K8S_155": "of webhooks the operator may patch one configuration by name: its own",
    "CKV2_K8S_5": "the gateway may read all Secrets of the namespace of keys, which has no others",
    "CKV_DOCKER_7": "the base is pinned by a variable, which checkov does not follow",
}


def main() -> None:
    """Exit with 1 on any finding."""
    tools = environment("images") / "bin"
    helm = ensure(say, ["helm"]) / "helm"
    with tempfile.TemporaryDirectory() as folder:
        rendered = Path(folder) / "chart.yaml"
        template = [str(helm), "template", "tessera", str(CHART), "--values", str(PRODUCTION)]
        # A pod that looks once and ends has no probes.
        template += ["--set", SECRETS, "--namespace", "tessera-system", "--skip-tests"]
        _run(template, into=rendered)
        _run([str(tools / "hadolint"), *map(str, DOCKERFILES)])
        _run(_checkov(tools, "kubernetes", rendered))
        _run(_checkov(tools, "dockerfile", *DOCKERFILES))
    print(f"lint: {len(DOCKERFILES)} Dockerfiles and the chart are clean")


def _checkov(tools: Path, framework: str, *files: Path) -> list[str]:
    named = [argument for file in files for argument in ("--file", str(file))]
    options = ["--quiet", "--compact", "--skip-download", "--skip-check", ",".join(SKIPPED)]
    return [str(tools / "checkov"), "--framework", framework, *options, *named]


def _run(command: list[str], into: Path | None = None) -> None:
    done = subprocess.run(command, check=False, stdout=subprocess.PIPE)
    if done.returncode:
        sys.stdout.buffer.write(done.stdout)
        sys.exit(f"lint: {Path(command[0]).name} found something ({done.returncode})")
    if into is not None:
        into.write_bytes(done.stdout)


if __name__ == "__main__":
    main()
