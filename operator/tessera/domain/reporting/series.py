"""Series of metrics and their samples, as they are decided."""

from collections.abc import Sequence
from typing import Literal, TypeAlias


class Series:
    """What there is to know of a metric besides its values."""

    def __init__(
        self, name: str, text: str, *labels: str, kind: Literal["gauge", "counter"] = "gauge"
    ) -> None:
        self.name, self.text, self.labels, self.kind = name, text, labels, kind


# The series, the values of its labels, and its own value; None where it is not known.
Sample: TypeAlias = tuple[Series, Sequence[str], float | None]
