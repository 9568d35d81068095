"""Which files with weights an engine loads, and how many bytes they have.

A repository may have its weights twice: whole in `consolidated.safetensors` beside shards that an
index names, in shards of two counts, or in other bits, also in a folder. Without an index engines
load all files that they see, so one set is downloaded.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping

from tessera.domain.model.config_keys import part

INDEX = "model.safetensors.index.json"
_CONSOLIDATED = "consolidated"
_CONFIG, _MODULES = "config.json", "modules.json"
# An adapter that was trained on the model, and is no part of it.
_ADAPTER = "adapter_model"
_SUFFIX = ".safetensors"
_SHARD = re.compile(r"(.+)-(\d{5})-of-(\d{5})\.safetensors")
# The same weights in other bits, or of another average.
_VARIANT = re.compile(r"(.+)\.(?:fp32|fp16|bf16|fp8|ema|non_ema)")
# An index whose total differs by more from its files was copied from other ones.
_TOLERANCE = 0.02


def unloaded_files(names: Iterable[str], index: object = None) -> frozenset[str]:
    """Return the files of another set of weights than the one that engines load."""
    names = frozenset(names)
    weights = _weight_files(names)
    unloaded = weights - (_shards(index) & weights or _set_by_names(weights))
    if any(name.startswith(_CONSOLIDATED) for name in unloaded):
        unloaded |= {f"{_CONSOLIDATED}.safetensors.index.json"}
    return unloaded | _of_other_models(names) if weights else unloaded


def missing_file(names: Iterable[str], index: object = None) -> str | None:
    """Return a file without which the weights are not whole; None if none is known to be missing.

    An index that names none of the files belongs to others.
    """
    listed = frozenset(names)
    indexed = _shards(index)
    if indexed & listed:
        return min(indexed - listed, default=None)
    loaded = _set_by_names(_weight_files(listed))
    shards = Counter((shard[1], shard[3]) for name in loaded if (shard := _SHARD.fullmatch(name)))
    for (stem, count), present in sorted(shards.items()):
        # Some number their shards from zero.
        if present < int(count):
            numbers = range(1, int(count) + 1)
            expected = (f"{stem}-{number:05}-of-{count}{_SUFFIX}" for number in numbers)
            return next(name for name in expected if name not in loaded)
    return None


def indexed_bytes(index: object, sizes: Mapping[str, int]) -> int | None:
    """Return the bytes of all weights by their index; None without one.

    It counts them without headers. The sizes of its files count where they contradict it.
    """
    total = part(index, "metadata").get("total_size") if isinstance(index, Mapping) else None
    if isinstance(total, bool) or not isinstance(total, int | float) or not 0 < total < 2**63:
        return None
    shards = _shards(index)
    listed = sum(sizes[name] for name in shards) if shards <= sizes.keys() else 0
    return listed if abs(total - listed) > _TOLERANCE * total and listed else int(total)


def listed_bytes(sizes: Mapping[str, int]) -> int | None:
    """Return the bytes of the files with weights, by their sizes; None where none is known."""
    weights = _weight_files(sizes) - unloaded_files(sizes)
    return sum(sizes[name] for name in weights) or None


def _of_other_models(names: frozenset[str]) -> set[str]:
    """Return the weights in folders that have a configuration of their own.

    Those of sentence-transformers, which `modules.json` lists, are parts of the model.
    """
    if _MODULES in names:
        return set()
    return {
        name
        for name in names
        if name.endswith(_SUFFIX) and f"{name.rpartition('/')[0]}/{_CONFIG}" in names
    }


def _weight_files(names: Iterable[str]) -> frozenset[str]:
    return frozenset(name for name in names if "/" not in name and name.endswith(_SUFFIX))


def _set_by_names(weights: frozenset[str]) -> frozenset[str]:
    """Return the files of one set: of each name the whole one with the fewest files.

    The names are those before the numbers of shards; parts such as extra prediction layers have one
    of their own.
    """
    sets = defaultdict[str, defaultdict[int, set[str]]](lambda: defaultdict(set))
    for name in weights:
        shard = _SHARD.fullmatch(name)
        stem, count = (shard[1], int(shard[3])) if shard else (name.removesuffix(_SUFFIX), 1)
        sets[stem][count].add(name)
    others = {
        stem
        for stem in sets
        if stem in (_CONSOLIDATED, _ADAPTER)
        or ((variant := _VARIANT.fullmatch(stem)) and variant[1] in sets)
    }
    loaded = set[str]()
    for stem in sets.keys() - others or sets.keys():
        by_count = sets[stem]
        whole = [count for count, names in by_count.items() if len(names) == count]
        loaded |= by_count[min(whole) if whole else max(by_count)]
    return frozenset(loaded)


def _shards(index: object) -> frozenset[str]:
    shards = part(index, "weight_map").values() if isinstance(index, Mapping) else ()
    return frozenset(name for name in shards if isinstance(name, str))
