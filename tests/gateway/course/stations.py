"""A client that goes away, at each station of its request."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Literal

from tessera.gateway.receive.receiver import BodyBounds
from tests.gateway.course.building import (
    BUSY,
    CHAT_PATH,
    COMPLETION_PATH,
    FILLERS,
    FIRST,
    SECOND,
    a_course,
    begun,
    chunk,
    directory,
    engine,
    request,
    sent,
    streamed,
    streaming,
    whole,
    whole_stream,
)
from tests.gateway.course.paths import BODIES, STREAMING, answer_of, stream_of
from tests.gateway.course.play import Course, PlayedEngine, Script, Step

Leaving = Literal["close", "reset"]
_WAYS: tuple[Leaving, ...] = "close", "reset"
_CHAT = BODIES[CHAT_PATH]
_LARGE = {**answer_of(CHAT_PATH), "padding": "word " * 200_000}
_SILENT = engine(())


def _large_stream(path: str) -> Script:
    """Send more than the machines and the gateway keep for a client."""
    before, words, after = stream_of(path)
    padded = words[1].replace(b" two", b" two" * 15_000)
    return streaming([*before, words[0], *[padded] * 40, *after], gap=0.0041)


def _stations(way: Leaving) -> Iterator[Course]:
    asked = request(CHAT_PATH, _CHAT)
    head, _, body = asked.partition(b"\r\n\r\n")
    direct = engine(whole(answer_of(CHAT_PATH)))
    yield a_course(
        f"in the head, {way}", sent(head[:40], Step(0.0307, way)), engines={FIRST: direct}
    )
    part = head + b"\r\n\r\n" + body[:20]
    yield a_course(f"in the body, {way}", sent(part, Step(0.0307, way)), engines={FIRST: direct})
    chunked = request(CHAT_PATH, b"", content_length="", transfer_encoding="chunked")
    part = chunked + chunk(body[:20])
    yield a_course(
        f"in the chunked body, {way}", sent(part, Step(0.0307, way)), engines={FIRST: direct}
    )
    token = request(CHAT_PATH, _CHAT, key="team-a.b.c")
    yield a_course(
        f"while its token is verified, {way}",
        sent(token, Step(0.0071, way)),
        engines={FIRST: direct},
    )
    one_place = directory(FIRST, replica={"max_num_seqs": 1}, ttft_seconds=5.0)
    for path, stream in ((CHAT_PATH, False), *((path, True) for path in STREAMING)):
        wanted = request(path, streamed(path) if stream else BODIES[path])
        name = f"{path} {'stream' if stream else 'whole'}, {way}"
        yield a_course(
            f"queued, {name}",
            *FILLERS,
            sent(wanted, Step(0.1507, way)),
            engines={FIRST: engine(BUSY, BUSY, whole_stream(path) if stream else BUSY)},
            directory=one_place,
        )
        yield a_course(
            f"before the head, {name}", sent(wanted, Step(0.2011, way)), engines={FIRST: _SILENT}
        )
    asleep = directory(may_sleep=True, is_asleep=True)
    streams = request(CHAT_PATH, streamed(CHAT_PATH))
    for name, wanted in (("whole", asked), ("stream", streams)):
        yield a_course(
            f"held, {name}, {way}", sent(wanted, Step(1.3011, way)), engines={}, directory=asleep
        )
    unreachable = PlayedEngine(connects="never")
    yield a_course(
        f"while an engine is connected, {way}",
        sent(asked, Step(0.5003, way)),
        engines={FIRST: unreachable},
    )
    for path in STREAMING:
        yield from _in_streams(path, way)
    yield a_course(
        f"with a large answer unread, {way}",
        sent(asked, Step(0.0, "stop reading"), Step(0.9013, way)),
        engines={FIRST: engine(whole(_LARGE))},
    )
    yield a_course(
        f"after a whole answer, {way}",
        sent(asked, Step(0.0013, "await", b"}}"), Step(0.0, way)),
        engines={FIRST: direct},
    )
    yield a_course(
        f"in a heartbeat, {way}",
        sent(streams, Step(0.0, "await", b": waiting"), Step(0.6013, way)),
        engines={FIRST: _SILENT},
        bounds=BodyBounds(heartbeat_seconds=0.5),
    )
    lost = (*streaming(begun(CHAT_PATH), end=False), Step(0.0091, "reset"))
    slow = (Step(0.7011, "send", b""),)
    yield a_course(
        f"while another engine counts its tokens, {way}",
        sent(streams, Step(0.1507, "await", b" two"), Step(0.0, way)),
        engines={FIRST: engine(lost), SECOND: engine((), tokenizes=slow)},
    )
    yield a_course(
        f"while another engine goes on, {way}",
        sent(streams, Step(0.1507, "await", b" two"), Step(0.0, way)),
        engines={FIRST: engine(lost), SECOND: _SILENT},
    )


def _in_streams(path: str, way: Leaving) -> Iterator[Course]:
    wanted = request(path, streamed(path))
    _, words, after = stream_of(path)
    slow = engine(whole_stream(path, gap=0.1031))
    yield a_course(
        f"before the first token, {path}, {way}",
        sent(wanted, Step(0.0713, way)),
        engines={FIRST: slow},
    )
    yield a_course(
        f"in the stream, {path}, {way}",
        sent(wanted, Step(0.0317, "await", words[1]), Step(0.0, way)),
        engines={FIRST: slow},
    )
    lingering = (*streaming(begun(path, 4) + after, end=False), Step(0.3011, "send", b"0\r\n\r\n"))
    yield a_course(
        f"after the last event, {path}, {way}",
        sent(wanted, Step(0.0017, "await", after[-1]), Step(0.0, way)),
        engines={FIRST: engine(lingering)},
    )
    if path in (CHAT_PATH, COMPLETION_PATH):
        yield a_course(
            f"with a stream unread, {path}, {way}",
            sent(
                wanted, Step(0.0217, "await", words[0]), Step(0.0, "stop reading"), Step(2.1, way)
            ),
            engines={FIRST: engine(_large_stream(path))},
        )


def stations() -> Iterator[Course]:
    """Return the courses of clients that go away, or that read slowly and stay."""
    for way in _WAYS:
        for course in _stations(way):
            yield replace(course, name=f"gone {course.name}")
    streams = request(CHAT_PATH, streamed(CHAT_PATH))
    reads = [step for _ in range(30) for step in (Step(0.1033, "read", size=200_000),)]
    yield a_course(
        "a client that reads a stream slowly",
        sent(streams, Step(0.0, "stop reading"), *reads, Step(0.1, "read on")),
        engines={FIRST: engine(_large_stream(CHAT_PATH))},
    )
    yield a_course(
        "a client that reads a large answer slowly",
        sent(request(CHAT_PATH, _CHAT), Step(0.0, "stop reading"), *reads, Step(0.1, "read on")),
        engines={FIRST: engine(whole(_LARGE))},
    )
    yield a_course(
        "a client that reads nothing more",
        sent(streams, Step(0.0, "stop reading")),
        engines={FIRST: engine(_large_stream(CHAT_PATH))},
    )
