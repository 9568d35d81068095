"""What a request costs its sender, by what is known of the engines that got it."""

from dataclasses import dataclass
from enum import Enum, auto
from typing import NamedTuple

from tessera.domain.gateway.reasons import RequestReason
from tessera.domain.gateway.usage_record import Phase


class WorkEnd(Enum):
    """What ended the work of engines for a request."""

    ANSWER = auto()
    """Its whole answer came."""
    REQUEST = auto()
    """The request itself: its size, its time, or its client."""
    FAILURE = auto()
    """An engine, a node or the gateway."""


_OF_REQUEST = frozenset(
    {
        RequestReason.CLIENT_GONE,
        RequestReason.ENGINE_TIMEOUT,
        RequestReason.TARGET_TIMEOUT,
        RequestReason.HELD_BYTES_EXCEEDED,
        RequestReason.RESPONSE_TOO_LARGE,
    }
)


def work_end(phase: Phase, reason: str) -> WorkEnd:
    """Return what ended the work for a request that ended so."""
    if phase is Phase.COMPLETED:
        return WorkEnd.ANSWER
    return WorkEnd.REQUEST if reason in _OF_REQUEST else WorkEnd.FAILURE


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineWork:
    """What is known of the work of all engines for one request, in tokens."""

    engines: int
    """Those that got it: they neither refused it nor were lost before the head of their answer."""
    end: WorkEnd
    prompt: int
    """About those of the prompt, within what was reserved; 0 where none is computed."""
    delivered: int = 0
    """About those of the answer that came."""
    repeated: int = 0
    """Those of them that another engine read again in order to go on."""
    unseen: int = 0
    """Those that the last engine can have made beside, in the time until its end."""
    counted: tuple[int, int] | None = None
    """Of prompt and answer, as an engine says; None where none does."""
    most_input: int
    """What the prompt can have, by its bytes."""
    most_output: int
    """What was reserved for the answer, or a token of each choice."""


class Charge(NamedTuple):
    """What one request costs, in tokens."""

    input: int
    output: int
    recomputed: int
    """Those that engines computed again since others failed: no tenant's."""


def charge(work: EngineWork) -> Charge:
    """Return what a request costs: once, whatever number of engines got it.

    Getting a request is what is paid: the prompt, and the largest of what came, what an engine
    counted, and, where the request itself ended the work, what its engine can have made until
    then. Of a whole answer an engine's own count is exact.
    """
    if not work.engines:
        return Charge(0, 0, 0)
    prompt, output = work.prompt, work.delivered
    if work.end is WorkEnd.REQUEST:
        output += work.unseen
    if work.counted is not None:
        counted_prompt, counted_output = work.counted
        if work.end is WorkEnd.ANSWER:
            prompt, output = counted_prompt, counted_output
        else:
            # `/v1/messages` counts before the answer what it has then.
            prompt, output = counted_prompt or prompt, max(output, counted_output)
    prompt = min(prompt, work.most_input)
    recomputed = (work.engines - 1) * prompt + work.repeated
    return Charge(prompt, min(output, work.most_output), recomputed)
