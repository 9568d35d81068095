"""Which files with weights an engine loads, and how many bytes they have.

A repository may have its weights twice: whole in `consolidated.safetensors` beside shards that an
index names. Engines load one of the sets, so one is downloaded.
"""

from collections.abc import Iterable, Mapping

from tessera.domain.model.config_keys import part

INDEX = "model.safetensors.index.json"
_CONSOLIDATED = "consolidated"
# An index whose total differs by more from its files was copied from other ones.
_TOLERANCE = 0.02


def unloaded_files(names: Iterable[str], index: object = None) -> frozenset[str]:
    """Return the files of another set of weights than the one that engines load."""
    weights = _weight_files(names)
    indexed = _shards(index) & weights
    consolidated = {name for name in weights if name.startswith(_CONSOLIDATED)}
    unloaded = weights - indexed if indexed else consolidated
    if unloaded == weights:
        return frozenset()
    indexes = {f"{_CONSOLIDATED}.safetensors.index.json"} if consolidated else set()
    return frozenset(unloaded | indexes)


def indexed_bytes(index: object, sizes: Mapping[str, int]) -> int | None:
    """Return the bytes of all weights by their index; None without one.

    It counts them without headers. The sizes of its files count where they contradict it.
    """
    total = part(index, "metadata").get("total_size") if isinstance(index, Mapping) else None
    if not isinstance(total, int | float) or not 0 < total < 2**63:
        return None
    shards = _shards(index)
    listed = sum(sizes[name] for name in shards) if shards <= sizes.keys() else 0
    return listed if abs(total - listed) > _TOLERANCE * total and listed else int(total)


def listed_bytes(sizes: Mapping[str, int]) -> int | None:
    """Return the bytes of the files with weights, by their sizes; None where none is known."""
    weights = _weight_files(sizes) - unloaded_files(sizes)
    return sum(sizes[name] for name in weights) or None


def _weight_files(names: Iterable[str]) -> frozenset[str]:
    return frozenset(name for name in names if "/" not in name and name.endswith(".safetensors"))


def _shards(index: object) -> frozenset[str]:
    shards = part(index, "weight_map").values() if isinstance(index, Mapping) else ()
    return frozenset(name for name in shards if isinstance(name, str))
