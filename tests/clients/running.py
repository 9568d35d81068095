"""A gateway before simulated engines, each a process: what clients talk to."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

from tessera.domain.gateway.directory import OfferedModel
from tests.conformance import engines
from tests.conformance.configurations import Configuration
from tests.gateway.harness import a_model, a_replica

CHAT = Configuration(name="chat", argv=("--served-model-name=chat", "--max-model-len=1024"))
EMBEDDINGS = Configuration(
    name="embeddings", argv=("--served-model-name=embeddings", "--runner=pooling")
)


@asynccontextmanager
async def simulators(
    folder: Path, *configurations: Configuration
) -> AsyncIterator[list[engines.EngineProcess]]:
    """Run an engine for each of the configurations."""
    async with AsyncExitStack() as stack:
        yield [
            await stack.enter_async_context(
                engines.running(engines.simulator(), "tiny", configuration, folder)
            )
            for configuration in configurations
        ]


def offered(engine: engines.EngineProcess, *names: str, **changes: Any) -> OfferedModel:
    """Return the model of an engine under these names, of which it knows the first."""
    address = engine.url.removeprefix("http://")
    return a_model(a_replica(address, names[0]), names=names, uid=f"uid-{names[0]}", **changes)
