"""The command line as a user runs it."""

import asyncio
import contextlib
import io
import json
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

from demo.cluster import InstalledCluster, Json, StepError
from scenarios.actions import ScenarioNamespace
from tessera.cli.main import main

_TURN = threading.Lock()


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
    """Run a command as a user does, but in this process, which has the modules."""
    output, errors = io.StringIO(), io.StringIO()

    def run() -> int:
        # Environment and errors are the process's: scenes that play beside each other take turns.
        # So is its output, which pytest replaces when a test ends beside them.
        with (
            _TURN,
            pytest.MonkeyPatch.context() as patch,
            contextlib.redirect_stderr(errors),
        ):
            patch.setenv("KUBECONFIG", str(kubeconfig or cluster.world.kubeconfig))
            try:
                main(arguments, output)
            except SystemExit as end:
                if isinstance(end.code, str):
                    print(end.code, file=errors)
                    return 1
                return end.code or 0
        return 0

    code = await asyncio.to_thread(run)
    return CommandResult(code, output.getvalue(), errors.getvalue())


async def explain(
    namespace: ScenarioNamespace, *arguments: str, name: str = "chat"
) -> Mapping[str, Json]:
    """Return the decisions about a service, by topic; a wait does not repeat what fails."""
    result = await run_tessera(
        namespace.cluster, "explain", name, "-n", namespace.name, "-o", "json", *arguments
    )
    if result.code != 0:
        raise StepError(result.errors)
    return {decision["topic"]: decision for decision in result.json["decisions"]}
