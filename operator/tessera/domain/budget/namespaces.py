"""Values of all tenants by namespace, so that each budget looks only at its own."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import TypeVar

from tessera.api.ref import Ref

T = TypeVar("T")


def group_by_namespace(values: Iterable[tuple[Ref, T]]) -> Mapping[str, Sequence[T]]:
    groups: dict[str, list[T]] = defaultdict(list)
    for ref, value in values:
        groups[ref.namespace].append(value)
    return groups


def in_namespaces(names: Iterable[str], groups: Mapping[str, Sequence[T]]) -> list[T]:
    """Return the values of these namespaces, which are sorted; those of one keep their order."""
    return [value for name in sorted(set(names)) for value in groups.get(name, ())]
