"""Random failures of eleven kinds, and what requests were charged for them.

`figures_of_rule` plays them against the rule alone, `figures_of_gateway` against a gateway and its
engines in virtual time.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any

from tessera.domain.gateway.directory import Directory
from tessera.domain.usage.charge import Charge, EngineWork, WorkEnd, charge
from tests.gateway.course.building import CHAT_PATH, CHUNKED, LAST_CHUNK, chunk, request, whole
from tests.gateway.course.play import Course, Happening, Play, PlayedEngine, Script, Step
from tests.gateway.harness import DONE, END, ROLE, a_delta, a_directory, a_model, a_replica, event

PACE_SECONDS = 0.01
_IDLE_SECONDS = 1.0
# Between two requests of a course, at whose end its gateway drains.
_NEXT_SECONDS, _DRAIN_SECONDS = 0.05, 3.2
_TOGETHER = 25
# What an engine makes until the idle time is over, and no request asks for more.
_MOST_TOKENS = 100
_MIB = 2**20
_LOST, _LAST = Step(0.02, "close"), Step(0.0, "send", LAST_CHUNK)
KINDS = (
    *("leaves before a token", "leaves within", "leaves while hidden", "too large", "idle"),
    *("refused", "unreachable", "dies", "drained or killed", "goes on", "retried"),
)
_OF_REQUEST = frozenset(KINDS[:5])
_FREE = frozenset({"refused", "unreachable"})
Rule = Callable[[EngineWork], Charge]


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """One request that fails, as it is drawn."""

    number: int
    kind: str
    words: int
    choices: int
    most: int
    """Tokens that it asks for, of one choice."""
    tokens: int
    """Those of the answer that its client gets, of the first choice."""
    steps: int
    """Those of each choice that its engine makes until the end, beside these."""
    variant: int
    """How it fails, where its kind has several ways."""

    @property
    def reserved(self) -> int:
        return self.most * self.choices

    @property
    def owed_output(self) -> int:
        """Return what part of the answer is paid."""
        unseen = self.steps * self.choices if self.kind in _OF_REQUEST else 0
        return min(self.tokens + unseen, self.reserved)


@dataclass(slots=True, kw_only=True)
class ChargeFigures:
    """What was charged for failures, against what engines are to be paid."""

    failures: int = 0
    unpaid_engine_tokens: int = 0
    """Of the prompt and the answer, by which a charge is too low."""
    charged_twice: int = 0
    """Failures that cost more than the prompt once and each token of the answer once."""
    charged_above_reservation: int = 0
    kinds: set[str] = field(default_factory=set)

    def count(
        self, failure: Failure, owed_prompt: int, most_prompt: int, paid: tuple[int, int]
    ) -> None:
        """Count what was charged for one failure, whose prompt has so many tokens at most."""
        self.failures += 1
        self.kinds.add(failure.kind)
        is_free = failure.kind in _FREE or (failure.kind == "dies" and not failure.variant)
        owed = (0, 0) if is_free else (owed_prompt, failure.owed_output)
        self.unpaid_engine_tokens += sum(
            max(0, each - charged) for each, charged in zip(owed, paid, strict=True)
        )
        most = (0, 0) if is_free else (most_prompt, owed[1])
        if failure.kind in _OF_REQUEST:
            most = most_prompt, failure.reserved
        self.charged_twice += paid[0] > most[0] or paid[1] > most[1]
        self.charged_above_reservation += paid[0] > most_prompt or paid[1] > failure.reserved


def drawn(count: int, seed: int) -> Iterator[Failure]:
    """Yield so many failures, each kind as often as any other."""
    random = Random(seed)  # noqa: S311 - a seeded choice
    for number in range(count):
        kind, variant = KINDS[number % len(KINDS)], random.randrange(4)
        is_answered = kind in ("goes on", "retried")
        has_tokens = (
            is_answered
            or kind in ("leaves within", "drained or killed")
            or (kind == "too large" and variant > 0)
            or (kind == "dies" and variant > 1)
        )
        steps = random.randint(1, 40)
        if kind == "idle":
            steps = _MOST_TOKENS
        elif kind == "leaves before a token" and variant % 2 == 0:
            # Nothing says that the engine has read the prompt of a stream.
            steps = 0
        yield Failure(
            number=number,
            kind=kind,
            words=random.randint(1, 400),
            choices=1 if has_tokens else random.choice((1, 1, 4)),
            most=random.randint(20, _MOST_TOKENS),
            tokens=random.randint(2, 19) if has_tokens else 0,
            steps=steps,
            variant=variant,
        )


def figures_of_rule(count: int = 10_000, seed: int = 1, rule: Rule = charge) -> ChargeFigures:
    """Charge random failures by a rule, with what a gateway knows of them."""
    figures = ChargeFigures()
    for failure in drawn(count, seed):
        prompt = failure.words
        is_taken = failure.kind not in _FREE and (failure.kind != "dies" or failure.variant > 0)
        ends = {
            **dict.fromkeys(_OF_REQUEST, WorkEnd.REQUEST),
            **dict.fromkeys(("goes on", "retried"), WorkEnd.ANSWER),
        }
        end, counted = ends.get(failure.kind, WorkEnd.FAILURE), None
        if failure.variant and end is WorkEnd.ANSWER:
            counted = (prompt, failure.tokens)
        elif failure.variant and end is WorkEnd.REQUEST:
            # What an engine claims need not be true.
            counted = (10**9, 10**9)
        charged = rule(
            EngineWork(
                engines=int(is_taken) + (end is WorkEnd.ANSWER),
                end=end,
                prompt=prompt,
                delivered=failure.tokens,
                repeated=2 if failure.kind == "goes on" else 0,
                # An engine makes tokens whoever ends its work.
                unseen=failure.steps * failure.choices,
                counted=counted,
                most_input=prompt,
                most_output=failure.reserved,
            )
        )
        figures.count(failure, prompt, prompt, (charged.input, charged.output))
    return figures


def figures_of_gateway(count: int = 200, seed: int = 1) -> ChargeFigures:
    """Play random failures against a gateway; those of one course come one after another."""
    figures = ChargeFigures()
    failures = list(drawn(count, seed))
    for first in range(0, count, _TOGETHER):
        _play(failures[first : first + _TOGETHER], figures)
    return figures


def _play(failures: Sequence[Failure], figures: ChargeFigures) -> None:
    engines = {
        address: engine
        for failure in failures
        for engine in (_engine(failure),)
        for address in _addresses(failure)
    }
    course = Course(
        name="failures",
        directory=_directory(failures),
        engines=engines,
        clients=tuple(_client(failure, place) for place, failure in enumerate(failures)),
        happenings=(
            Happening(seconds=_DRAIN_SECONDS, drains=True),
            Happening(seconds=_DRAIN_SECONDS + 0.1, cancels=True),
        ),
        idle_seconds=_IDLE_SECONDS,
    )
    play = Play(course)
    play.run()
    charged: dict[int, list[tuple[int, int]]] = {failure.number: [] for failure in failures}
    for _, record in play.records:
        charged[int(record.request_id)].append((record.input_tokens, record.output_tokens))
    for failure in failures:
        size = len(_body_bytes(failure))
        # As the estimate of the gateway.
        most_prompt = size // 3 + 1
        for paid in (*charged[failure.number], *_killed(failure, play)):
            figures.count(failure, -(-size // 4), most_prompt, paid)
        figures.charged_twice += len(charged[failure.number]) > 1
        figures.unpaid_engine_tokens += not charged[failure.number]


def _killed(failure: Failure, play: Play) -> Iterable[tuple[int, int]]:
    """Return what would have been recorded of it if the gateway had been killed as it waited."""
    if failure.kind != "drained or killed":
        return ()
    (reading,) = (
        reading
        for reading in play.readings
        if reading["why"] == f"client-{failure.number % _TOGETHER + 1}: stop reading"
    )
    return [
        (record["input_tokens"], record["output_tokens"])
        for record in reading["partial"]
        if record["request_id"] == str(failure.number)
    ]


def _addresses(failure: Failure) -> tuple[str, ...]:
    """Return where the engines of its model are: two where another one goes on with it."""
    host = f"192.0.2.{failure.number % _TOGETHER + 1}"
    engines = 2 if failure.kind in ("goes on", "retried") else 1
    return tuple(f"{host}:{8000 + engine}" for engine in range(engines))


def _directory(failures: Sequence[Failure]) -> Directory:
    models = [
        a_model(
            *(
                a_replica(address, f"chat-{failure.number}-{place}", engine="same")
                for place, address in enumerate(_addresses(failure))
            ),
            uid=f"uid-{failure.number}",
            names=(f"chat-{failure.number}",),
            itl_seconds=PACE_SECONDS,
            max_model_len=32_768,
        )
        for failure in failures
    ]
    return a_directory(*models)


# --- what clients do


def _streams(failure: Failure) -> bool:
    """Return whether it asks for a stream."""
    if failure.kind in ("leaves before a token", "refused", "unreachable", "idle"):
        return failure.variant % 2 == 0
    return failure.kind != "too large" or failure.variant > 0


def _body(failure: Failure) -> dict[str, Any]:
    return {
        "model": f"chat-{failure.number}",
        "messages": [{"role": "user", "content": "word " * failure.words}],
        "max_tokens": failure.most,
        "n": failure.choices,
        "stream": _streams(failure),
    }


def _request(failure: Failure) -> bytes:
    return request(CHAT_PATH, _body(failure), x_request_id=str(failure.number))


def _body_bytes(failure: Failure) -> bytes:
    return _request(failure).partition(b"\r\n\r\n")[2]


def _token(place: int) -> bytes:
    return a_delta(f" {place}")


def _client(failure: Failure, place: int) -> Script:
    """Return what its client does, who comes at a moment of his own."""
    asks, seconds = Step(_NEXT_SECONDS * place, "send", _request(failure)), _seconds(failure)
    match failure.kind:
        case "leaves before a token":
            return asks, Step(seconds, "reset")
        case "leaves while hidden":
            return asks, Step(seconds, "close")
        case "leaves within":
            return asks, Step(0.0, "await", _token(failure.tokens - 1)), Step(seconds, "close")
        case "drained or killed":
            last = _token(failure.tokens - 1)
            return asks, Step(0.0, "await", last), Step(0.05, "stop reading")
        case _:
            return (asks,)


def _seconds(failure: Failure) -> float:
    """Return for how long its engine works beside what the client gets."""
    # In the middle of a token, so that none more or less is made on the way.
    return (failure.steps - 0.5 if failure.steps else 5.0) * PACE_SECONDS


# --- what engines do


def _engine(failure: Failure) -> PlayedEngine:
    """Return what each engine of its model is."""
    if failure.kind == "unreachable":
        return PlayedEngine(connects="refused")
    attempts = iter(range(10))
    return PlayedEngine(answer=lambda: _answer(failure, next(attempts)))


def _answer(failure: Failure, attempt: int) -> Script:
    """Return what an engine does that gets the request after so many others."""
    if failure.kind == "refused":
        return whole({"error": {"message": "no"}}, (400, 422, 500, 503)[failure.variant])
    if failure.kind == "dies" and not failure.variant:
        return (Step(0.02, "reset"),)
    if failure.kind == "too large" and not _streams(failure):
        return whole(b" " * 33 * _MIB, seconds=_seconds(failure))
    if failure.kind == "leaves before a token" or not _streams(failure):
        return ()
    parts = (CHUNKED, ROLE, *_parts(failure, attempt))
    # What is no step of its own is sent at once.
    return tuple(
        part
        if isinstance(part, Step)
        else Step(0.0, "send", part if part is CHUNKED else chunk(part))
        for part in parts
    )


def _parts(failure: Failure, attempt: int) -> Sequence[bytes | Step]:
    """Return the events of a stream, and what takes time in it."""
    tokens = [_token(place) for place in range(failure.tokens)]
    joint = 2 if failure.kind == "goes on" else 0
    match failure.kind:
        case "too large":
            return *tokens, Step(_seconds(failure), "send", chunk(a_delta("x" * 5 * _MIB)))
        case "dies":
            return *tokens, _LOST
        case "goes on" | "retried" if attempt == 0:
            return *tokens[:joint], _LOST
        case "goes on" | "retried":
            return *tokens[joint:], END, _usage(failure, joint), DONE, _LAST
        case "drained or killed":
            # It is no engine that hangs.
            return *tokens, *[Step(0.4, "send", chunk(b": ping\n\n"))] * 8
        case _:
            return tokens


def _usage(failure: Failure, begun: int) -> bytes:
    """Return what an engine counts that got so many tokens of the answer with the prompt."""
    prompt = -(-len(_body_bytes(failure)) // 4) + begun
    usage = {"prompt_tokens": prompt, "completion_tokens": failure.tokens - begun}
    return event({"id": "chatcmpl-0", "model": "chat", "choices": [], "usage": usage})
