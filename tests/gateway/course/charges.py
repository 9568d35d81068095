"""Requests whose sender has a limit of charges: how they end, and what they are charged."""

import json
from collections.abc import Iterator
from typing import Any

from tests.gateway.charging import INPUT, OUTPUT, paying, prices
from tests.gateway.course.building import (
    CHAT_PATH,
    FIRST,
    SECOND,
    Json,
    a_course,
    answering,
    begun,
    directory,
    engine,
    request,
    sent,
    streamed,
    streaming,
    whole,
)
from tests.gateway.course.paths import BODIES, STREAMING, answer_of, rest_of, stream_of
from tests.gateway.course.play import Course, PlayedEngine, Step
from tests.gateway.harness import an_api_key

MUCH = 10**12
_CHAT = BODIES[CHAT_PATH]
# Beyond the bytes of a body: those of a chat template.
_TEMPLATE = 1024


def bound(body: Json) -> int:
    """Return the nano-units of the prompt of a body, which has a token a byte at most."""
    return (len(json.dumps(body)) + _TEMPLATE) * INPUT


def _paying(*addresses: str, limit: int = MUCH, **changes: Any) -> Any:
    return directory(*addresses, max_model_len=8192, **{**paying(limit), **changes})


def _course(
    name: str, body: Json, played: PlayedEngine, path: str = CHAT_PATH, **more: Any
) -> Course:
    known = more.pop("directory", None) or _paying(FIRST, **more)
    asked = sent(request(path, body))
    return a_course(f"money: {name}", asked, engines={FIRST: played}, directory=known)


def _within() -> Iterator[Course]:
    for path in STREAMING:
        usual = {
            True: engine(answering(path, stream=True)),
            False: engine(answering(path, stream=False)),
        }
        yield _course(f"within, {path} whole", BODIES[path], usual[False], path)
        yield _course(f"within, {path} stream", streamed(path), usual[True], path)
    asked = streamed(CHAT_PATH, stream_options={"include_usage": True})
    yield _course("within, with usage", asked, engine(answering(CHAT_PATH, stream=True)))
    embeds = engine(answering("/v1/embeddings", stream=False))
    yield _course("within, embeddings", BODIES["/v1/embeddings"], embeds, "/v1/embeddings")
    tokens = engine(answering("/tokenize", stream=False))
    yield _course("tokens are free", BODIES["/tokenize"], tokens, "/tokenize")
    free = {**paying(), "prices": prices()}
    yield _course(
        "a price without a limit",
        _CHAT,
        engine(answering(CHAT_PATH, stream=False)),
        directory=directory(FIRST, **free),
    )


def _too_little() -> Iterator[Course]:
    usual = engine(answering(CHAT_PATH, stream=False))
    yield _course("nothing is left", _CHAT, usual, limit=1)
    asked = {**_CHAT, "max_tokens": 3000}
    yield _course("a reduced maximum", asked, usual, limit=bound(asked) + 2000 * OUTPUT)
    yield _course("below a usual answer", asked, usual, limit=bound(asked) + 900 * OUTPUT)
    yield _course("a stream below one", streamed(CHAT_PATH, max_tokens=3000), usual, limit=10**7)
    missing = {**paying(MUCH), "prices": prices(models=("other",))}
    yield _course("a price is missing", _CHAT, usual, directory=directory(FIRST, **missing))
    away = _paying(FIRST)
    yield a_course(
        "money: the store is away",
        sent(request(CHAT_PATH, _CHAT)),
        engines={FIRST: usual},
        directory=away,
        lends="no",
    )
    for path in ("/v1/budget",):
        asked_left = request(path, b"", method="GET")
        yield a_course(
            "money: what is left",
            sent(request(CHAT_PATH, _CHAT), Step(0.4013, "send", asked_left)),
            engines={FIRST: usual},
            directory=away,
        )


