"""Opens the place that a location names."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from tessera.batch_runner.model.hub import open_repository
from tessera.batch_runner.model.sources import FileSource
from tessera.batch_runner.model.web_folder import open_web_folder
from tessera.settings import RunnerSettings


@asynccontextmanager
async def open_source(
    uri: str,
    revision: str | None,
    settings: RunnerSettings,
    endpoint: str | None = None,
    region: str | None = None,
) -> AsyncIterator[FileSource]:
    """Open the source of a location, with the credentials of the environment."""
    scheme = uri.partition("://")[0]
    if scheme in ("s3", "gs", "az"):
        # Loading the library costs 15 MB, which no batch and no hub needs.
        from tessera.batch_runner.model.object_store import ObjectFolder  # noqa: PLC0415

        yield ObjectFolder(uri, endpoint, region)
    elif scheme in ("http", "https"):
        async with open_web_folder(uri, settings.bearer_token) as web_folder:
            yield web_folder
    else:
        async with open_repository(
            settings.hub_endpoint, settings.hub_token, uri, revision
        ) as repository:
            yield repository
