"""Reference to a namespaced object."""

from typing import NamedTuple

from typing_extensions import override


class Ref(NamedTuple):
    """Namespace and name; a tuple, since a reconcile hashes and compares tens of thousands of
    them."""

    namespace: str
    name: str

    @override
    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}"
