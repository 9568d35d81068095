"""Several questions to Prometheus in one, and what its answers consist of."""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

SERVICE = "tessera_dev_service"
"""What a PodMonitor makes of the pod label `tessera.dev/service`."""
VARIANT = "tessera_dev_variant"
"""Likewise, of `tessera.dev/variant`."""
Row = Mapping[str, Any]
_QUESTION = "tessera_question"


def all_of(questions: Mapping[str, str]) -> str:
    """One question for all: each costs a few milliseconds, however short its answer is."""
    return " or ".join(
        f'label_replace({query}, "{_QUESTION}", "{name}", "", "")'
        for name, query in questions.items()
    )


def by_question(rows: Iterable[Row]) -> Mapping[str, list[Row]]:
    """The answer to each; none for one that nothing is known about."""
    told: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        told[row["metric"][_QUESTION]].append(row)
    return told
