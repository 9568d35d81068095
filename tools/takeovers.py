"""The page of rights: each right of an account, and what the takeover of its pod gives.

The rights come from the rendered chart with everything on, the sentences from a file: a right
without a sentence is an error, and so is a sentence without its right.
"""

import sys
import tomllib
from collections.abc import Iterator, Sequence
from pathlib import Path

from chart_rights import CLUSTER, PLACES, Json, Right, granted_rights

SENTENCES = Path(__file__).with_name("takeovers.toml")
PAGE = "docs/reference/rights.md"
_HEAD = """\
# Rights

<!-- Generated from the chart and takeovers.toml by `make generate`. -->

Each right of an account in the chart with everything on, released in `tessera-system`, in the
cluster unless a place is said, and [what a
takeover](../security.md#rights-and-what-a-takeover-gives) of a pod with it gives.
`kubectl auth can-i --list --as system:serviceaccount:tessera-system:tessera-operator` prints those
of your cluster.

| account | may | what the takeover of its pod gives |
| --- | --- | --- |
"""


def page(objects: Sequence[Json]) -> str:
    """Return the page of all accounts; exit where rights and sentences disagree."""
    takeovers = [
        (account, takeover)
        for account, takeovers in tomllib.loads(SENTENCES.read_text(encoding="utf-8")).items()
        for takeover in takeovers
    ]
    stated = {
        Right(account, takeover["where"], takeover["may"], resource)
        for account, takeover in takeovers
        for resource in takeover.get("what", ())
    }
    if faults := list(_faults(set(granted_rights(objects)), stated)):
        sys.exit("\n".join(faults))
    return _HEAD + "".join(_row(account, takeover) for account, takeover in takeovers)


def _faults(granted: set[Right], stated: set[Right]) -> Iterator[str]:
    for right in sorted(granted - stated):
        yield f"{right}: say in tools/{SENTENCES.name} what the takeover of its pod gives by that"
    for right in sorted(stated - granted):
        yield f"{right} is not granted: remove it from tools/{SENTENCES.name}"


def _row(account: str, takeover: Json) -> str:
    where = takeover["where"] if takeover["where"] in PLACES else f"`{takeover['where']}`"
    resources = ", ".join(f"`{name}`" for name in takeover.get("what", ()))
    place = "" if where == CLUSTER else f"in {where} "
    may = f"{place}{takeover['may']} {resources}".strip()
    return f"| `{account}` | {may} | {takeover['gives']} |\n"
