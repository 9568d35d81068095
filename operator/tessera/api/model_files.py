"""Location of the files of models and adapters, and the dimensions of models."""

from typing import Annotated, Literal

from pydantic import Field, StringConstraints

from tessera.api.meta import DnsLabel, DnsSubdomain, Wire, matching, rule, rules_config

_HUB = r"hf://[A-Za-z0-9][A-Za-z0-9._-]*/[A-Za-z0-9][A-Za-z0-9._-]*"
_CLAIM = r"pvc://[a-z0-9][-a-z0-9.]*(/[A-Za-z0-9._-]+)*"
_IMAGE = r"oci://[a-z0-9][a-zA-Z0-9.:_/@-]*"
# Of a folder: no component begins with a dot.
_FOLDER = r"(/[A-Za-z0-9_][A-Za-z0-9._=@+,-]*)*"
_DIGEST = r"#sha256=[0-9a-f]{64}"
_BUCKET = rf"(s3|gs|az)://[a-z0-9][a-z0-9._-]{{1,220}}{_FOLDER}({_DIGEST})?"
_WEB = rf"https?://[A-Za-z0-9][A-Za-z0-9.-]*(:[0-9]{{1,5}})?{_FOLDER}{_DIGEST}"
_STORES = (
    "s3://, gs:// or az:// with bucket/folder, or https://host/folder#sha256= with the digest of "
    "its file SHA256SUMS"
)
# What the engine does not read itself: it is downloaded to a claim first.
_STORE_SCHEMES = ("s3", "gs", "az", "http", "https")

# `hf://org/name`, `pvc://claim/path`, `oci://registry/repository:tag`, or a folder of a store.
ModelUri = Annotated[
    str,
    StringConstraints(max_length=512),
    matching(
        rf"^({_HUB}|{_CLAIM}|{_IMAGE}|{_BUCKET}|{_WEB})$",
        "must be hf://organization/name, pvc://claim/path, oci://registry/repository:tag, "
        f"{_STORES}; such as hf://acme/llama",
    ),
]
# `hf://org/name`, `pvc://claim/path`, or a folder of a store.
AdapterUri = Annotated[
    str,
    StringConstraints(max_length=512),
    matching(
        rf"^({_HUB}|{_CLAIM}|{_BUCKET}|{_WEB})$",
        f"must be hf://organization/name, pvc://claim/path, {_STORES}; such as hf://acme/sql",
    ),
]
# Branch, tag or commit of a repository on the hub.
Revision = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9._/-]+$", max_length=128)]


def is_stored(uri: str) -> bool:
    """Return whether the files lie in an object store or on a web server.

    No engine reads them there: they are downloaded to a claim first.
    """
    return uri.partition("://")[0] in _STORE_SCHEMES


# What a pooling model returns of a text, or of its tokens.
PoolingTask = Literal["Embed", "Score", "Classify", "Tokens"]


# More than any model takes for an image.
MAX_IMAGE_TOKENS = 65_536


class ImageTokens(Wire):
    """Tokens that an image takes in a prompt, as the files of the model say."""

    max_tokens: Annotated[int, Field(ge=1, le=MAX_IMAGE_TOKENS)]
    """Tokens of the largest image."""

    pixels_per_side: Annotated[int, Field(ge=1, le=1024)] | None = None
    """Pixels of each side that one token stands for, where images keep their size up to the
    largest; omitted, they are scaled or cut into tiles, and 16 count."""


