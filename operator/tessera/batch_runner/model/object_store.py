"""Files of a model in the buckets of S3, Google Cloud Storage and Azure, by object_store."""

import asyncio
import hashlib
import json
import os
import re
from collections.abc import AsyncGenerator, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

import obstore
from obstore import exceptions
from obstore.store import AzureStore, GCSStore, S3Store

from tessera.api.text import counted
from tessera.batch_runner.errors import BatchError, RefusedError, TransientError
from tessera.batch_runner.model.sources import (
    SUMS,
    Chunk,
    DigestedFolder,
    RangeIgnoredError,
    SourceFile,
    SourceListing,
    read_whole,
)

if TYPE_CHECKING:
    from obstore import GetOptions

_CHUNK_BYTES = 2**20
# How the variables with credentials of the three clouds begin.
_CREDENTIALS = ("AWS_", "GOOGLE_", "AZURE_")
_MAX_OBJECTS = 10_000
_LISTING_SECONDS = 120
# These bound one request; a download is bounded by how fast its bytes come.
_CLIENT = {"connect_timeout": timedelta(seconds=10), "timeout": timedelta(hours=12)}
_RETRIES = {"max_retries": 2, "retry_timeout": timedelta(seconds=20)}
# The address of the machine's own credentials, which is asked when nothing else has any.
_IDENTITY = re.compile(r"169\.254\.|metadata\.google|identity/oauth2")
# A bucket elsewhere is known by a redirect without an address, or what S3 says of the signature.
_REGION = re.compile(r"redirect without LOCATION|PermanentRedirect|region '[^']*' is wrong")
_EXPIRED = re.compile(r"expired|InvalidToken", re.IGNORECASE)
_STATUS = re.compile(r"status code: (\d{3})")
_CODE = re.compile(r"<Code>(\w{1,64})</Code>")
_MESSAGE = re.compile(r"<Message>([^<]{1,200})")
# Why there is no connection: the innermost error of the library's debug text.
_CAUSE = re.compile(r'(?:message|error): (?:"([^"]{1,120})"|(InvalidCertificate)\( (\w{1,60}))')
# What follows a question mark may be a signature.
_QUERY = re.compile(r"\?[^\s\"'<>]*")
# How the library reports that a store sent other bytes than the range that it was asked for.
_RANGE_IGNORED = re.compile(r"non-partial response|Requested \d+\.\.")
_MAX_MESSAGE_LENGTH = 300


class ObjectFolder:
    """A folder of a bucket."""

    def __init__(
        self,
        uri: str,
        endpoint: str | None,
        region: str | None,
        *,
        listing_seconds: float = _LISTING_SECONDS,
    ) -> None:
        self._listing_seconds = listing_seconds
        location, _, fragment = uri.partition("#")
        self._uri = location
        self._digest = fragment.removeprefix("sha256=")
        scheme, _, rest = location.partition("://")
        bucket, _, self._folder = rest.partition("/")
        self._store = _open_store(scheme, bucket, endpoint, region)
        self._small_files = DigestedFolder(address=location, digest=self._digest, read=self._read)

    async def listing(self) -> SourceListing:
        """Return the objects below the folder, with the digests of their `SHA256SUMS`."""
        files = dict[str, SourceFile]()
        with self._errors():
            async with asyncio.timeout(self._listing_seconds):
                async for batch in obstore.list(self._store, self._folder or None):
                    for item in batch:
                        name = item["path"].removeprefix(self._folder).lstrip("/")
                        if name:
                            files[name] = SourceFile(name, item["size"], item["e_tag"])
                    if len(files) > _MAX_OBJECTS:
                        raise RefusedError(
                            f"{self._uri} has more than {counted(_MAX_OBJECTS, 'object')}; "
                            "name the folder of one model"
                        )
        if not files:
            raise RefusedError(
                f"{self._uri} has 0 objects; correct spec.model.uri, or upload the files there"
            )
        # Consoles write an empty object for a folder.
        folders = {str(folder) for name in files for folder in PurePosixPath(name).parents}
        for name in folders & files.keys():
            if not files[name].size:
                del files[name]
        has_sums = SUMS in files or self._digest
        sums = await self._small_files.read_sums() if has_sums else {}
        listed = [file for name, file in sorted(files.items()) if name in sums or not self._digest]
        if missing := sums.keys() - files.keys():
            raise RefusedError(
                f"{self._uri} lacks {min(missing)}, which its {SUMS} names; upload it"
            )
        state = [(file.name, file.size, file.etag, sums.get(file.name)) for file in listed]
        commit = self._digest or hashlib.sha256(json.dumps(state).encode()).hexdigest()
        return SourceListing(
            commit,
            tuple(
                SourceFile(file.name, file.size, file.etag, sums.get(file.name)) for file in listed
            ),
        )

    async def read_json(self, name: str) -> tuple[object, str]:
        """Return a JSON file of the folder, checked by the digest of the location."""
        return await self._small_files.read_json(name)

    async def read_chunks(
        self, commit: str, file: SourceFile, offset: int
    ) -> AsyncGenerator[Chunk]:
        """Yield the content of an object, which must be the one of the listing."""
        del commit
        options: GetOptions = {"range": {"offset": offset}} if offset else {}
        if file.etag:
            options["if_match"] = file.etag
        with self._errors():
            path = f"{self._folder}/{file.name}".lstrip("/")
            result = await obstore.get_async(self._store, path, options=options)
            async for chunk in result.stream(min_chunk_size=_CHUNK_BYTES):
                yield memoryview(chunk)

    async def _read(self, name: str, limit: int) -> bytes:
        chunks = self.read_chunks("", SourceFile(name, None), 0)
        with self._errors():
            async with asyncio.timeout(self._listing_seconds):
                return await read_whole(chunks, limit, f"{self._uri}/{name}")

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except TimeoutError as error:
            raise TransientError(
                f"{self._uri}: the answer of the store did not end within "
                f"{self._listing_seconds:g} s; correct spec.model.store.endpoint, or name the "
                "folder of one model"
            ) from error
        except (exceptions.BaseError, OSError, ValueError) as error:
            raise _store_error(self._uri, error) from error


