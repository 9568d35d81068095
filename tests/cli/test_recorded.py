"""Commands print what they printed: a new frame of reports changes no byte.

A digest of each call is in `recorded.json`, which `--update-golden` writes. To see what differs
between two trees, write both and compare them:
`.venv/bin/python -m tests.cli.test_recorded FOLDER`.
"""

import asyncio
import hashlib
import json
import os
import sys
import tempfile
from pathlib import Path

import pytest

from tests.cli.recorded_calls import played

# The width of help.
_COLUMNS = "100"
_RECORDED = Path(__file__).parent / "recorded.json"


async def test_what_commands_print_stays(
    tmp_path: Path, pytestconfig: pytest.Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", _COLUMNS)
    monkeypatch.setattr(sys, "argv", ["tessera"])
    calls = await played(tmp_path)
    digests = {
        name: hashlib.sha256(calls[name].encode()).hexdigest()[:16] for name in sorted(calls)
    }
    if pytestconfig.getoption("--update-golden"):
        _RECORDED.write_text(json.dumps(digests, indent=0) + "\n", encoding="utf-8")
        return
    assert digests == json.loads(_RECORDED.read_text(encoding="utf-8"))


if __name__ == "__main__":
    os.environ["COLUMNS"] = _COLUMNS
    with tempfile.TemporaryDirectory() as inputs:
        texts = asyncio.run(played(Path(inputs)))
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    for number, (name, text) in enumerate(texts.items()):
        (folder / f"{number:03}.txt").write_text(f"{name}\n\n{text}", encoding="utf-8")
