import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def run(**environment: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "tessera.node_agent.main"],
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT / "operator"), **environment},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({}, "tessera-node: invalid environment: node_name: Field required"),
        ({"TESSERA_NODE_NAME": "gpu-1", "KUBECONFIG": "/nowhere"}, "tessera-node: /nowhere: "),
    ],
)
def test_an_invalid_environment_is_reported_in_a_line(
    environment: dict[str, str], message: str
) -> None:
    process = run(**environment)
    assert process.returncode == 1
    assert process.stderr.splitlines()[-1].startswith(message)
    assert "Traceback" not in process.stderr
