"""A kind Memo: a note of a team to itself, which is accepted if it is short."""

from tests.width.additions import Addition

_API = '''"""The kind Memo."""

from typing import Annotated

from pydantic import ConfigDict, Field

from tessera.api.meta import Conditions, Wire
from tessera.api.reasons import StatusReason


class MemoAccepted(StatusReason):
    """May others read the memo?"""

    VALID = "Valid", True
    """The spec is valid."""
    INVALID_SPEC = "InvalidSpec"
    """The object does not match the schema of this operator."""


class MemoSpec(Wire):
    """A text."""

    text: Annotated[str, Field(max_length=20)]
    """What it says."""


class MemoStatus(Wire):
    """What is known of the memo; written by the operator only."""

    model_config = ConfigDict(extra="ignore")

    observed_generation: int = 0
    """Generation of the spec that this status describes."""

    conditions: Conditions = ()
    """Condition Accepted: whether others may read it."""


class Memo(Wire):
    """A note of a team to itself."""

    spec: MemoSpec
    """A text."""

    status: MemoStatus | None = None
    """What is known of the memo; written by the operator only."""
'''

_RULE = '''"""What the status of a memo says."""

from collections.abc import Mapping, Sequence
from typing import Any

from tessera.api.memo import MemoAccepted, MemoStatus
from tessera.api.reasons import StatusVerdict
from tessera.api.ref import Ref
from tessera.domain.observed.object import Observed
from tessera.domain.observed.snapshot import Snapshot
from tessera.domain.status.conditions import conditions


def memo_statuses(
    memos: Sequence[Observed], snapshot: Snapshot, *_: Any
) -> Mapping[Ref, MemoStatus]:
    """Return the status of each memo."""
    statuses = {}
    for memo in memos:
        verdict = StatusVerdict(MemoAccepted.VALID, "it is short")
        if memo.spec is None:
            verdict = StatusVerdict(MemoAccepted.INVALID_SPEC, memo.problem or "")
        statuses[memo.ref] = MemoStatus(
            observed_generation=memo.generation,
            conditions=conditions({"Accepted": verdict}, memo, snapshot.at),
        )
    return statuses
'''

_ROW = """MEMOS = Kind(
    model=Memo,
    observed=Observed,
    short_names=("tmemo",),
    watched_by=_BOTH,
    columns=accepted_columns(PrinterColumn(name="Text", path=".spec.text")),
)

# Kinds with a spec that users write.
USER_KINDS: tuple[Kind[Any], ...] = (
    MEMOS,
"""

MEMO = Addition(
    new={"api/memo.py": _API, "domain/status/memo.py": _RULE},
    edits={
        "domain/kinds/kinds.py": {
            "from tessera.api.model_provider import ModelProvider\n": (
                "from tessera.api.memo import Memo\n"
                "from tessera.api.model_provider import ModelProvider\n"
                "from tessera.domain.observed.object import Observed\n"
            ),
            "# Kinds with a spec that users write.\nUSER_KINDS: tuple[Kind[Any], ...] = (\n": _ROW,
        },
        "domain/status/reporters.py": {
            "from tessera.domain.kinds.kinds import ": (
                "from tessera.domain.status.memo import memo_statuses\n"
                "from tessera.domain.kinds.kinds import MEMOS, "
            ),
            "REPORTERS: tuple[Reporter[Any], ...] = (\n": (
                "REPORTERS: tuple[Reporter[Any], ...] = (\n    Reporter(MEMOS, memo_statuses),\n"
            ),
        },
    },
    check="tests.width.check_memo",
)