def _open_store(
    scheme: str, bucket: str, endpoint: str | None, region: str | None
) -> S3Store | GCSStore | AzureStore:
    """Open a bucket; the library takes credentials from the environment or the pod's identity."""
    for name in os.environ:
        if name.startswith(_CREDENTIALS):
            # A Secret that `echo` wrote ends with a line break, at which the library panics.
            os.environ[name] = os.environ[name].strip()
    client = _CLIENT | {"allow_http": (endpoint or "").startswith("http://")}
    settings: Any = {"client_options": client, "retry_config": _RETRIES}
    try:
        if scheme == "gs":
            config: Any = {"base_url": endpoint} if endpoint else {}
            return GCSStore(bucket, config=config, **settings)
        if scheme == "az":
            config = {"endpoint": endpoint} if endpoint else {}
            return AzureStore(bucket, config=config, **settings)
        config = {"endpoint": endpoint} if endpoint else {}
        if region:
            config["region"] = region
        return S3Store(bucket, config=config, **settings)
    except (exceptions.BaseError, ValueError) as error:
        raise RefusedError(
            f"{scheme}://{bucket}: {_text(error)}; correct spec.model.store and its Secret"
        ) from error


def _store_error(uri: str, error: Exception) -> BatchError:
    text, answer = str(error), _text(error)
    status = match[1] if (match := _STATUS.search(text)) else ""
    denied = exceptions.PermissionDeniedError, exceptions.UnauthenticatedError
    transient = True
    if _RANGE_IGNORED.search(text):
        return RangeIgnoredError(f"{uri}: the store ignored the Range header ({answer})")
    if _IDENTITY.search(text):
        cause = (
            "there are no credentials: name their Secret in spec.model.store.secretName, or bind "
            "an identity to the ServiceAccount of the pod"
        )
    elif _REGION.search(text):
        transient = False
        cause = "the bucket is in another region: correct spec.model.store.region"
    elif _EXPIRED.search(answer):
        cause = (
            "the credentials have expired: renew the Secret of spec.model.store, which the next "
            "attempt reads"
        )
    elif isinstance(error, exceptions.PreconditionError) or status == "412":
        cause = (
            "an object changed during the download: the next attempt starts over with the new "
            "content, so upload a new version to a folder of its own"
        )
    elif isinstance(error, denied) or status in ("401", "403"):
        transient = False
        cause = (
            "the store denied access: let the credentials of spec.model.store, or the "
            "ServiceAccount of the pod, list and read the bucket"
        )
    elif isinstance(error, FileNotFoundError) or status == "404":
        transient, cause = False, "not found: correct spec.model.uri"
    elif isinstance(error, exceptions.InvalidPathError):
        transient, cause = False, "an object has a name that is not a path: rename it"
    else:
        cause = "no answer from the store"
    return (TransientError if transient else RefusedError)(f"{uri}: {cause} ({answer})")


def _text(error: Exception) -> str:
    """Return what the store answered, without addresses that may be signed."""
    text = " ".join(str(error).split())
    parts = [match[1] for pattern in (_STATUS, _CODE, _MESSAGE) if (match := pattern.search(text))]
    if parts:
        return " ".join(parts)
    summary, _, debug_text = text.partition(" Debug source")
    causes = [" ".join(filter(None, groups)) for groups in _CAUSE.findall(debug_text)]
    return ": ".join((_QUERY.sub("", summary)[:_MAX_MESSAGE_LENGTH], *causes[-1:]))