def _long_streams() -> Iterator[Course]:
    """Streams of more tokens than are reserved at first."""
    for path in STREAMING:
        before, words, after = stream_of(path)
        events = [*before, words[0], *[b"".join([words[1]] * 100)] * 15, *after]
        body = streamed(path)
        for name in ("max_tokens", "max_output_tokens"):
            if name in body:
                body[name] = 3000
        long = engine(streaming(events, gap=0.0103))
        yield _course(f"more is reserved, {path}", body, long, path)
        left = bound(body) + 1200 * OUTPUT
        yield _course(f"cut, {path}", body, long, path, limit=left)
    asked = streamed(CHAT_PATH, max_tokens=3000, stream_options={"include_usage": True})
    before, words, after = stream_of(CHAT_PATH)
    events = [*before, words[0], *[b"".join([words[1]] * 100)] * 15, *after]
    left = bound(asked) + 1200 * OUTPUT
    long = engine(streaming(events, gap=0.0103))
    yield _course("cut, with usage", asked, long, limit=left)


def _waits() -> Iterator[Course]:
    """Two requests against money for one: the second waits for what the first leaves."""
    usual = whole(answer_of(CHAT_PATH), seconds=2.0127)
    body = {**_CHAT, "max_tokens": 1500}
    first = sent(request(CHAT_PATH, body, x_request_id="first"), seconds=0.0011)
    yield a_course(
        "money: it waits and is admitted",
        first,
        sent(request(CHAT_PATH, body)),
        engines={FIRST: engine(usual)},
        directory=_paying(FIRST, limit=bound(body) + 2000 * OUTPUT),
    )
    yield a_course(
        "money: it waits in vain",
        first,
        sent(request(CHAT_PATH, body)),
        engines={FIRST: engine(whole(answer_of(CHAT_PATH), seconds=40.0127))},
        directory=_paying(FIRST, limit=bound(body) + 2000 * OUTPUT),
    )
    yield a_course(
        "money: its client goes while it waits",
        first,
        sent(request(CHAT_PATH, body), Step(0.5017, "close")),
        engines={FIRST: engine(usual)},
        directory=_paying(FIRST, limit=bound(body) + 2000 * OUTPUT),
    )


def _bad_ends() -> Iterator[Course]:
    """Clients that leave, and engines that are lost."""
    for stream in (False, True):
        kind = "stream" if stream else "whole"
        body = streamed(CHAT_PATH) if stream else _CHAT
        slow = streaming(begun(CHAT_PATH), end=False) if stream else whole({}, seconds=30.0)
        yield a_course(
            f"money: its client goes, {kind}",
            sent(request(CHAT_PATH, body), Step(0.7017, "close")),
            engines={FIRST: engine(slow)},
            directory=_paying(FIRST),
        )
        silent = engine((Step(0.0091, "reset"),))
        yield _course(f"its engine is lost before a token, {kind}", body, silent)
        refuses = engine(whole({"error": {"message": "no", "code": 400}}, 400))
        yield _course(f"its engine refuses it, {kind}", body, refuses)
    lost = (*streaming(begun(CHAT_PATH), end=False), Step(0.0091, "reset"))
    yield _course("its engine is lost after a token", streamed(CHAT_PATH), engine(lost))
    asked = sent(request(CHAT_PATH, streamed(CHAT_PATH)))
    going_on = engine(streaming(rest_of(CHAT_PATH)))
    yield a_course(
        "money: it goes on elsewhere",
        asked,
        engines={FIRST: engine(lost), SECOND: going_on},
        directory=_paying(FIRST, SECOND),
    )
    unsaid = {name: value for name, value in answer_of(CHAT_PATH).items() if name != "usage"}
    yield _course("no usage", _CHAT, engine(whole(unsaid)))
    absurd = {**answer_of(CHAT_PATH), "usage": {"prompt_tokens": 10**9, "completion_tokens": 10**9}}
    yield _course("an absurd usage", _CHAT, engine(whole(absurd)))
    foreign = paying(MUCH, name="team-b")
    keys = (an_api_key(tenant="team-b"),)
    known = directory(FIRST, max_model_len=8192, public=True, keys=keys, **foreign)
    counted = {"prompt_tokens": 7, "completion_tokens": 5000}
    claims = {**answer_of(CHAT_PATH), "usage": counted}
    asked_much = {**_CHAT, "max_tokens": 6000}
    yield _course(
        "another tenant's engine claims more", asked_much, engine(whole(claims)), directory=known
    )


def charges() -> Iterator[Course]:
    """Return the courses of requests that are charged."""
    yield from _within()
    yield from _too_little()
    yield from _long_streams()
    yield from _waits()
    yield from _bad_ends()
