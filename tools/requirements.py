"""Pins the dependencies of pyproject.toml with hashes, one file for every process that has its own.

The files name no index. `requirements/engine.txt` is for the real engine on CPU, apart.
"""

import subprocess
import sys
import tempfile
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FILES = {
    "dev": ("operator", "sim", "test"),
    "operator": ("operator",),
    "sim": ("sim",),
}
UV = "uv==0.13.8"


def main() -> None:
    """Resolve every file anew."""
    with tempfile.TemporaryDirectory() as folder:
        venv.create(folder, with_pip=True)
        python = Path(folder) / "bin" / "python"
        subprocess.run([python, "-m", "pip", "install", "--quiet", UV], check=True)
        for name, extras in FILES.items():
            _compile(python, name, extras)
    print(f"requirements: {', '.join(FILES)} pinned", file=sys.stderr)


def _compile(python: Path, name: str, extras: tuple[str, ...]) -> None:
    told = [argument for extra in extras for argument in ("--extra", extra)]
    constraints = [] if name == "dev" else ["-c", "requirements/dev.txt"]
    subprocess.run(
        [
            *(str(python), "-m", "uv", "pip", "compile", "pyproject.toml", *told, *constraints),
            *("--generate-hashes", "--universal", "--python-version", "3.11"),
            *("--no-header", "--no-emit-index-url", "--quiet", "--upgrade"),
            *("-o", f"requirements/{name}.txt"),
        ],
        check=True,
        cwd=ROOT,
    )


if __name__ == "__main__":
    main()