class ModelShape(Wire):
    """Dimensions of the model that determine memory and speed, as in its `config.json`."""

    parameters: Annotated[int, Field(ge=1, le=10**13)]
    """Number of weights, including all experts."""

    active_parameters: Annotated[int, Field(ge=1, le=10**13)] | None = None
    """Weights used per token; fewer than `parameters` only in a mixture of experts."""

    layers: Annotated[int, Field(ge=1, le=1024)]
    """`num_hidden_layers`."""

    attention_heads: Annotated[int, Field(ge=1, le=1024)]
    """`num_attention_heads`; the tensor parallel size must divide it."""

    kv_heads: Annotated[int, Field(ge=1, le=1024)]
    """`num_key_value_heads`; fewer than the attention heads with grouped-query attention."""

    head_dim: Annotated[int, Field(ge=1, le=4096)]
    """`head_dim`: width of one attention head."""

    hidden_size: Annotated[int, Field(ge=1, le=1_000_000)] | None = None
    """`hidden_size`: width of the hidden state that layers pass on and tensor-parallel devices
    exchange; omitted, that of all attention heads."""

    max_position_embeddings: Annotated[int, Field(ge=1, le=100_000_000)]
    """`max_position_embeddings`: maximum context of the model, in tokens; with YaRN, the context
    that it extends to."""

    derived_positions: Annotated[int, Field(ge=1, le=100_000_000)] | None = None
    """Maximum context that the engine derives from the files, where YaRN extends it further: a
    longer `spec.context.maxModelLen` sets a variable that allows it. Omitted, it is
    `maxPositionEmbeddings`."""

    bits_per_weight: Literal[4, 8, 16, 32] = 16
    """Bits per stored weight."""

    quantization: Literal["fp8", "int8", "int4", "awq", "gptq", "mxfp4", "nvfp4"] | None = None
    """Quantization of the files, as in `quantization_config`; omitted, they are not quantized. For
    `compressed-tensors`, the type of the stored weights."""

    group_size: Annotated[int, Field(ge=1, le=65_536)] | None = None
    """Quantized weights that share one scale; omitted, one scale per row."""

    unquantized_parameters: Annotated[int, Field(ge=0, le=10**13)] | None = None
    """Weights that keep 16 bits when the others are quantized: embeddings, output layer, norms,
    routers; of weights of 8 bits beside others of 4, a third. Omitted, all weights count as
    quantized."""

    weight_bytes: Annotated[int, Field(ge=1, le=10**14)] | None = None
    """Bytes of all files of a quantized model, where an index gives them."""

    file_bytes: Annotated[int, Field(ge=1, le=10**14)] | None = None
    """Bytes of all files that are downloaded, where the place of the files lists them; a claim
    without `cache.size` has room for them. Omitted, the weights count."""

    media_parameters: Annotated[int, Field(ge=1, le=10**13)] | None = None
    """Weights of the parts that read images, clips or sound, which an engine with
    `--language-model-only`, or with limits of 0 for all of these, does not load."""

    image: ImageTokens | None = None
    """Tokens that an image takes, by which the gateway counts requests; omitted, one for 16 pixels
    of each side, up to 4,096."""

    embedding_parameters: Annotated[int, Field(ge=0, le=10**13)] | None = None
    """Weights of the input embedding where the output layer has its own; an engine step reads only
    the rows of its tokens."""

    experts: Annotated[int, Field(ge=1, le=65_536)] | None = None
    """Routed experts per layer in a mixture of experts, without shared experts."""

    experts_per_token: Annotated[int, Field(ge=1, le=65_536)] | None = None
    """Routed experts that compute one token."""

    latent_dim: Annotated[int, Field(ge=1, le=65_536)] | None = None
    """With multi-head latent attention, `kv_lora_rank` + `qk_rope_head_dim`: values cached per
    token and layer instead of keys and values per head. Tensor parallelism does not divide it. With
    `compressedValues`, the `head_dim`."""

    indexer_dim: Annotated[int, Field(ge=1, le=65_536)] | None = None
    """`index_head_dim` of sparse latent attention: each layer caches so many 8-bit values of a
    token, with their scales, beside the latent vector."""

    compressed_values: Annotated[int, Field(ge=1, le=10_000_000)] | None = None
    """Values that all layers together cache per token where an entry stands for several tokens, as
    in DeepSeek-V4, beside their windows. Tensor parallelism does not divide them."""

    kv_cache_bits: Literal[8] | None = None
    """Bits of a value in the KV cache where the files ask for it and
    `spec.engine.kvCacheDtype` is `Auto`; omitted, 16."""

    sliding_window: Annotated[int, Field(ge=1, le=100_000_000)] | None = None
    """Window of layers with sliding-window attention, in tokens."""

    sliding_layers: Annotated[int, Field(ge=1, le=1024)] | None = None
    """Number of layers with sliding-window attention; the others cache every token."""

    full_kv_heads: Annotated[int, Field(ge=1, le=1024)] | None = None
    """KV heads of the layers that cache every token, where those with a window have others."""

    full_head_dim: Annotated[int, Field(ge=1, le=4096)] | None = None
    """Width of an attention head in the layers that cache every token, where those with a window
    have another."""

    cached_layers: Annotated[int, Field(ge=0, le=1024)] | None = None
    """Number of layers that cache keys and values, with a window or without; omitted, all."""

    state_layers: Annotated[int, Field(ge=1, le=1024)] | None = None
    """Number of layers that keep a state of each request instead, whatever its length: linear
    attention and Mamba."""

    state_bytes: Annotated[int, Field(ge=1, le=10**9)] | None = None
    """Bytes of the state of a request in one of these layers; tensor parallelism divides it."""

    architecture: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9._-]+$", max_length=64)] | (
        None
    ) = None
    """`model_type`; files in another precision must have the same."""

    vocab_size: Annotated[int, Field(ge=1, le=100_000_000)] | None = None
    """`vocab_size`: tokens of the vocabulary; files in another precision must have as many."""
    pooling: PoolingTask | None = None
    """What the model returns instead of generated text: an embedding (`Embed`), a score of 2 texts
    (`Score`, rerankers), classes (`Classify`), or values of each token (`Tokens`, reward models and
    late interaction). Omitted, it generates text."""

    encoder_only: bool | None = None
    """Whether all tokens of a text attend to each other, as in BERT: the engine reads a text in one
    step and keeps no KV cache. For pooling models only."""


