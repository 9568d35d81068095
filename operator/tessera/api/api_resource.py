"""A resource type of the API server, as processes list, watch and write it."""

from dataclasses import dataclass, field

from typing_extensions import override

READ = ("get", "list", "watch")
# The subresource of a kind whose status the operator writes.
STATUS = (("status", ("patch",)),)


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiResource:
    """A resource type of the API server."""

    group: str = ""
    version: str = "v1"
    kind: str
    plural: str = field(init=False)
    """The kind in the lowercase plural, as in the paths of the API server."""
    namespaced: bool = True
    verbs: tuple[str, ...]
    selector: str | None = None
    """Server-side label selector of lists and watches; only `watched` kinds have one."""
    watched: bool = True
    subresources: tuple[tuple[str, tuple[str, ...]], ...] = ()
    resource_names: tuple[str, ...] = ()
    """The only names under which the operator writes or deletes objects of the kind."""
    in_prepull_namespace: bool = False
    """Whether the kind is used only in the namespace of pre-pulls; RBAC grants it nowhere else."""

    def __post_init__(self) -> None:
        singular = self.kind.lower()
        stem, ending = (singular[:-1], "ies") if singular.endswith("y") else (singular, "s")
        plural = f"{stem}es" if singular.endswith("s") else f"{stem}{ending}"
        object.__setattr__(self, "plural", plural)

    @override
    def __hash__(self) -> int:
        return hash(self.plural)

    @override
    def __str__(self) -> str:
        return self.kind

    @property
    def api_version(self) -> str:
        return f"{self.group}/{self.version}" if self.group else self.version

    def path(self, namespace: str | None, name: str | None = None) -> str:
        """Return the URL path of one object, or of the collection."""
        root = f"/apis/{self.api_version}" if self.group else f"/api/{self.version}"
        scope = f"/namespaces/{namespace}" if self.namespaced and namespace else ""
        return f"{root}{scope}/{self.plural}" + (f"/{name}" if name else "")
