"""Reference to a namespaced object."""

from typing import NamedTuple

from typing_extensions import override

# A changed version of a service is planned under a name with it, which no object can have.
CANDIDATE = "candidate/"


class Ref(NamedTuple):
    """Namespace and name; a tuple, since a reconcile hashes and compares tens of thousands of
    them."""

    namespace: str
    name: str

    @classmethod
    def parse(cls, text: str) -> "Ref":
        """Return the reference that is written as `namespace/name`."""
        return cls(*text.split("/"))

    @property
    def candidate(self) -> "Ref":
        """Return the name under which a changed version of this service is planned beside it."""
        return Ref(self.namespace, f"{CANDIDATE}{self.name}")

    @property
    def base(self) -> "Ref":
        """Return the service itself, of whatever version this is."""
        return Ref(self.namespace, self.name.removeprefix(CANDIDATE))

    @override
    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}"
