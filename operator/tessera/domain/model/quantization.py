"""`quantization_config` -> how the weights lie in memory, and the KV cache.

It is looked for where vLLM 0.30 to 0.33 look: at the top level, in `hf_quant_config.json` of
ModelOpt, and in the part of the language model.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from tessera.domain.model.config_keys import UnsupportedConfigError, object_part, part

Format = Literal["fp8", "int8", "int4", "awq", "gptq", "mxfp4", "nvfp4"]
# Weights that share a scale in the two formats of 4-bit floats.
MXFP4_GROUP = 32
NVFP4_GROUP = 16
# Where AWQ's configuration does not say it.
_DEFAULT_GROUP = 128
# Lists of modules that keep 16 bits, by method; and words in the names of those that always do.
_SPARED_KEYS = ("ignore", "ignored_layers", "exclude_modules", "modules_to_not_convert")
_ALWAYS_16_BITS = re.compile(
    r"lm_head|embed|router|norm|vision|visual|projector|[._](expert_)?gate[$*]*$"
)
# Weights of layers that predict further tokens, which say nothing of the others.
_PREDICTION = re.compile(r"\bmtp\b")
# What the targets of a format are, with the patterns of their names; the format of the first of
# these is that of the model. A class, as `Linear`, is all that no name matches.
_TARGETS = {
    "experts": re.compile(r"(?<!shared_)experts"),
    "feed_forward": re.compile(r"mlp|ffn|feed_forward|shared_expert|(up|gate|down)_proj"),
    "rest": re.compile(r"^(\w+|(re:\.)?\*)$"),
    "other": re.compile(""),
}
# Formats of the files of a listed precision; `int4` of compressed-tensors does not say how its
# numbers were found.
PRECISION_FORMATS: Mapping[str, tuple[Format, ...]] = {
    "awq-int4": ("awq", "int4"),
    "gptq-int4": ("gptq", "int4"),
    "int8": ("int8",),
    "fp8": ("fp8",),
    "nvfp4": ("nvfp4",),
    "mxfp4": ("mxfp4",),
}
# The file of ModelOpt beside a `config.json` that says nothing of quantization.
QUANTIZATION_FILE = "hf_quant_config.json"
# Methods that engines here do not serve, and what to take instead.
UNSUPPORTED_METHODS = {
    "bitsandbytes": "its kernels are slow and no longer served; take an FP8 or AWQ checkpoint, or "
    "the 16-bit files with fp8 in spec.precision.variants",
    "gguf": "it is made for other engines; take the safetensors files, for 4 bits an AWQ or GPTQ "
    "checkpoint",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Quantization:
    """What the files hold instead of 16-bit weights.

    Of several formats it is that of the experts, or of the feed-forward blocks without experts.
    """

    format: Format
    bits: Literal[4, 8]
    group_size: int | None = None
    dense_bits: Literal[4, 8, 16] | None = None
    """The most bits of a weight of attention and of blocks without experts; None means `bits`."""
    bits_range: tuple[int, int] | None = None
    """The fewest and the most bits of a quantized weight; None means `bits`."""
    spares_layers: bool = False
    """Some layers, or some matrices of each, keep 16 bits."""
    cache_bits: Literal[8] | None = None
    """Bits of a value in the KV cache, where the files ask for it and the engine follows them."""


def read_quantization(
    config: Mapping[str, Any], separate: object = None, *, latent: bool = False
) -> Quantization | None:
    """Read the format; None for plain weights, UnsupportedConfigError if no engine serves it.

    `separate` is the content of `hf_quant_config.json`; `latent` says that the attention is.
    """
    section, nested = _section(config, separate)
    if not section:
        return None
    method = _method(section)
    if method in UNSUPPORTED_METHODS:
        raise UnsupportedConfigError(
            f"quantization_config.quant_method {method}: {UNSUPPORTED_METHODS[method]}"
        )
    reader = _READERS.get(method)
    if reader is None:
        raise UnsupportedConfigError(
            f"quantization_config.quant_method {method or 'is missing and'} is not supported; "
            f"known are {', '.join(_READERS)}: take a checkpoint in one of these"
        )
    quantization = reader(section)
    if quantization.format == "fp8" and config.get("expert_dtype") == "fp4":
        # DeepSeek-V4: the experts have 4 bits, all other matrices 8.
        quantization = replace(quantization, format="mxfp4", bits=4, group_size=MXFP4_GROUP)
    spared = _spared_modules(section)
    experts_only = quantization.format == "mxfp4" or "attention" in spared
    return replace(
        quantization,
        dense_bits=16 if experts_only else quantization.dense_bits,
        spares_layers=quantization.spares_layers or bool(spared),
        cache_bits=_cache_bits(method, section, nested=nested, latent=latent),
    )


def _section(config: Mapping[str, Any], separate: object) -> tuple[Mapping[str, Any], bool]:
    """Return the first section that says how weights are quantized, and whether it is nested."""
    beside = separate if isinstance(separate, Mapping) else {}
    for section in (
        object_part(config, "quantization_config"),
        beside,
        object_part(config, "compression_config"),
    ):
        if section:
            return section, False
    text = object_part(config, "text_config")
    nested = object_part(text, "quantization_config") or object_part(text, "compression_config")
    return nested, True


def _method(section: Mapping[str, Any]) -> str:
    method = str(section.get("quant_method") or "").lower().replace("_tensors", "-tensors")
    # Files of ModelOpt before 0.31 name their producer instead.
    is_modelopt = "quant_algo" in part(section, "quantization")
    return "modelopt" if method.startswith("modelopt") or is_modelopt else method


def _spared_modules(section: Mapping[str, Any]) -> Collection[Literal["attention", "other"]]:
    """Return what keeps 16 bits besides what always does: embeddings, output layer, routers.

    The entries are names and patterns of strangers, so they are searched for words and never run.
    """
    inner = part(section, "quantization") or section
    spared = set[Literal["attention", "other"]]()
    for key in _SPARED_KEYS:
        entries = inner.get(key)
        for entry in entries if isinstance(entries, list) else ():
            name = str(entry).replace("\\", "")
            if _ALWAYS_16_BITS.search(name):
                continue
            is_pattern = name.startswith("re:") or "*" in name
            spared.add("attention" if is_pattern and "self_attn" in name else "other")
    return spared


def _cache_bits(
    method: str, section: Mapping[str, Any], *, nested: bool, latent: bool
) -> Literal[8] | None:
    """Return the bits that vLLM 0.30 to 0.33 take for the KV cache where no flag sets them."""
    if method == "modelopt" and not nested:
        inner = part(section, "quantization") or section
        for each in ("kv_cache_scheme", "kv_cache_quant_algo"):
            if scheme := inner.get(each) or section.get(each):
                static = isinstance(scheme, Mapping) and scheme.get("dynamic") is False
                is_fp8 = str(scheme).lower() == "fp8" or (static and _is_fp8(scheme))
                return 8 if is_fp8 else None
    if method == "compressed-tensors" and (scheme := section.get("kv_cache_scheme")):
        if not _is_fp8(scheme):
            raise UnsupportedConfigError(
                f"kv_cache_scheme {scheme} of compressed-tensors is not supported; engines serve "
                "num_bits 8 of type float: take a checkpoint with it, or without a scheme"
            )
        # Latent attention of these files keeps the bits of its activations.
        return None if latent else 8
    return None


def _is_fp8(scheme: object) -> bool:
    return (
        isinstance(scheme, Mapping)
        and scheme.get("num_bits") == 8
        and scheme.get("type") == "float"
    )


def _read_fp8(_: Mapping[str, Any]) -> Quantization:
    return Quantization(format="fp8", bits=8)


def _read_awq(section: Mapping[str, Any]) -> Quantization:
    _read_bits(section.get("bits", section.get("w_bit")), "awq", (4,))
    return Quantization(
        format="awq", bits=4, group_size=_read_group_size(section) or _DEFAULT_GROUP
    )


def _read_gptq(section: Mapping[str, Any]) -> Quantization:
    bits = _read_bits(section.get("bits"), "gptq", (4, 8))
    group_size = _read_group_size(section)
    if section.get("sym") is False:
        raise UnsupportedConfigError(
            "quantization_config.sym false of gptq is not supported: no kernel of the engine reads "
            "zero points of these files; take a checkpoint with sym true"
        )
    # With one scale for a row the order of the columns does not matter.
    if section.get("desc_act") is True and group_size is not None:
        raise UnsupportedConfigError(
            f"quantization_config.desc_act true of gptq with group_size {group_size} is not "
            "supported: vLLM 0.30 to 0.33 do not start with it; take a checkpoint with desc_act "
            "false"
        )
    return Quantization(format="gptq", bits=bits, group_size=group_size)


def _read_modelopt(section: Mapping[str, Any]) -> Quantization:
    inner = part(section, "quantization") or section
    if str(inner.get("quant_algo")).lower() != "mixed_precision":
        return _read_algorithm(inner)
    layers = part(inner, "quantized_layers")
    quantization = _joined((name, _read_algorithm(part(layers, name))) for name in layers)
    if quantization is None:
        raise UnsupportedConfigError(
            "quantization_config.quant_algo MIXED_PRECISION needs quantized_layers with the "
            "format of each layer; take the config.json of the repository as it is"
        )
    return quantization


def _read_algorithm(section: Mapping[str, Any]) -> Quantization:
    algorithm = str(section.get("quant_algo", "")).lower()
    if "fp4" in algorithm:
        return Quantization(format="nvfp4", bits=4, group_size=NVFP4_GROUP)
    if "fp8" in algorithm:
        return Quantization(format="fp8", bits=8)
    raise UnsupportedConfigError(
        f"quantization_config.quant_algo {algorithm or 'is missing and'} is not supported; known "
        "are FP8, NVFP4 and MIXED_PRECISION of these"
    )


def _read_compressed(section: Mapping[str, Any]) -> Quantization:
    groups = part(section, "config_groups")
    formats = list[tuple[str, Quantization]]()
    for group in (part(groups, name) for name in sorted(groups)):
        # A group without weights is of activations or of the cache.
        if weights := part(group, "weights"):
            quantization, targets = _read_weights(weights), group.get("targets")
            names = targets if isinstance(targets, list) else ["Linear"]
            formats += [(str(name), quantization) for name in names]
    return _joined(formats) or _read_weights({})


def _read_weights(weights: Mapping[str, Any]) -> Quantization:
    bits = _read_bits(weights.get("num_bits"), "compressed-tensors", (4, 8))
    group_size = _read_group_size(weights)
    if weights.get("type") == "float":
        if bits == 4:
            return Quantization(format="nvfp4", bits=4, group_size=group_size or NVFP4_GROUP)
        return Quantization(format="fp8", bits=8)
    return Quantization(format="int4" if bits == 4 else "int8", bits=bits, group_size=group_size)


def _joined(formats: Iterable[tuple[str, Quantization]]) -> Quantization | None:
    """Return the quantization of layers by the names, patterns or classes of each format.

    Embeddings and the output layer do not count beside others. None means that there are no names.
    """
    plain = [(name.replace("\\", ""), quantization) for name, quantization in formats]
    by_target = defaultdict[str, list[Quantization]](list)
    for name, quantization in [item for item in plain if _counts(item[0])] or plain:
        kind = next(kind for kind, pattern in _TARGETS.items() if pattern.search(name))
        by_target[kind].append(quantization)
    if not by_target:
        return None
    counts = Counter(by_target[next(kind for kind in _TARGETS if kind in by_target)])
    # Of as many layers in two formats the wider counts.
    main = max(
        counts, key=lambda each: (counts[each], each.bits, each.format, each.group_size or 0)
    )
    dense = [each.bits for kind in by_target if kind != "experts" for each in by_target[kind]]
    bits = [each.bits for quantizations in by_target.values() for each in quantizations]
    return replace(
        main,
        dense_bits=max(dense, default=16),
        bits_range=(min(bits), max(bits)),
        spares_layers="rest" not in by_target,
    )


def _counts(name: str) -> bool:
    return not (_ALWAYS_16_BITS.search(name) or _PREDICTION.search(name))


def _read_bits(value: object, method: str, supported: tuple[Literal[4, 8], ...]) -> Literal[4, 8]:
    for bits in supported:
        if value == bits:
            return bits
    value = "none" if value is None else value
    raise UnsupportedConfigError(
        f"quantization_config of {method} has {value} bits; engines serve "
        f"{' and '.join(map(str, supported))}: take a checkpoint with these"
    )


def _read_group_size(section: Mapping[str, Any]) -> int | None:
    """Weights that share a scale; -1 means a whole row."""
    size = section.get("group_size", section.get("q_group_size"))
    return size if isinstance(size, int) and size > 0 else None


# By `quant_method`.
_READERS: Mapping[str, Callable[[Mapping[str, Any]], Quantization]] = {
    "fp8": _read_fp8,
    "fbgemm_fp8": _read_fp8,
    "awq": _read_awq,
    "gptq": _read_gptq,
    "mxfp4": lambda _: Quantization(format="mxfp4", bits=4, group_size=MXFP4_GROUP),
    "modelopt": _read_modelopt,
    "compressed-tensors": _read_compressed,
}