class Adapter(Wire):
    """LoRA adapter that is served beside its model under its own name."""

    name: Annotated[DnsLabel, Field(max_length=48)]
    """Name that clients send as `model` to use the adapter."""

    uri: AdapterUri
    """Location of its files: `hf://org/name`, `pvc://claim/path` in the same namespace, or a folder
    of a store, as in `spec.model.uri`."""

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


class ModelStore(Wire):
    """Access to the store of `s3://`, `gs://`, `az://` and `https://` files."""

    secret_name: DnsLabel | None = None
    """Secret in the same namespace with the credentials: keys `AWS_ACCESS_KEY_ID`,
    `AWS_SECRET_ACCESS_KEY` and optionally `AWS_SESSION_TOKEN` for `s3://`,
    `GOOGLE_SERVICE_ACCOUNT_KEY` for `gs://`, `AZURE_STORAGE_ACCOUNT_NAME` with
    `AZURE_STORAGE_ACCOUNT_KEY` or `AZURE_STORAGE_SAS_TOKEN` for `az://`, `BEARER_TOKEN` for
    `https://`. Only the Jobs that download get them. Omitted, the identity of the pod is used."""

    endpoint: (
        Annotated[
            str,
            StringConstraints(max_length=256),
            matching(
                r"^https?://[A-Za-z0-9][A-Za-z0-9.-]*(:[0-9]{1,5})?(/[A-Za-z0-9._~-]+)*$",
                "must be http:// or https:// with a host, such as https://minio.storage.svc:9000",
            ),
        ]
        | None
    ) = None
    """Address of the store, if it is not that of the cloud: of MinIO, Ceph or another store that
    speaks S3, or of an Azure account."""

    region: Annotated[str, StringConstraints(pattern=r"^[a-z0-9-]+$", max_length=64)] | None = None
    """Region of the bucket of an `s3://` location; omitted, that of the pod, else `us-east-1`."""


# Size of a claim or of several, in whole GiB or TiB.
StorageSize = Annotated[str, StringConstraints(pattern=r"^[1-9][0-9]{0,5}[GT]i$", max_length=16)]


def gibibytes(size: str) -> int:
    """Return a StorageSize in GiB."""
    return int(size[:-2]) * (1024 if size.endswith("Ti") else 1)


class Cache(Wire):
    """Cache for the files of a model across restarts of engines."""

    type: Literal["None", "PersistentVolumeClaim"] = "None"
    """`None`: every replica downloads them into its own pod. `PersistentVolumeClaim`: they are
    downloaded once, to a claim that engines of all services and batches of the namespace with the
    same files mount read-only; engines start when the download is complete. The claim is deleted
    with the last of those that ever used it. Files of a store always have a claim. For a batch, an
    `hf://` model needs its commit in `revision`."""

    storage_class_name: DnsSubdomain | None = None
    """StorageClass of the claim, which must support ReadWriteMany; omitted, the default class."""

    size: StorageSize | None = None
    """Size of the claim, for example `50Gi`, at most `16Ti`; omitted, a fifth more than the files.
    It can only grow; each revision of the model has its own claim."""

    model_config = rules_config(
        rule(
            "!has(self.size) || quantity(self.size).compareTo(quantity('16Ti')) <= 0",
            "spec.model.cache.size must be at most 16Ti, for example 50Gi: a download has at most "
            "8 TiB",
            ".size",
        )
    )


class CacheStatus(Wire):
    """Progress of the download to a claim."""

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
