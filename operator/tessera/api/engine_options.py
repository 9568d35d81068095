"""The engine of a service or a batch: version, image and flags."""

from typing import Annotated

from pydantic import Field, StringConstraints

from tessera.api.meta import Wire, matching

# An address or a wildcard has no letter at the beginning of its last part.
HostName = Annotated[
    str,
    StringConstraints(max_length=253),
    matching(
        r"^([a-z0-9]([-a-z0-9]*[a-z0-9])?[.])*[a-z]([-a-z0-9]*[a-z0-9])?$",
        "must be the name of a host in lower case, such as images.example.org, without wildcard, "
        "address, scheme or port",
    ),
]


class EngineOptions(Wire):
    """vLLM version, image and flags."""

    version: Annotated[
        str, StringConstraints(pattern=r"^[0-9]+\.[0-9]+\.[0-9]+$", max_length=32)
    ] = "0.32.0"
    """vLLM version; flags are validated against the table of that version."""

    image: Annotated[str, StringConstraints(min_length=1, max_length=512)] | None = None
    """Image to run instead of `vllm/vllm-openai:v<version>`, for example from a mirror."""

    extra_args: Annotated[
        tuple[Annotated[str, StringConstraints(min_length=1, max_length=1024)], ...],
        Field(max_length=64),
    ] = ()
    """Additional flags of `vllm serve`. Flags that Tessera sets are rejected with the field that
    sets them, and so are flags that change memory or speed, such as `--kv-cache-dtype` and
    `--speculative-config`."""

    # A default would change the shape of all pods.
    allowed_media_domains: Annotated[tuple[HostName, ...], Field(max_length=32)] | None = None
    """Hosts from which engines fetch images and clips that a request names by URL, each by its
    whole name and without redirects, such as `images.example.org`; omitted, none. Requests may
    always contain them as `data:` URLs."""
