"""An engine that fails, at each event of its answer and in each way."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Literal

from tessera.gateway.receive.receiver import BodyBounds
from tests.gateway.course.building import (
    CHAT_PATH,
    CHUNKED,
    COMPLETION_PATH,
    FIRST,
    SECOND,
    THIRD,
    a_course,
    answering,
    begun,
    chunk,
    engine,
    request,
    sent,
    streamed,
    streaming,
    whole,
)
from tests.gateway.course.paths import BODIES, STREAMING, answer_of, rest_of, stream_of
from tests.gateway.course.play import Course, PlayedEngine, Script, Step, whole_answer
from tests.gateway.harness import a_delta, event

Failure = Literal["close", "reset", "silence", "nonsense"]
FAILURES: tuple[Failure, ...] = "close", "reset", "silence", "nonsense"
_STATUSES = (204, 400, 401, 404, 413, 422, 429, 500, 503)
_ERROR = event({"error": {"message": "out of memory", "type": "X", "code": 500}})
_REFUSAL = event({"error": {"message": "too long", "type": "X", "code": 400}})
_ABORT = a_delta("", finish_reason="abort")
_FAILED: Mapping[str, bytes] = {
    CHAT_PATH: _ERROR,
    COMPLETION_PATH: _ERROR,
    "/v1/responses": b'event: response.failed\ndata: {"type":"response.failed"}\n\n',
    "/v1/messages": b'event: error\ndata: {"type":"error","error":{"message":"no"}}\n\n',
}


def stream_events(path: str) -> Mapping[str, Script]:
    """Return what an engine did of a stream until it fails, by the event that was the last one."""
    before, words, after = stream_of(path)
    every = [*before, *words, *after]
    return {
        "before the head": (),
        "in the head": (Step(0.0053, "send", CHUNKED[:30]),),
        "after the head": streaming([], end=False),
        "before the first token": streaming(before or [b": ping\n\n"], end=False),
        "after a token": streaming(begun(path, 1), end=False),
        "after three tokens": streaming(begun(path, 3), end=False),
        "in an event": (
            *streaming(begun(path, 2), end=False),
            Step(0.0123, "send", chunk(words[2][:30])),
        ),
        "in a chunk": (
            *streaming(begun(path, 2), end=False),
            Step(0.0123, "send", chunk(words[2])[:40]),
        ),
        "before the last event": streaming(every[:-1], end=False),
        "after the last event": streaming(every, end=False),
        "after its end": streaming(every),
    }


def whole_events(path: str) -> Mapping[str, Script]:
    """Return the same of an answer that is no stream."""
    data = whole_answer(answer_of(path))
    body = data.index(b"\r\n\r\n") + 4
    return {
        "before the head": (),
        "in the head": (Step(0.0317, "send", data[:25]),),
        "after the head": (Step(0.0317, "send", data[:body]),),
        "in the body": (Step(0.0317, "send", data[: body + 20]),),
        "after its end": (Step(0.0317, "send", data),),
    }


def failing(done: Script, failure: Failure) -> Script:
    """Return what an engine did, and how it fails then."""
    if failure == "silence":
        return done
    if failure == "nonsense":
        return (*done, Step(0.0091, "send", b"\x00nonsense\r\n\r\n"))
    return (*done, Step(0.0091, failure))


def _courses(
    path: str, failure: Failure, events: Mapping[str, Script], *, stream: bool
) -> Iterator[Course]:
    kind = "stream" if stream else "whole"
    asked = request(path, streamed(path) if stream else BODIES[path])
    other = engine(streaming(rest_of(path)) if stream else answering(path, stream=False))
    for place, done in events.items():
        failed = engine(failing(done, failure))
        name = f"engine {failure} {place}, {path} {kind}"
        yield a_course(f"{name}, alone", sent(asked), engines={FIRST: failed})
        yield a_course(f"{name}, of two", sent(asked), engines={FIRST: failed, SECOND: other})


def _refused() -> Iterator[Course]:
    for stream in (False, True):
        kind = "stream" if stream else "whole"
        asked = request(CHAT_PATH, streamed(CHAT_PATH) if stream else BODIES[CHAT_PATH])
        other = engine(answering(CHAT_PATH, stream=stream))
        for status in _STATUSES:
            body = {"error": {"message": f"it says {status}", "code": status}}
            yield a_course(
                f"engine answers {status}, {kind}",
                sent(asked),
                engines={FIRST: engine(whole(body, status)), SECOND: other},
            )
        for status in (429, 503):
            busy = engine(whole({"error": "busy"}, status))
            yield a_course(
                f"all engines answer {status}, {kind}",
                sent(asked),
                engines={FIRST: busy, SECOND: busy},
            )
        for name, answer in (
            ("500 after shutdown", whole(b"500 after shutdown", 500)),
            ("400 without JSON", whole(b"no", 400, content_type="text/plain")),
            ("another content type", whole(answer_of(CHAT_PATH), content_type="text/html")),
            ("invalid UTF-8", whole(b'{"id": "\xff\xfe"}')),
            ("an abort", whole({"choices": [{"finish_reason": "abort"}]})),
            ("no HTTP", (Step(0.0117, "send", b"SSH-2.0-x\r\n\r\n"),)),
            (
                "100 before it",
                (Step(0.01, "send", b"HTTP/1.1 100 Continue\r\n\r\n"), *other.answers[0]),
            ),
        ):
            yield a_course(
                f"engine answers {name}, {kind}",
                sent(asked),
                engines={FIRST: engine(answer), SECOND: other},
            )
        for connects in ("refused", "never"):
            lost = PlayedEngine(connects=connects)
            yield a_course(
                f"engine connects {connects}, {kind}", sent(asked), engines={FIRST: lost}
            )
            yield a_course(
                f"engine connects {connects}, {kind}, of three",
                sent(asked),
                engines={FIRST: lost, SECOND: lost, THIRD: other},
            )


def _reported(path: str) -> Iterator[Course]:
    """Streams that report their failure themselves."""
    going_on = engine(streaming(rest_of(path)))
    for name, reported in (("error", _FAILED[path]), ("refusal", _REFUSAL), ("abort", _ABORT)):
        for tokens in (0, 2):
            answer = streaming([*begun(path, tokens), reported])
            yield a_course(
                f"engine reports {name} after {tokens}, {path}",
                sent(request(path, streamed(path))),
                engines={FIRST: engine(answer), SECOND: going_on},
            )


def _resumptions() -> Iterator[Course]:
    """Streams whose next engines fail as well."""
    for path in (CHAT_PATH, COMPLETION_PATH):
        asked = sent(request(path, streamed(path, stream_options={"include_usage": True})))
        lost = (*streaming(begun(path), end=False), Step(0.0091, "reset"))
        nothing = (Step(0.0091, "reset"),)
        going_on = streaming(rest_of(path))
        for name, second, third in (
            ("twice", (*streaming(rest_of(path)[:2], end=False), Step(0.0091, "reset")), going_on),
            ("after nothing", nothing, going_on),
            ("without a third", nothing, nothing),
            ("with all said", streaming(stream_of(path)[2]), going_on),
        ):
            engines = {FIRST: engine(lost), SECOND: engine(second), THIRD: engine(third)}
            yield a_course(f"resumed {name}, {path}", asked, engines=engines)
        tokenizing: Sequence[tuple[str, Script]] = (
            ("404", whole({"error": "no"}, 404)),
            ("closing", (Step(0.0051, "close"),)),
            ("no JSON", whole(b"{")),
            ("another prompt", whole({"count": 5, "tokens": [9, 8, 7]})),
        )
        for name, script in tokenizing:
            engines = {FIRST: engine(lost), SECOND: engine(going_on, tokenizes=script)}
            yield a_course(
                f"resumed at an engine that counts by {name}, {path}", asked, engines=engines
            )
        slow = (Step(0.7011, "send", whole_answer({"count": 4, "tokens": [0, 1, 2, 3]})),)
        yield a_course(
            f"resumed after heartbeats, {path}",
            asked,
            engines={FIRST: engine(lost), SECOND: engine(going_on, tokenizes=slow)},
            bounds=BodyBounds(heartbeat_seconds=0.3),
        )
        engines = {FIRST: engine(lost), SECOND: engine(going_on, begun_tokens=24)}
        yield a_course(f"resumed without a token left, {path}", asked, engines=engines)


def failures() -> Iterator[Course]:
    """Return the courses of engines that fail."""
    for failure in FAILURES:
        yield from _courses(CHAT_PATH, failure, stream_events(CHAT_PATH), stream=True)
        yield from _courses(CHAT_PATH, failure, whole_events(CHAT_PATH), stream=False)
    yield from _refused()
    for path in STREAMING:
        yield from _reported(path)
    yield from _resumptions()
