"""Packages the chart as one file, which is the same bytes for the same chart: `dist/tessera-*.tgz`.

`python tools/package_chart.py FOLDER` writes it elsewhere.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from environments import ROOT, say
from world.binaries import ensure

CHART = ROOT / "charts" / "tessera"
# Helm packs the times of files, and a checkout gives them its own: 1980, as in other archives.
_FILE_TIME = 315_532_800


def package(folder: Path, chart: Path = CHART) -> Path:
    """Return the file in the folder, which is made; SystemExit says what Helm refuses."""
    helm = ensure(say, ["helm"]) / "helm"
    with tempfile.TemporaryDirectory() as copied:
        copy = shutil.copytree(chart, Path(copied) / chart.name)
        for path in copy.rglob("*"):
            path.chmod(0o755 if path.is_dir() else 0o644)
            os.utime(path, (_FILE_TIME, _FILE_TIME))
        command = [str(helm), "package", str(copy), "--destination", str(folder)]
        done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"package: {done.stderr.strip()}")
    return Path(done.stdout.strip().rpartition(": ")[2])


if __name__ == "__main__":
    print(package(Path(sys.argv[1]) if sys.argv[1:] else ROOT / "dist"))
