"""The contents of the two wheels and of the images, and `tessera` without the lab."""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import zipfile
from pathlib import Path

import click
import pytest
import typing_extensions
import yaml

from tessera import __version__

ROOT = Path(__file__).resolve().parents[1]
LAB = ROOT / "operator" / "tessera_lab"
SITE = sysconfig.get_path("purelib")
DOCKERFILES = {
    "operator": ROOT / "Dockerfile",
    **{path.parent.name: path for path in (ROOT / "images").glob("*/Dockerfile")},
}


def project(folder: Path) -> dict[str, object]:
    content = tomllib.loads((folder / "pyproject.toml").read_text(encoding="utf-8"))
    return dict(content["project"])


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> dict[str, zipfile.ZipFile]:
    """Both wheels by the name of their distribution."""
    folder = tmp_path_factory.mktemp("wheels")
    for source in (ROOT, LAB):
        command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
        subprocess.run(command, cwd=source, check=True, capture_output=True)
    return {path.name.partition("-")[0]: zipfile.ZipFile(path) for path in folder.glob("*.whl")}


def packages(wheel: zipfile.ZipFile) -> set[str]:
    """Top-level folders of a wheel, without its metadata."""
    folders = {name.partition("/")[0] for name in wheel.namelist()}
    return {folder for folder in folders if not folder.endswith(".dist-info")}


def test_each_wheel_contains_its_own_package_alone(wheels: dict[str, zipfile.ZipFile]) -> None:
    assert {name: packages(wheel) for name, wheel in wheels.items()} == {
        "tessera": {"tessera"},
        "tessera_lab": {"tessera_lab"},
    }


def test_a_wheel_contains_every_module_of_its_package(wheels: dict[str, zipfile.ZipFile]) -> None:
    for name, wheel in wheels.items():
        modules = {
            str(path.relative_to(ROOT / "operator"))
            for path in (ROOT / "operator" / name).rglob("*.py")
        }
        assert modules <= set(wheel.namelist())


def test_packages_chart_and_changelog_have_one_version() -> None:
    lab = project(LAB)
    assert lab["version"] == __version__
    # The lab uses modules that are no public API.
    assert f"tessera=={__version__}" in list(map(str, lab["dependencies"]))  # type: ignore[call-overload]
    chart = yaml.safe_load((ROOT / "charts" / "tessera" / "Chart.yaml").read_text("utf-8"))
    assert (chart["version"], chart["appVersion"]) == (__version__, __version__)
    headings = re.findall(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text("utf-8"), re.MULTILINE)
    assert headings[0] == __version__


@pytest.mark.parametrize(
    "words",
    [
        ["bench", "http://127.0.0.1:8000", "--sweep", "1,2"],
        ["bench", "--help"],
        ["bench"],
        ["simulate", "--trace", "day.csv"],
        ["mix", "load.csv"],
        ["engine", "--model", "m"],
    ],
    ids=" ".join,
)
def test_without_the_lab_its_commands_say_which_package_to_install(
    words: list[str], wheels: dict[str, zipfile.ZipFile], tmp_path: Path
) -> None:
    wheels["tessera"].extractall(tmp_path)
    shutil.copy(str(typing_extensions.__file__), tmp_path)
    shutil.copytree(Path(click.__file__).parent, tmp_path / "click")
    # -S: no packages but those in PYTHONPATH.
    done = subprocess.run(
        [sys.executable, "-S", "-m", "tessera.cli.main", *words],
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    install = "pip install '.[cli]' ./operator/tessera_lab in a checkout"
    sentence = f"tessera {words[0]} needs the package tessera-lab: {install}\n"
    assert (done.returncode, done.stdout, done.stderr) == (1, "", sentence)


def build_tree(dockerfile: str, tree: Path) -> None:
    """Copy what the Dockerfile copies of `operator/` to the same folders under `tree`."""
    lines = dockerfile.replace("\\\n", " ").splitlines()
    for line in lines:
        words = line.split()
        if words[:1] != ["COPY"] or not words[1].startswith("operator/"):
            continue
        *sources, target = words[1:]
        into = tree / target.removeprefix("/build/")
        for source in map(ROOT.joinpath, sources):
            if source.is_dir():
                shutil.copytree(source, into, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                into.mkdir(parents=True, exist_ok=True)
                shutil.copy(source, into)
    for line in lines:
        if removal := re.search(r"\brm -r ((?:\w+/\w+ ?)+)", line):
            for folder in removal[1].split():
                shutil.rmtree(tree / folder)


@pytest.mark.parametrize("image", DOCKERFILES)
def test_an_image_has_the_modules_that_its_process_imports(image: str, tmp_path: Path) -> None:
    dockerfile = DOCKERFILES[image].read_text(encoding="utf-8")
    build_tree(dockerfile, tmp_path)
    entrypoint = re.search(r'ENTRYPOINT \["python", "-m", "([\w.]+)"\]', dockerfile)
    assert entrypoint is not None
    done = subprocess.run(
        [sys.executable, "-S", "-c", f"import {entrypoint[1]}"],
        # The dependencies without the .pth files, which lead to the checkout.
        env=os.environ | {"PYTHONPATH": f"{tmp_path}:{SITE}"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    has_lab = (tmp_path / "tessera_lab").exists()
    assert has_lab == (image == "engine-sim")
    assert ("tessera_lab" in dockerfile) == has_lab


@pytest.mark.parametrize("image", DOCKERFILES)
def test_an_image_has_its_modules_compiled_since_its_processes_cannot_write(image: str) -> None:
    dockerfile = DOCKERFILES[image].read_text(encoding="utf-8")
    assert "PYTHONDONTWRITEBYTECODE=1" in dockerfile
    copied = re.search(r'cp -r ((?:\w+ )+)"', dockerfile)
    assert copied is not None
    compiled = re.search(r'-m compileall -q ((?:"\$site/\w+" ?)+)', dockerfile)
    assert compiled is not None
    names = re.findall(r'"\$site/(\w+)"', compiled[1])
    assert names == copied[1].split()
