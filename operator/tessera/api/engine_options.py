"""The engine of a service or a batch: version, image and flags."""

from typing import Annotated, Literal

from pydantic import Field, StringConstraints

from tessera.api.meta import (
    Amount,
    DnsSubdomain,
    Wire,
    amount_between,
    matching,
    rule,
    rules_config,
)
from tessera.api.model_files import AdapterUri, ModelShape, Revision

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


# The CPU memory of a pod, in whole units as the API server counts them.
MemorySize = Annotated[str, StringConstraints(pattern=r"^[1-9][0-9]{0,5}[GT]i$", max_length=16)]
ParserName = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9_-]*$", max_length=63)]


def memory_gib(size: str) -> int:
    """Return a MemorySize in GiB."""
    return int(size[:-2]) * (1024 if size.endswith("Ti") else 1)


class KvOffload(Wire):
    """CPU memory that keeps the KV cache of prompts that the GPU has no room for."""

    size: MemorySize
    """CPU memory of one replica for this, over all its GPUs, for example `32Gi`. The memory request
    of the pod grows by it. Repeated prompts are read from it instead of computed; capacity and
    price count none of them."""

    @property
    def gib(self) -> int:
        return memory_gib(self.size)


class ConfigMapKeySelector(Wire):
    """Key of a ConfigMap in the namespace of the service."""

    name: DnsSubdomain
    """Name of the ConfigMap."""

    key: Annotated[str, StringConstraints(pattern=r"^[-._a-zA-Z0-9]+$", max_length=253)]
    """Key within the ConfigMap."""


class ChatTemplate(Wire):
    """Jinja template that turns the messages of a chat into a prompt."""

    config_map_key_ref: ConfigMapKeySelector
    """The ConfigMap with the template, of at most 100 KiB. A replica reads it when it starts; after
    a change of its text, `kubectl tessera update` starts new ones."""


class Loader(Wire):
    """How the engine reads the weights of the model into the memory of its GPUs.

    Tessera has not measured how fast any loader is: compare `status.start` before and after. The
    image of the engine must contain the loader's library; that of vLLM may lack some.
    """

    type: Literal[
        "Safetensors",
        "RunaiStreamer",
        "InstantTensor",
        "FastSafetensors",
        "Tensorizer",
        "ShardedState",
        "Dummy",
    ]
    """`Safetensors`: vLLM's own, which refuses files of other formats. `RunaiStreamer`,
    `InstantTensor` and `FastSafetensors` read the same files in parallel. `Tensorizer` reads
    `model.tensors` (on several GPUs `model-rank-000.tensors` and so on) of a `pvc://` or `oci://`
    model. `ShardedState` reads files that were saved for as many GPUs as a replica has. `Dummy`:
    random weights, for trials."""

    concurrency: Annotated[int, Field(ge=1, le=256)] | None = None
    """Parallel reads for each GPU, of `RunaiStreamer` and `Tensorizer`; omitted, the loader's own
    default."""

    buffer: MemorySize | None = None
    """Host memory for each GPU through which `RunaiStreamer` reads, at least the size of the
    largest tensor; omitted, `4Gi`. The pod requests it in addition."""


class DraftModel(Wire):
    """Small model that drafts tokens for the model of the service, with the same vocabulary."""

    uri: AdapterUri
    """Location of its files: `hf://org/name`, which every replica downloads, or `pvc://claim/path`
    in the same namespace."""

    revision: Revision | None = None
    """Branch, tag or commit of an `hf://` draft; omitted, `main`. It is used as given: name a
    commit, so that a restart loads the same weights."""

    shape: ModelShape | None = None
    """Dimensions of the draft; omitted, they are read from the built-in catalog or its
    `config.json`."""


class SpeculationOptions(Wire):
    """Speculative decoding: tokens are drafted cheaply, and one step of the model verifies them.
    Answers have the same distribution as without. It is switched off while it makes the engines
    slower, see `status.speculation`."""

    method: Literal["NGram", "DraftModel", "Eagle"]
    """Who drafts. `NGram`: what followed the same tokens earlier in the prompt, for answers that
    repeat it. `DraftModel`: a small model of the same family. `Eagle`: an EAGLE or EAGLE-3 head
    that was trained for the model."""

    tokens: Annotated[int, Field(ge=1, le=8)] = 5
    """Tokens that are drafted for each request in every step."""

    model: DraftModel | None = None
    """The draft model or head; for `DraftModel` and `Eagle` only. It is sharded like the model, and
    its weights and KV cache are on the same GPUs."""

    model_config = rules_config(
        rule(
            "self.method == 'NGram' || has(self.model)",
            "spec.engine.speculation.model: the methods DraftModel and Eagle need it; name one",
            ".model",
        ),
        rule(
            "self.method != 'NGram' || !has(self.model)",
            "spec.engine.speculation.model: the method NGram drafts without a model; remove it",
            ".model",
        ),
    )


