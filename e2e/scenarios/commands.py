"""The command line as a user runs it."""

import asyncio
import json
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from demo.stage import Json, Stage
from scenarios.actions import Place


@dataclass(frozen=True, slots=True)
class Ended:
    """How a command ended."""

    code: int
    output: str
    errors: str

    @property
    def json(self) -> Json:
        found: Json = json.loads(self.output)
        return found


async def tessera(stage: Stage, *arguments: str, kubeconfig: Path | None = None) -> Ended:
    """A command as a user runs it."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tessera.cli.main", *arguments),
        env=os.environ | {"KUBECONFIG": str(kubeconfig or stage.world.kubeconfig)},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    output, errors = await process.communicate()
    assert process.returncode is not None
    assert "Traceback" not in errors.decode()
    return Ended(process.returncode, output.decode(), errors.decode())


async def explained(place: Place, *arguments: str, name: str = "chat") -> Mapping[str, Json]:
    """The decisions about a service, by topic."""
    told = await tessera(
        place.stage, "explain", name, "-n", place.namespace, "-o", "json", *arguments
    )
    assert told.code == 0, told.errors
    return {one["topic"]: one for one in told.json["decisions"]}
