"""Location of the files of models and adapters."""

from typing import Annotated, Literal

from pydantic import Field, StringConstraints

from tessera.api.meta import DnsLabel, DnsSubdomain, Wire, matching

_HUB = r"hf://[A-Za-z0-9][A-Za-z0-9._-]*/[A-Za-z0-9][A-Za-z0-9._-]*"
_CLAIM = r"pvc://[a-z0-9][-a-z0-9.]*(/[A-Za-z0-9._-]+)*"
_IMAGE = r"oci://[a-z0-9][a-zA-Z0-9.:_/@-]*"
_OTHERS = "for s3:// or gs:// mount the bucket as a claim, or copy the files to one"

# `hf://org/name`, `pvc://claim/path`, or `oci://registry/repository:tag`.
ModelUri = Annotated[
    str,
    StringConstraints(max_length=512),
    matching(
        rf"^({_HUB}|{_CLAIM}|{_IMAGE})$",
        "must be hf://organization/name, pvc://claim/path or oci://registry/repository:tag, such "
        f"as hf://acme/llama; {_OTHERS}",
    ),
]
# `hf://org/name`, or `pvc://claim/path`.
AdapterUri = Annotated[
    str,
    StringConstraints(max_length=512),
    matching(
        rf"^({_HUB}|{_CLAIM})$",
        f"must be hf://organization/name or pvc://claim/path, such as hf://acme/sql; {_OTHERS}",
    ),
]
# Branch, tag or commit of a repository on the hub.
Revision = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9._/-]+$", max_length=128)]


class Adapter(Wire):
    """LoRA adapter that is served beside its model under its own name."""

    name: Annotated[DnsLabel, Field(max_length=48)]
    """Name that clients send as `model` to use the adapter."""

    uri: AdapterUri
    """Location of its files: `hf://org/name`, or `pvc://claim/path` in the same namespace."""

    rank: Annotated[int, Field(ge=1, le=512)] = 16
    """`r` of its `adapter_config.json`. The engine reserves memory for the largest rank in every
    slot; it exits if an adapter exceeds its rank."""


# A list map: each name occurs once.
Adapters = Annotated[
    tuple[Adapter, ...],
    Field(
        max_length=16,
        json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"]},
    ),
]


class Cache(Wire):
    """Cache for the files of an `hf://` model across restarts of engines."""

    type: Literal["None", "PersistentVolumeClaim"] = "None"
    """`None`: every replica downloads them into its own pod. `PersistentVolumeClaim`: they are
    downloaded once, to a claim of the service that all replicas mount read-only; engines start when
    the download is complete. The claim is deleted with the service."""

    storage_class_name: DnsSubdomain | None = None
    """StorageClass of the claim, which must support ReadWriteMany; omitted, the default class."""

    size: Annotated[str, StringConstraints(pattern=r"^[1-9][0-9]{0,5}[GT]i$", max_length=16)] | (
        None
    ) = None
    """Size of the claim, for example `50Gi`; omitted, a fifth more than the weights. It can only
    grow, and each revision of the model needs its own space."""


class CacheStatus(Wire):
    """Progress of the download to the claim of the service."""

    claim_name: str
    """Name of the PersistentVolumeClaim."""

    claim_uid: str
    """UID of the claim; a claim that was created again is empty."""

    path: str
    """Path of the files on the claim."""

    fetched: bool = False
    """Whether all files are downloaded."""

    commit: str | None = None
    """Commit that was downloaded."""

    bytes_done: Annotated[int, Field(ge=0)] = 0
    """Bytes downloaded, updated in steps of 1 %."""

    bytes_total: Annotated[int, Field(ge=0)] | None = None
    """Bytes to download, where the hub reports them."""
