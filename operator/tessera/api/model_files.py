"""Where the files of a model and of its adapters are."""

from typing import Annotated

from pydantic import Field, StringConstraints

from tessera.api.meta import Name, Wire

_HUB = r"hf://[A-Za-z0-9][A-Za-z0-9._-]*/[A-Za-z0-9][A-Za-z0-9._-]*"
_CLAIM = r"pvc://[a-z0-9][-a-z0-9.]*(/[A-Za-z0-9._-]+)*"

ModelUri = Annotated[str, StringConstraints(pattern=rf"^({_HUB}|{_CLAIM})$", max_length=512)]
"""`hf://org/name`, or `pvc://claim/path`."""


class Adapter(Wire):
    """A LoRA adapter that is served beside its model, under a name of its own."""

    name: Annotated[Name, Field(max_length=48)]
    """What clients put into `model` to be answered with the adapter."""

    uri: ModelUri
    """Where its files are: `hf://org/name`, or `pvc://claim/path` in the same namespace."""

    rank: Annotated[int, Field(ge=1, le=512)] = 16
    """`r` of its `adapter_config.json`. The engine keeps room for the largest rank in every slot;
    an adapter above it ends the engine."""


Adapters = Annotated[
    tuple[Adapter, ...],
    Field(
        max_length=16,
        json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"]},
    ),
]
"""Every name once."""
