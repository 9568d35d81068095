"""Plays inputs against the gateway, and compares what it does with what the bytes say."""

from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, replace

from typing_extensions import override

from tests.framing.grammar import an_input
from tests.framing.recording import (
    Client,
    Recording,
    calls_of,
    is_for_engine,
    wrong_call,
    wrong_response,
)
from tests.framing.strict import End, Reading, Request, Response, read, read_responses

_SHRINKING_STEPS = 100
Play = Callable[[Sequence[bytes]], Awaitable[list[str]]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """An input for which the gateway did something else than the bytes say."""

    seed: str
    pieces: Sequence[bytes]
    problems: Sequence[str]

    @property
    def kinds(self) -> set[str]:
        """Return the kinds of all problems."""
        return {problem.partition(":")[0] for problem in self.problems}

    @override
    def __str__(self) -> str:
        return "\n  ".join([f"an_input({self.seed!r}), shrunk: {self.pieces!r}", *self.problems])


async def fuzz(play: Play, seeds: Iterable[str]) -> AsyncIterator[Difference]:
    """Play the input of each seed, and yield those that differ."""
    for seed in seeds:
        pieces = an_input(seed)
        problems = await play(pieces)
        if problems:
            yield Difference(seed=seed, pieces=pieces, problems=problems)


async def shrink(play: Play, difference: Difference) -> Difference:
    """Leave out bytes as long as the same kinds of problems are seen."""
    steps = 0
    size = len(b"".join(difference.pieces))
    candidates = [[b"".join(difference.pieces)]]
    while steps < _SHRINKING_STEPS:
        for candidate in candidates:
            steps += 1
            shrunk = replace(difference, pieces=candidate, problems=await play(candidate))
            if shrunk.kinds == difference.kinds:
                difference = shrunk
                break
        else:
            if size <= 1:
                break
            size //= 2
        candidates = [each for each in _without(difference.pieces, size) if any(each)]
    return difference


def _without(pieces: Sequence[bytes], size: int) -> Iterable[list[bytes]]:
    """Return the pieces without so many bytes, at each place."""
    for at in range(0, len(b"".join(pieces)), size):
        shorter, before = [], 0
        for piece in pieces:
            start, end = max(0, at - before), max(0, at + size - before)
            shorter.append(piece[:start] + piece[end:])
            before += len(piece)
        yield [piece for piece in shorter if piece]


async def play_alone(port: int, recording: Recording, pieces: Sequence[bytes]) -> list[str]:
    """Send an input to the gateway on a connection of its own; return what is wrong."""
    sent = b"".join(pieces)
    reading = read(sent)
    client = await Client.connect(port)
    try:
        await client.send(pieces)
        # The gateway may wait for the end of a head before it refuses it.
        rest = sent[reading.size :].lstrip(b"\r\n")
        unended = reading.end is End.INVALID and b"\r\n\r\n" not in rest
        if unended or reading.end in (End.PARTIAL, End.NOTHING):
            await client.responses([each.method for each in reading.requests])
            client.finish()
        received = await client.ended()
    except TimeoutError:
        return ["stays open: the connection"]
    finally:
        client.close()
    heads = recording.heads.pop(client.port, [])
    problems = wrong_heads(reading, heads)
    problems += _wrong_responses(reading, received)
    problems += wrong_calls(reading, recording, served=len(heads))
    recording.clear()
    return problems


def wrong_heads(reading: Reading, heads: Sequence[Request]) -> list[str]:
    """Compare the requests that the application got with those that the bytes are."""
    expected = [_without_offers(each) for each in reading.requests]
    if reading.started is not None:
        expected.append(_without_offers(reading.started))
    problems = [
        f"another request: {head} instead of {said}"
        for head, said in zip(heads, expected, strict=False)
        if head != said
    ]
    return problems + [f"no request: {head}" for head in heads[len(expected) :]]


def _without_offers(request: Request) -> Request:
    """Return the head of a request without offers to upgrade, which a server may ignore."""
    headers = tuple(each for each in request.headers if each[0] != b"upgrade")
    return Request(method=request.method, target=request.target, headers=headers)


def wrong_calls(reading: Reading, recording: Recording, served: int) -> list[str]:
    """Compare what the engine got with the requests that it has to get."""
    problems = []
    rest = list(recording.calls)
    for index, request in enumerate(reading.requests):
        calls = calls_of(request, rest)
        rest = [call for call in rest if call not in calls]
        # Before what is invalid, those that still wait may be given up.
        given_up = index >= served or reading.end is End.INVALID
        if calls or (is_for_engine(request) and not given_up):
            problem = wrong_call(request, calls)
            problems += [problem] if problem else []
    return problems + [f"call without a request: {call}" for call in rest]


def _wrong_responses(reading: Reading, received: bytes) -> list[str]:
    requests = list(reading.requests)
    if reading.started is not None:
        requests.append(reading.started)
    try:
        responses = read_responses(received, [each.method for each in requests])
    except ValueError as error:
        return [] if reading.end is End.INVALID else [str(error)]
    refused = bool(responses) and _is_refusal(responses[-1])
    answers = responses[: len(responses) - refused]
    problems = [
        _wrong_answer(reading, request, response)
        for request, response in zip(requests, answers, strict=False)
    ]
    if len(answers) > len(requests):
        problems.append(f"more responses: {len(answers)} to {len(requests)} requests")
    if refused and reading.end not in (End.INVALID, End.PARTIAL):
        problems.append(f"refused: {responses[-1]}")
    missing = reading.end is not End.INVALID and len(answers) < len(reading.requests)
    # A response before the end of its request is the last.
    if missing and (refused or not answers or not _is_last(answers[-1])):
        problems.append(f"fewer responses: {len(answers)} to {len(requests)} requests")
    return [problem for problem in problems if problem is not None]


def _wrong_answer(reading: Reading, request: Request, response: Response) -> str | None:
    if request is not reading.started:
        return wrong_response(request, response)
    return f"too early: {request.id}, {response}" if b'"choices"' in response.body else None


def _is_refusal(response: Response) -> bool:
    """Tell whether it answers what is no request."""
    return response.status in (400, 408, 431) and b"x-request-id" not in response.headers


def _is_last(response: Response) -> bool:
    return response.headers.get(b"connection") == b"close"
