"""The command line as a user runs it."""

import asyncio
import json
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from demo.cluster import InstalledCluster, Json, communicate
from scenarios.actions import ScenarioNamespace


@dataclass(frozen=True, slots=True)
class CommandResult:
    """The exit code and the output of a command."""

    code: int
    output: str
    errors: str

    @property
    def json(self) -> Json:
        body: Json = json.loads(self.output)
        return body


async def run_tessera(
    cluster: InstalledCluster, *arguments: str, kubeconfig: Path | None = None
) -> CommandResult:
    """Run a command as a user does."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tessera.cli.main", *arguments),
        env=os.environ | {"KUBECONFIG": str(kubeconfig or cluster.world.kubeconfig)},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    output, errors = await communicate(process)
    assert process.returncode is not None
    assert "Traceback" not in errors.decode()
    return CommandResult(process.returncode, output.decode(), errors.decode())


async def explain(
    namespace: ScenarioNamespace, *arguments: str, name: str = "chat"
) -> Mapping[str, Json]:
    """Return the decisions about a service, by topic."""
    result = await run_tessera(
        namespace.cluster, "explain", name, "-n", namespace.name, "-o", "json", *arguments
    )
    assert result.code == 0, result.errors
    return {decision["topic"]: decision for decision in result.json["decisions"]}
