"""Where the files of a model and of its adapters are."""

from typing import Annotated, Literal

from pydantic import Field, StringConstraints

from tessera.api.meta import DnsLabel, DnsSubdomain, Wire

_HUB = r"hf://[A-Za-z0-9][A-Za-z0-9._-]*/[A-Za-z0-9][A-Za-z0-9._-]*"
_CLAIM = r"pvc://[a-z0-9][-a-z0-9.]*(/[A-Za-z0-9._-]+)*"
_IMAGE = r"oci://[a-z0-9][a-zA-Z0-9.:_/@-]*"

# `hf://org/name`, `pvc://claim/path`, or `oci://registry/repository:tag`.
ModelUri = Annotated[
    str, StringConstraints(pattern=rf"^({_HUB}|{_CLAIM}|{_IMAGE})$", max_length=512)
]
# `hf://org/name`, or `pvc://claim/path`.
AdapterUri = Annotated[str, StringConstraints(pattern=rf"^({_HUB}|{_CLAIM})$", max_length=512)]


class Adapter(Wire):
    """A LoRA adapter that is served beside its model, under a name of its own."""

    name: Annotated[DnsLabel, Field(max_length=48)]
    """What clients put into `model` to be answered with the adapter."""

    uri: AdapterUri
    """Where its files are: `hf://org/name`, or `pvc://claim/path` in the same namespace."""

    rank: Annotated[int, Field(ge=1, le=512)] = 16
    """`r` of its `adapter_config.json`. The engine keeps room for the largest rank in every slot;
    an adapter above it ends the engine."""


# Every name once.
Adapters = Annotated[
    tuple[Adapter, ...],
    Field(
        max_length=16,
        json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"]},
    ),
]


class Cache(Wire):
    """Where the files of an `hf://` model are kept between the starts of engines."""

    type: Literal["None", "PersistentVolumeClaim"] = "None"
    """`None`: every replica fetches them into its own pod. `PersistentVolumeClaim`: they are
    fetched once, into a claim of the service's own that all replicas mount read-only; engines
    start when they are all there. The claim goes with the service."""

    storage_class_name: DnsSubdomain | None = None
    """StorageClass of the claim, which has to offer ReadWriteMany; without it the default class."""

    size: Annotated[str, StringConstraints(pattern=r"^[1-9][0-9]{0,5}[GT]i$", max_length=16)] | (
        None
    ) = None
    """Size of the claim, for example `50Gi`; without it a fifth more than the weights take. It may
    only grow, and each revision of the model takes its own room."""


class CacheStatus(Wire):
    """How far the files of a model are on the claim of its service."""

    claim_name: str
    """The PersistentVolumeClaim."""

    claim_uid: str
    """Its uid: a claim that was made again is empty."""

    path: str
    """Where on the claim the files are."""

    fetched: bool = False
    """All files are there."""

    commit: str | None = None
    """The commit that was fetched."""

    bytes_done: Annotated[int, Field(ge=0)] = 0
    """So many bytes are there, in steps of a hundredth."""

    bytes_total: Annotated[int, Field(ge=0)] | None = None
    """So many it will be, where the hub says it."""
