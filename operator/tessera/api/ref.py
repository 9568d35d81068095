"""Reference to a namespaced object."""

from typing import NamedTuple

from typing_extensions import override


class Ref(NamedTuple):
    """Namespace and name; a tuple, since a reconcile hashes and compares tens of thousands of
    them."""

    namespace: str
    name: str

    @classmethod
    def parse(cls, text: str) -> "Ref":
        """Return the reference that is written as `namespace/name`."""
        return cls(*text.split("/"))

    @override
    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}"
