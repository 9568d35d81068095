"""The programs of a world, built once from the pinned modules of `binaries/go.mod`.

They go to the user's cache by the hash of the pins, under a lock, so that two starters do not build
twice. One `go build` makes all of them: what they share is compiled once, and one links while
another compiles. They are moved into place when complete; what an interrupted build has compiled is
in the cache of Go. Standard library only: a first `make` builds them while it installs packages.
"""

import hashlib
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path

from world.errors import WorldError, advice
from world.folders import HERE, cache, sole_maker
from world.lifetimes import dies_with_parent

MODULE = HERE / "binaries"
PACKAGES = {
    "etcd": "go.etcd.io/etcd/server/v3",
    "kube-apiserver": "k8s.io/kubernetes/cmd/kube-apiserver",
    "kube-controller-manager": "k8s.io/kubernetes/cmd/kube-controller-manager",
    "kube-scheduler": "k8s.io/kubernetes/cmd/kube-scheduler",
    "kubectl": "k8s.io/kubernetes/cmd/kubectl",
    "kwok": "sigs.k8s.io/kwok/cmd/kwok",
    "prometheus": "github.com/prometheus/prometheus/cmd/prometheus",
    "promtool": "github.com/prometheus/prometheus/cmd/promtool",
    "helm": "helm.sh/helm/v4/cmd/helm",
}
# What every world runs; the others are built where they are needed.
EVERY_WORLD = tuple(name for name in PACKAGES if name not in ("kwok", "promtool"))
# Prometheus without the discoveries of 24 clouds, and no program with what debuggers read.
# No part of the hash: a program that has these serves as well.
LEAN = ["-tags=remove_all_sd,enable_kubernetes_sd", "-gcflags=all=-dwarf=false"]
# Percentage for the compiler: collecting garbage a quarter as often.
GARBAGE_COLLECTION = "400"
TICK_SECONDS = 10

Progress = Callable[[str], None]


def ensure(progress: Progress, names: Iterable[str] = PACKAGES) -> Path:
    """The folder that holds the binaries with these names; what is missing is built first."""
    folder = _folder()
    if not _missing(folder, names):
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    with sole_maker(folder, progress):
        if missing := _missing(folder, names):
            _check_go()
            _build(folder, missing, progress)
    return folder


def _folder() -> Path:
    pins = (MODULE / "go.mod").read_bytes() + (MODULE / "go.sum").read_bytes()
    digest = hashlib.sha256(pins + " ".join(_flags()).encode()).hexdigest()
    return cache() / "bin" / digest[:12]


def _missing(folder: Path, names: Iterable[str]) -> list[str]:
    return [name for name in names if not (folder / name).exists()]


def _flags() -> list[str]:
    """Without its version stamped in, the API server calls itself v0.0.0 and clients refuse it."""
    pin = re.search(r"k8s\.io/kubernetes (v(\d+)\.(\d+)\.\S+)", (MODULE / "go.mod").read_text())
    if pin is None:
        raise WorldError(f"{MODULE / 'go.mod'} does not require k8s.io/kubernetes")
    stamps = {"gitVersion": pin[1], "gitMajor": pin[2], "gitMinor": pin[3]}
    stamped = " ".join(f"-X k8s.io/component-base/version.{k}={v}" for k, v in stamps.items())
    return ["-trimpath", "-ldflags", f"-s -w {stamped}"]


def _check_go() -> None:
    """Asked inside the module, `go` itself says whether it can satisfy the version in go.mod."""
    go_version = re.search(r"^go (\S+)", (MODULE / "go.mod").read_text(), re.MULTILINE)
    hint = f"install Go {go_version[1] if go_version else ''} or newer from https://go.dev/dl/"
    try:
        answer = subprocess.run(
            ["go", "version"], cwd=MODULE, capture_output=True, text=True, check=False
        )
    except FileNotFoundError as error:
        raise WorldError(f"building the world's binaries needs `go` on PATH: {hint}") from error
    if answer.returncode:
        raise WorldError(f"this `go` is too old: {hint} (it said: {answer.stderr.strip()})")


def _build(folder: Path, names: Sequence[str], progress: Progress) -> None:
    progress(f"building {', '.join(names)}")
    began = time.monotonic()
    partial, log = folder / "partial", folder / "build.log"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    packages = {name: PACKAGES[name] for name in names}
    command = ["go", "build", *LEAN, *_flags(), "-o", f"{partial}/", *packages.values()]
    with (
        log.open("wb") as out,
        subprocess.Popen(
            command,
            cwd=MODULE,
            env=os.environ | {"CGO_ENABLED": "0", "GOGC": GARBAGE_COLLECTION},
            stdout=out,
            stderr=out,
            preexec_fn=dies_with_parent(),  # noqa: PLW1509 (it takes no lock)
        ) as build,
    ):
        while not _ended(build):
            linked = sum(1 for _ in partial.iterdir())
            seconds = time.monotonic() - began
            progress(f"building, {linked} of {len(names)} linked, {seconds:.0f} s so far")
    if build.returncode:
        output = log.read_text()
        raise WorldError(
            f"{output[-2000:]}\nbuilding {', '.join(names)} failed (all of it: {log}): "
            f"{advice(output)}"
        )
    for name, package in packages.items():
        (partial / _program(package)).rename(folder / name)
    partial.rmdir()
    log.unlink()


def _program(package: str) -> str:
    """Return how `go build` names the program of a package: by its path without a major version."""
    return re.sub(r"/v\d+$", "", package).rpartition("/")[2]


def _ended(build: subprocess.Popen[bytes]) -> bool:
    """Whether the build ended within one tick; an interrupt ends it too."""
    try:
        build.wait(TICK_SECONDS)
    except subprocess.TimeoutExpired:
        return False
    except KeyboardInterrupt:
        build.terminate()
        raise
    return True


if __name__ == "__main__":
    try:
        ensure(partial(print, flush=True), EVERY_WORLD)
    except WorldError as error:
        sys.exit(str(error))
    except KeyboardInterrupt:
        sys.exit(130)
