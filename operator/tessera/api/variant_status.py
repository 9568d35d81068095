"""The variants of an `InferenceService` as its status shows them."""

from typing import Literal

from tessera.api.accelerator_pool import Tier
from tessera.api.meta import Amount, StatusText, Wire
from tessera.api.reasons import VariantReason
from tessera.api.template_version import PodTemplateVersionStatus

# A service has at most so many.
MAX_VARIANTS = 16
SpeedSource = Literal["Measured", "Table", "Roofline"]


class VariantStatus(Wire):
    """Hardware and precision that the model runs in."""

    name: str
    """Name of the variant, part of the name of its Deployment."""

    pool: str
    """AcceleratorPool of the replicas."""

    product: str
    """GPU product as named by GPU Feature Discovery."""

    profile: str | None = None
    """MIG profile; absent on whole GPUs."""

    gpus: int
    """Devices per replica: 1 for a slice, the tensor parallel size for whole GPUs."""

    precision: str
    """`checkpoint`, or the precision chosen from `spec.precision.variants`."""

    max_model_len: int
    """Maximum length of prompt plus answer that the engine accepts, in tokens."""

    max_num_seqs: int
    """Maximum concurrent requests per replica; more requests wait."""

    max_num_batched_tokens: int
    """Maximum tokens per engine step."""

    kv_cache_tokens: int
    """Planned KV cache of one replica, in tokens; 0 of an encoder, which has none."""

    tokens_per_second: int
    """Predicted output tokens per second of one replica within `spec.slo`; 0 of a pooling model."""

    input_tokens_per_second: int | None = None
    """Of a pooling model: predicted input tokens per second of one replica within `spec.slo`."""

    source: SpeedSource
    """Origin of the predicted speed. `Measured`: observed in this cluster. `Table`: calculated with
    shares of the peaks that were fitted to published measurements of this GPU family. `Roofline`:
    calculated with typical shares, without comparable measurements."""


class VariantReplicas(VariantStatus):
    """One of several variants that serve a model, with its pods."""

    tier: Tier
    """Tier of its pool."""

    desired_replicas: int
    """Pods that are desired; a move to another variant starts a pod there before one stops here."""

    replicas: int
    """Pods that exist."""

    ready_replicas: int
    """Pods that are ready and receive requests."""

    per_hour: Amount
    """Price of one replica per hour."""

    currency: str
    """Currency of the price."""

    reason: VariantReason | None = None
    """Why its number changed last."""

    message: StatusText | None = None
    """The same as a sentence."""

    pod_template_version: PodTemplateVersionStatus
    """What determines its pod template besides the spec."""
