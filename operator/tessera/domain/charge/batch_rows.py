"""What a batch runner and a gateway say to each other of money, and what a runner has of it.

A runner says which rows have answers, and never what changed since: a message may be lost, come
late or come again. Amounts are whole nano-units of the budget's currency.
"""

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Annotated, NamedTuple, TypeAlias

from pydantic import Field

from tessera.api.meta import DnsLabel, Wire
from tessera.domain.charge.answer_lengths import AnswerLengths
from tessera.domain.charge.prices import RequestPrice, charge_of

# Of a block: as many rows share a part file.
BLOCK_ROWS = 1000
# In one message; the work of an attempt is in a few blocks at a time.
MAX_BLOCKS = 32
# Most rows whose money a batch has at a time.
MAX_RESERVED_ROWS = 1000
# An answer may be so many times as long as 95 % of the answers are, before it is cut,
_HEADROOM = 2
# and when it is sent again so many times as long as before.
_GROWTH = 4
_MAX_TOKENS = 2**31
_MAX_NANOS = 2**53

Tokens = Annotated[int, Field(ge=0, le=_MAX_TOKENS)]
Nanos = Annotated[int, Field(ge=0, le=_MAX_NANOS)]


class RowTokens(NamedTuple):
    """A row of a block with an answer, as its engine counted it."""

    row: int
    """Within the block."""
    input: int
    output: int


# Pydantic reads a plain tuple ten times as fast as a named one, and a message has 32,000 of them.
_RowTokens: TypeAlias = tuple[Annotated[int, Field(ge=0, lt=BLOCK_ROWS)], Tokens, Tokens]


class BlockUse(Wire):
    """What the rows of one block used."""

    number: Annotated[int, Field(ge=0, lt=2**31)]
    rows: Annotated[tuple[_RowTokens, ...], Field(max_length=BLOCK_ROWS)] = ()
    """`RowTokens` of all that have an answer, of whichever attempt."""
    cut_input: Tokens = 0
    """Tokens of the prompts of answers that this attempt cut, in all."""
    cut_output: Tokens = 0
    """Tokens of these answers."""


class BatchMessage(Wire):
    """What a runner says of its attempt, and what it needs."""

    batch: DnsLabel
    uid: Annotated[str, Field(pattern=r"^[A-Za-z0-9-]{1,64}$")]
    attempt: Annotated[int, Field(ge=1, lt=2**31)]
    """The fence: a lower number than that of another message changes nothing."""
    model: Annotated[str, Field(min_length=1, max_length=512)]
    blocks: Annotated[tuple[BlockUse, ...], Field(max_length=MAX_BLOCKS)] = ()
    need: Nanos = 0
    """What it must have reserved in all; less is of no use. 0 where rows run."""
    want: Nanos = 0
    """What it would have reserved in all; what it has beyond that is returned."""
    opens: bool = False
    """It is the first message of a runner, which asks which rows are settled."""


class BatchOutcome(StrEnum):
    """What became of a message."""

    GRANTED = "Granted"
    """Rows are settled, and the need is reserved."""
    WAIT = "Wait"
    """Rows are settled; others have reserved what it needs, or return it within a second."""
    EXCEEDED = "BudgetExceeded"
    """Rows are settled; charges have used a limit up, as far as this need."""
    FENCED = "Fenced"
    """Another attempt is current: nothing changed."""


class BatchAnswer(Wire):
    """What a gateway answers."""

    outcome: BatchOutcome
    reserved: Nanos = 0
    """What rows that are not settled may be charged."""
    input: Nanos = 0
    """Price of a million tokens of a prompt, when the attempt began."""
    output: Nanos = 0
    """The same of an answer."""
    per_row: Nanos = 0
    settled: tuple[tuple[int, int], ...] = ()
    """Of a message that opens: blocks, and how many of their rows are settled."""
    message: str = ""
    """Why it is not granted, and what to do."""


def token_charge(price: RequestPrice, input_tokens: int, output: int) -> int:
    """Return the nano-units of tokens of rows.

    Part files know neither cached tokens nor reasoning, so both count as others.
    """
    nanos = charge_of(price, input_tokens=input_tokens, cached=0, output=output, reasoning=0)
    return nanos - price.per_request


@dataclass(slots=True)
class RowPurse:
    """The money that a runner has for its rows: reserved, given to rows at the engine, and used.

    Of a row that runs its most tokens are taken, so that no answer costs more than is reserved.
    """

    input: int = 0
    """Price of a million tokens, as of the others."""
    output: int = 0
    per_row: int = 0
    reserved: int = 0
    """For all rows that are not settled."""
    running: int = 0
    """Taken for rows at the engine."""
    used: int = 0
    """By rows with an answer, and by cut ones, of which no gateway knows yet."""
    lengths: AnswerLengths = field(default_factory=AnswerLengths)

    def cost(self, input_tokens: int, output: int) -> int:
        """Return the most nano-units of a row of so many tokens."""
        return self.per_row - (-(input_tokens * self.input + output * self.output) // 10**6)

    def first_limit(self, most: int | None) -> int:
        """Return the tokens that each choice of an answer may have at first, at most `most`."""
        limit = _HEADROOM * self.lengths.p95
        return limit if most is None else min(limit, most)

    @staticmethod
    def next_limit(limit: int, most: int | None) -> int:
        """Return the tokens of a choice when an answer that was cut is sent again."""
        limit = min(limit * _GROWTH, _MAX_TOKENS)
        return limit if most is None else min(limit, most)

    @property
    def room(self) -> int:
        """Return what rows that are sent now may take."""
        return self.reserved - self.running - self.used

    def take(self, nanos: int) -> None:
        """Take the money of a row that is sent now, for which there is room."""
        self.running += nanos

    def end(self, taken: int, charge: int) -> None:
        """End a row at the engine with its charge; 0 of one that pays nothing."""
        self.running -= taken
        self.used += charge

    def answered(self, answer: BatchAnswer, used: int) -> None:
        """Take the answer to a message, which said that so many are `used`."""
        self.used -= used
        self.reserved = answer.reserved
        self.input, self.output, self.per_row = answer.input, answer.output, answer.per_row

    def wanted(self, row_nanos: int, rows_left: int) -> int:
        """Return what is to be reserved in all for rows like one, beside those that run."""
        return min(self.running + min(rows_left, MAX_RESERVED_ROWS) * row_nanos, _MAX_NANOS)