class EngineOptions(Wire):
    """vLLM version, image and options."""

    version: Annotated[
        str, StringConstraints(pattern=r"^[0-9]+\.[0-9]+\.[0-9]+$", max_length=32)
    ] = "0.32.0"
    """vLLM version; flags are validated against the table of that version."""

    # A default would be a set field of each stored object, and so a new pod template.
    runner: Literal["Auto", "Generate", "Pooling"] | None = None
    """What the engine does with a text: `Generate` continues it, `Pooling` returns an embedding, a
    score or classes of it. `Auto`, the default, follows the model's files as vLLM does; see
    `spec.model.shape.pooling`."""

    image: Annotated[str, StringConstraints(min_length=1, max_length=512)] | None = None
    """Image to run instead of `vllm/vllm-openai:v<version>`, for example from a mirror."""

    extra_args: Annotated[
        tuple[Annotated[str, StringConstraints(min_length=1, max_length=1024)], ...],
        Field(max_length=64),
    ] = ()
    """Additional flags of `vllm serve`. Flags that Tessera sets are rejected with the field that
    sets them, such as `--kv-cache-dtype`, and so are flags that change memory or speed and are not
    counted, such as `--cpu-offload-gb`."""

    # A default would change the shape of all pods.
    allowed_media_domains: Annotated[tuple[HostName, ...], Field(max_length=32)] | None = None
    """Hosts from which engines fetch images and clips that a request names by URL, each by its
    whole name and without redirects, such as `images.example.org`; omitted, none. Requests may
    always contain them as `data:` URLs."""

    tensor_parallel_size: Literal[1, 2, 4, 8] | None = None
    """GPUs of one node over which each replica is sharded, 1 for a slice or a GPU; omitted, as many
    as are cheapest. It decides which hardware counts, and so memory, speed and price."""

    max_num_seqs: Annotated[int, Field(ge=1, le=65_536)] | None = None
    """Requests that a replica runs at once at most; omitted, the most within `spec.slo`. Hardware
    on which so many typical requests do not fit into the KV cache, or miss `spec.slo`, is not
    used."""

    max_num_batched_tokens: Annotated[int, Field(ge=2, le=1_048_576)] | None = None
    """Tokens of one engine step at most; omitted, the best within `spec.slo`. More read a prompt
    sooner and delay the tokens of others. It must exceed `maxNumSeqs`."""

    gpu_memory_utilization: Annotated[Amount, amount_between("0.1", "1")] | None = None
    """Share of each device's memory that the engine takes, from `0.1` to `1`; omitted, `0.92`.
    Memory, capacity and price are counted with it."""

    kv_cache_dtype: Literal["Auto", "fp8", "fp8_e4m3", "fp8_e5m2"] | None = None
    """Type of the KV cache. `Auto`, as when omitted: that of the model. The others halve the cache
    of 16-bit models, so that twice as many tokens fit and are read in half the time, and may change
    answers."""

    block_size: Literal[16, 32, 64, 128] | None = None
    """Tokens of one block of the KV cache; omitted, `16`. Each request wastes half a block on
    average, and prefixes are reused in whole blocks."""

    kv_offload: KvOffload | None = None
    """CPU memory beside the KV cache on the GPU."""

    chunked_prefill: bool | None = None
    """Whether prompts are read in chunks beside the answers of others, which is so when omitted.
    Without, a step holds whole prompts: `maxNumBatchedTokens` is at least the longest context, and
    hardware is used where such a step keeps `spec.slo.itlP95`."""

    prefix_caching: bool | None = None
    """Whether the KV cache of a prompt is reused for others that begin the same, which is so when
    omitted. Capacity and price count no reuse; measured speed and load contain it."""

    expert_parallel: bool | None = None
    """Whether the GPUs of a replica hold whole experts instead of a part of each, for a mixture of
    experts with `tensorParallelSize` above 1. Memory and predicted speed are counted the same;
    the measured speed corrects the prediction."""

    reasoning_parser: ParserName | None = None
    """Parser that separates the reasoning of a model from its answer, for example `deepseek_r1`.
    Without effect on memory, speed and price."""

    tool_call_parser: ParserName | None = None
    """Parser of tool calls in answers, for example `hermes`; the model may then choose tools by
    itself. Without effect on memory, speed and price."""

    chat_template: ChatTemplate | None = None
    """Template instead of that in the model's files. Without effect on memory, speed and price."""

    structured_outputs_backend: (
        Literal["Auto", "xgrammar", "guidance", "outlines", "lm-format-enforcer"] | None
    ) = None
    """Library that holds answers to a grammar or a JSON schema; omitted or `Auto`, the engine
    chooses by the request. Without effect on memory, predicted speed and price."""

    loader: Loader | None = None
    """How the engine reads the weights; omitted, vLLM's default."""

    speculation: SpeculationOptions | None = None
    """Speculative decoding; omitted, none. Memory, limits, speed and price count it."""

    @property
    def draft(self) -> DraftModel | None:
        """Return the draft model; None without one, as with n-grams."""
        return self.speculation.model if self.speculation is not None else None
