"""Are files in another precision of the same model, and in the precision that is listed?"""

from collections.abc import Iterator

from tessera.api.model_files import ModelShape
from tessera.api.precision import PrecisionName
from tessera.domain.model.quantization import MXFP4_GROUP, NVFP4_GROUP, PRECISION_FORMATS
from tessera.domain.perf.footprint import hidden_size

# Weights that share a scale, where the engine's kernels are for some numbers alone; None is a row.
_GROUP_SIZES: dict[PrecisionName, tuple[int | None, ...]] = {
    "awq-int4": (128, 64, 32, None),
    "gptq-int4": (128, 64, 32, None),
    "nvfp4": (NVFP4_GROUP,),
    "mxfp4": (MXFP4_GROUP,),
}


def files_mismatch(
    precision: PrecisionName, files: ModelShape, model: ModelShape, max_model_len: int
) -> str | None:
    """Return how the files differ from what is listed, with the numbers; None if they do not.

    What the shape of the model does not have is not compared.
    """
    differences = [*_format_differences(precision, files), *_model_differences(files, model)]
    if files.max_position_embeddings < max_model_len:
        limit = files.max_position_embeddings
        differences.append(f"max_position_embeddings {limit} for requests of {max_model_len}")
    return ", ".join(differences) or None


def _format_differences(precision: PrecisionName, files: ModelShape) -> Iterator[str]:
    formats, bits = PRECISION_FORMATS[precision], 8 if precision in ("int8", "fp8") else 4
    group_sizes = _GROUP_SIZES.get(precision)
    if files.quantization not in formats:
        yield f"quantization {files.quantization or 'none'} instead of {' or '.join(formats)}"
    elif files.bits_per_weight != bits:
        yield f"{files.bits_per_weight} bits instead of {bits}"
    elif group_sizes is not None and files.group_size not in group_sizes:
        supported = ", ".join("-1" if size is None else str(size) for size in group_sizes)
        yield f"group_size {files.group_size or -1} instead of {supported}"


def _model_differences(files: ModelShape, model: ModelShape) -> Iterator[str]:
    for key, of_files, of_model in (
        ("model_type", files.architecture, model.architecture),
        ("num_hidden_layers", files.layers, model.layers),
        ("num_attention_heads", files.attention_heads, model.attention_heads),
        ("num_key_value_heads", files.kv_heads, model.kv_heads),
        ("head_dim", files.head_dim, model.head_dim),
        ("hidden_size", hidden_size(files), hidden_size(model)),
        ("num_experts", files.experts, model.experts),
        ("vocab_size", files.vocab_size, model.vocab_size),
    ):
        if of_files is not None and of_model is not None and of_files != of_model:
            yield f"{key} {of_files} instead of {of_model}"
    # Files need not say that they embed: the engine is told so, and may pool any last layer.
    if files.pooling not in (model.pooling, None if model.pooling == "Embed" else model.pooling):
        yield f"pooling {files.pooling or 'none'} instead of {model.pooling or 'none'}"
