"""What is refused: a course for each reason, and requests that the gateway answers itself."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from tessera.api.model_route import ModelRouteSpec
from tessera.api.rate_limits import PeriodLimits, RateLimitsSpec
from tessera.api.ref import Ref
from tessera.domain.gateway.directory import TenantLimits
from tessera.domain.gateway.reasons import RequestReason
from tessera.domain.limits.fair_queue import QueueBounds
from tessera.gateway.receive.receiver import BodyBounds
from tests.gateway.course.building import (
    BUSY,
    CHAT_PATH,
    FILLERS,
    FIRST,
    SECOND,
    a_course,
    begun,
    chunk,
    directory,
    engine,
    replicas,
    request,
    sent,
    streamed,
    streaming,
    whole,
    whole_stream,
)
from tests.gateway.course.paths import BODIES, answer_of
from tests.gateway.course.play import Course, Happening, PlayedEngine, Step
from tests.gateway.harness import TENANT, a_delta, a_directory, a_model, an_api_key
from tests.gateway_builders import STEP

_CHAT = BODIES[CHAT_PATH]
_ANSWER = whole(answer_of(CHAT_PATH))
_ENGINES: Mapping[str, PlayedEngine] = {FIRST: engine(_ANSWER)}
_LONG = "a tile " * 3000
_ASKED = request(CHAT_PATH, _CHAT)


def _limited(**limits: Any) -> Any:
    return directory(FIRST, keys=(an_api_key(limits=RateLimitsSpec(**limits)),), max_model_len=4096)


def _sent_wrongly() -> Iterator[tuple[str, bytes]]:
    yield "an unknown path", request("/v1/nothing", _CHAT)
    yield "another method", request(CHAT_PATH, b"", method="GET")
    yield "a POST of models", request("/v1/models", b"{}")
    yield "no JSON", request(CHAT_PATH, b"{")
    yield "no model", request(CHAT_PATH, {"messages": []})
    yield "no query", request("/rerank", {"model": "chat", "documents": ["a"]})
    yield "too many tokens asked", request(CHAT_PATH, {**_CHAT, "max_tokens": 10**12})
    yield "wrong tags", request(CHAT_PATH, _CHAT, x_tessera_tags="a b")
    yield "a wrong sheddable", request(CHAT_PATH, _CHAT, x_tessera_sheddable="yes")
    yield "an encoding", request(CHAT_PATH, _CHAT, content_encoding="gzip")
    yield "no key", request(CHAT_PATH, _CHAT, key=None)
    yield "an unknown key", request(CHAT_PATH, _CHAT, key="tsk-other")
    yield (
        "a key of messages",
        request("/v1/messages", BODIES["/v1/messages"], key=None, x_api_key="tsk-team-a"),
    )
    yield "another model", request(CHAT_PATH, {**_CHAT, "model": "chit"})
    yield (
        "foreign media",
        request(
            CHAT_PATH,
            {
                **_CHAT,
                "messages": [
                    {
                        "role": "user",
                        "content": [{"type": "image_url", "image_url": {"url": "http://a.b/c"}}],
                    }
                ],
            },
        ),
    )
    for said in ("InvalidToken", "UnknownTenant", "TokensNotVerified"):
        yield f"a token of {said}", request(CHAT_PATH, _CHAT, key=f"{said}.b.c")
    yield "too many headers", request(CHAT_PATH, _CHAT, x_padding="x" * 70_000)
    yield "no HTTP", b"\x16\x03\x01\x02nonsense\r\n\r\n"
    yield "no host", b"POST /v1/chat/completions HTTP/1.1\r\ncontent-length: 0\r\n\r\n"
    yield "models", request("/v1/models", b"", method="GET")
    yield "a model", request("/v1/models/chat", b"", method="GET")
    yield "another of the models", request("/v1/models/chit", b"", method="GET")
    yield "health", request("/healthz", b"", method="GET", key=None)
    yield "readiness", request("/readyz", b"", method="HEAD", key=None)
    yield (
        "tags and a trace",
        request(
            CHAT_PATH,
            _CHAT,
            x_tessera_tags="a=b,c=d",
            traceparent=f"00-{'a' * 31}1-{'b' * 16}-01",
            tracestate="x=y",
        ),
    )
    yield "a query", request(f"{CHAT_PATH}?a=b", _CHAT)
    yield "no name of its own", request(CHAT_PATH, _CHAT, x_request_id="")
    yield "a last request", request(CHAT_PATH, _CHAT, connection="close")
    yield "a large body", request(CHAT_PATH, {**_CHAT, "user": "x" * 300_000})


def _named_models() -> Iterator[Course]:
    embeds = directory(FIRST, paths=("/v1/embeddings",), generates=False)
    yield a_course("a path that is not served", sent(_ASKED), engines=_ENGINES, directory=embeds)
    shared = directory(FIRST, tenants={}, **{"public": True})
    known = request(CHAT_PATH, {**_CHAT, "temperature": 0})
    yield a_course("a shared model", sent(known), engines=_ENGINES, directory=shared)
    unlisted = request(CHAT_PATH, {**_CHAT, "vllm_xargs": {}})
    yield a_course("an unlisted field", sent(unlisted), engines=_ENGINES, directory=shared)
    expired = an_api_key(expires=datetime(2026, 1, 1, tzinfo=UTC))
    yield a_course(
        "an expired key",
        sent(_ASKED),
        engines=_ENGINES,
        directory=directory(FIRST, keys=(expired,)),
    )
    bulk = directory(FIRST, keys=(an_api_key(sheddable=True),))
    yield a_course("a sheddable key", sent(_ASKED), engines=_ENGINES, directory=bulk)


def _routes() -> Iterator[Course]:
    first, second = ("fast", FIRST), ("able", SECOND)
    models = [
        a_model(
            *replicas(address),
            service=Ref(TENANT, name),
            uid=f"uid-{name}",
            names=(name,),
        )
        for name, address in (first, second)
    ]
    asked = request(CHAT_PATH, {**_CHAT, "model": "assistant"})
    failing = whole({"error": {"message": "no memory", "code": 500}}, 500)
    for name, answers, timeout in (
        ("a route", (_ANSWER, _ANSWER), {}),
        ("a route whose first target fails", (failing, _ANSWER), {}),
        ("a route whose targets fail", (failing, failing), {}),
        ("a route whose targets are slow", (BUSY, BUSY), {"firstToken": "200ms"}),
        ("a route that takes too long", (BUSY, BUSY), {"firstToken": "200ms"}),
    ):
        targets = [
            {"service": "fast", "when": {"maxWords": 100}, "timeouts": timeout},
            {"service": "able", "timeouts": timeout},
        ]
        is_alone = name == "a route that takes too long"
        spec = (
            {"targets": targets, "fallback": ["RateLimited"]} if is_alone else {"targets": targets}
        )
        route = a_model(
            service=Ref(TENANT, "assistant"),
            uid="uid-assistant",
            names=("assistant",),
            route=ModelRouteSpec.model_validate(spec),
        )
        yield a_course(
            name,
            sent(asked),
            engines=dict(zip((FIRST, SECOND), map(engine, answers), strict=True)),
            directory=a_directory(*models, route),
        )


def _bodies() -> Iterator[Course]:
    small = BodyBounds(max_bytes=60)
    yield a_course("a body too large", sent(_ASKED), engines=_ENGINES, bounds=small)
    chunked = request(CHAT_PATH, b"", content_length="", transfer_encoding="chunked")
    pieces = [Step(0.0111, "send", chunk(b'{"model":"chat",  ')) for _ in range(6)]
    yield a_course(
        "chunks of a body too large", sent(chunked, *pieces), engines=_ENGINES, bounds=small
    )
    slow = BodyBounds(seconds=1.0)
    yield a_course("a slow body", sent(_ASKED[:-20]), engines=_ENGINES, bounds=slow)
    halves = sent(_ASKED[:-20], Step(0.5011, "send", _ASKED[-20:]))
    yield a_course("a body in two parts", halves, engines=_ENGINES, bounds=slow)
    slowly = sent(_ASKED[:40], Step(0.1007, "await", b"408"))
    yield a_course("slow headers", slowly, engines=_ENGINES)
    yield a_course(
        "a body that asks before it comes",
        (
            Step(
                0.0113, "send", request(CHAT_PATH, _CHAT, expect="100-continue")[: -len(b"x" * 20)]
            ),
            Step(0.1007, "send", _ASKED[-20:]),
        ),
        engines=_ENGINES,
    )
    yield a_course("too much memory of bodies", sent(_ASKED), engines=_ENGINES, held_bytes=100)
    large = engine(whole({**answer_of(CHAT_PATH), "padding": "word " * 4000}))
    yield a_course(
        "too much memory of an answer", sent(_ASKED), engines={FIRST: large}, held_bytes=20_000
    )
    yield a_course(
        "too much memory of a stream",
        sent(request(CHAT_PATH, streamed(CHAT_PATH)), Step(0.0, "stop reading")),
        engines={FIRST: engine(streaming([*begun(CHAT_PATH), *[a_delta(" x" * 20_000)] * 20]))},
        held_bytes=400_000,
    )
    other = sent(request(CHAT_PATH, {**_CHAT, "user": "x" * 3000}, x_request_id="large"))
    yield a_course(
        "the memory of another request",
        sent(_ASKED, seconds=0.0507),
        other,
        engines={FIRST: engine(_ANSWER), SECOND: engine(_ANSWER)},
        held_bytes=6200,
    )
    yield a_course(
        "two requests of one connection",
        sent(_ASKED, Step(0.3011, "send", _ASKED)),
        engines=_ENGINES,
    )
    yield a_course("a pipeline of requests", sent(_ASKED * 3), engines=_ENGINES)


def _answers_too_large() -> Iterator[Course]:
    event = (
        *streaming(begun(CHAT_PATH), end=False),
        *[Step(0.001, "send", chunk(b"x" * 2**18))] * 17,
    )
    yield a_course(
        "an event too large",
        sent(request(CHAT_PATH, streamed(CHAT_PATH))),
        engines={FIRST: engine(event)},
    )
    data = whole(b"x" * (33 * 2**20), seconds=0.01)
    yield a_course("an answer too large", sent(_ASKED), engines={FIRST: engine(data)})


def _limits() -> Iterator[Course]:
    twice = sent(_ASKED, Step(0.3013, "send", _ASKED))
    rates = {
        "requests": PeriodLimits(per_minute=1),
        "input_tokens": PeriodLimits(per_minute=32),
        "output_tokens": PeriodLimits(per_minute=21),
        "total_tokens": PeriodLimits(per_minute=52),
    }
    for name, rate in rates.items():
        known = _limited(**{name: rate})
        yield a_course(f"a limit of {name}", twice, engines=_ENGINES, directory=known)
    single = _limited(concurrent_requests=1)
    yield a_course(
        "a limit of concurrent requests",
        *FILLERS,
        sent(_ASKED),
        engines={FIRST: engine(BUSY)},
        directory=single,
    )
    waiting = directory(
        FIRST,
        replica={"max_num_seqs": 1},
        ttft_seconds=0.5,
        keys=(
            an_api_key(
                limits=RateLimitsSpec(
                    total_tokens=PeriodLimits(per_minute=900), concurrent_requests=9
                )
            ),
        ),
        max_model_len=4096,
    )
    shed = request(CHAT_PATH, _CHAT, x_tessera_sheddable="true")
    for name, client in (
        ("and it goes", sent(_ASKED, Step(0.1507, "close"))),
        ("and it is shed", sent(shed)),
        ("until it is served", sent(_ASKED)),
    ):
        yield a_course(
            f"within limits it waits {name}",
            *FILLERS,
            client,
            engines={FIRST: engine(whole(answer_of(CHAT_PATH), seconds=1.7))},
            directory=waiting,
        )
    for name, limits, body in (
        ("context", {"max_context_tokens": 16}, _CHAT),
        ("size", {"input_tokens": PeriodLimits(per_minute=3)}, _CHAT),
        ("choices", {"max_output_tokens": 2}, {**_CHAT, "n": 3}),
        ("output", {"max_output_tokens": 5}, _CHAT),
    ):
        asked = sent(request(CHAT_PATH, body))
        yield a_course(f"a limit of {name}", asked, engines=_ENGINES, directory=_limited(**limits))
    known = _limited(requests=PeriodLimits(per_minute=5))
    yield a_course("limits that nobody lends", twice, engines=_ENGINES, directory=known, lends="no")
    yield a_course(
        "a lender with a defect", twice, engines=_ENGINES, directory=known, lends="broken"
    )
    tenants = {
        TENANT: TenantLimits(
            name=TENANT,
            namespaces=(TENANT,),
            limits=RateLimitsSpec(
                requests=PeriodLimits(per_second=3), total_tokens=PeriodLimits(per_day=5000)
            ),
        )
    }
    of_tenant = directory(FIRST, tenants=tenants)
    for name, answer in (("", _ANSWER), (" and a failure", (Step(0.01, "reset"),))):
        yield a_course(
            f"limits of a tenant{name}", twice, engines={FIRST: engine(answer)}, directory=of_tenant
        )


def _queues() -> Iterator[Course]:
    one_place = directory(FIRST, replica={"max_num_seqs": 1}, ttft_seconds=5.0)
    slow = {FIRST: engine(whole(answer_of(CHAT_PATH), seconds=90.0))}
    waiting = sent(request(CHAT_PATH, _CHAT, x_request_id="waiting"), seconds=0.0061)
    for name, bounds in (
        ("a full queue", QueueBounds(requests=1)),
        ("a full queue of a tenant", QueueBounds(requests_per_tenant=1)),
    ):
        yield a_course(
            name,
            *FILLERS,
            waiting,
            sent(_ASKED),
            engines=slow,
            directory=one_place,
            queue_bounds=bounds,
        )
    long = {"idle_seconds": 200.0}
    yield a_course(
        "too long a wait", *FILLERS, sent(_ASKED), engines=slow, directory=one_place, **long
    )
    yield a_course(
        "too long a wait of a stream",
        *FILLERS,
        sent(request(CHAT_PATH, streamed(CHAT_PATH))),
        engines=slow,
        directory=one_place,
        **long,
    )
    shed = request(CHAT_PATH, _CHAT, x_tessera_sheddable="true")
    yield a_course("shed", *FILLERS, sent(shed), engines=slow, directory=one_place, **long)
    stepping = directory(FIRST, replica={"max_num_seqs": 1, "step_time": STEP}, ttft_seconds=0.001)
    lengthy = {**_CHAT, "messages": [{"role": "user", "content": _LONG}]}
    asked = request(CHAT_PATH, lengthy, x_tessera_sheddable="true")
    yield a_course("too long to shed", sent(asked), engines=_ENGINES, directory=stepping)
    # An unknown speed counts 1 ms for each token.
    minute = {**_CHAT, "messages": [{"role": "user", "content": _LONG * 9}]}
    heavy = sent(request(CHAT_PATH, minute, x_request_id="heavy"), seconds=0.0061)
    yield a_course(
        "a deadline that cannot be kept",
        *FILLERS,
        heavy,
        sent(_ASKED),
        engines=slow,
        directory=one_place,
    )
    yield a_course("no replica", sent(_ASKED), engines={}, directory=directory())
    stopped = directory(stopped=True)
    yield a_course("a service that is stopped", sent(_ASKED), engines={}, directory=stopped)
    asleep = directory(may_sleep=True, is_asleep=True)
    foreign = directory(
        may_sleep=True, is_asleep=True, tenant="team-b", public=True, service_class="Standard"
    )
    yield a_course("a service of others that sleeps", sent(_ASKED), engines={}, directory=foreign)
    yield a_course("a service that never wakes", sent(_ASKED), engines={}, directory=asleep)
    unfunded = directory(may_sleep=True, is_asleep=True, unfunded_by="TenantBudget/team-a")
    yield a_course("a service without budget", sent(_ASKED), engines={}, directory=unfunded)
    awake = directory(FIRST, may_sleep=True)
    for name, asked, answer in (
        ("whole", _ASKED, _ANSWER),
        ("stream", request(CHAT_PATH, streamed(CHAT_PATH)), whole_stream(CHAT_PATH)),
    ):
        yield a_course(
            f"a service that wakes, {name}",
            sent(asked),
            engines={FIRST: engine(answer)},
            directory=asleep,
            happenings=(Happening(seconds=12.3017, directory=awake),),
        )
    yield a_course(
        "a service that is removed",
        sent(_ASKED),
        engines={},
        directory=asleep,
        happenings=(Happening(seconds=2.3017, directory=replace(asleep, models=())),),
    )


def _changes() -> Iterator[Course]:
    """What happens to others while a request is on its way."""
    known = directory(FIRST, SECOND)
    revoked = replace(known, keys={})
    halves = sent(_ASKED[:-20], Step(0.5011, "send", _ASKED[-20:]))
    yield a_course(
        "a key revoked while the body comes",
        halves,
        engines={FIRST: engine(_ANSWER), SECOND: engine(_ANSWER)},
        directory=known,
        happenings=(Happening(seconds=0.2017, directory=revoked),),
    )
    one_place = directory(FIRST, replica={"max_num_seqs": 1}, ttft_seconds=5.0)
    (model,) = one_place.models
    renamed = replace(model, uid="uid-new", names=("chat",))
    for name, changed in (
        ("a key revoked while it waits", replace(one_place, keys={})),
        (
            "a name given away while it waits",
            replace(one_place, models=(replace(model, names=("code",)), renamed)),
        ),
        ("a model gone while it waits", replace(one_place, models=())),
        (
            "a name lost while it waits",
            replace(one_place, models=(replace(model, names=("code",)),)),
        ),
    ):
        yield a_course(
            name,
            *FILLERS,
            sent(_ASKED),
            engines={FIRST: engine(BUSY, BUSY, _ANSWER)},
            directory=one_place,
            happenings=(Happening(seconds=0.2017, directory=changed),),
        )
    lost = (*streaming(begun(CHAT_PATH), end=False), Step(0.3011, "reset"))
    streams = request(CHAT_PATH, streamed(CHAT_PATH))
    yield a_course(
        "a key revoked before a stream goes on",
        sent(streams),
        engines={FIRST: engine(lost), SECOND: engine(whole_stream(CHAT_PATH))},
        directory=known,
        happenings=(Happening(seconds=0.2017, directory=revoked),),
    )
    yield a_course(
        "a key revoked before another engine is tried",
        sent(_ASKED),
        engines={FIRST: engine((Step(0.4011, "reset"),)), SECOND: engine(_ANSWER)},
        directory=known,
        happenings=(Happening(seconds=0.2017, directory=revoked),),
    )
    without_first = replace(
        known,
        models=tuple(
            replace(each, replicas=tuple(r for r in each.replicas if r.pod.name != "chat-1"))
            for each in known.models
        ),
    )
    silent = streaming(begun(CHAT_PATH), end=False)
    yield a_course(
        "a replica removed under a stream",
        sent(streams),
        engines={FIRST: engine(silent), SECOND: engine(whole_stream(CHAT_PATH))},
        directory=known,
        happenings=(Happening(seconds=0.4017, directory=without_first),),
    )
    yield a_course(
        "a replica removed under an answer",
        sent(_ASKED),
        engines={FIRST: engine(whole(answer_of(CHAT_PATH), seconds=0.9)), SECOND: engine(_ANSWER)},
        directory=known,
        happenings=(Happening(seconds=0.4017, directory=without_first),),
    )


def _drains() -> Iterator[Course]:
    streams = request(CHAT_PATH, streamed(CHAT_PATH))
    cancelled = Happening(seconds=0.2017, drains=True, cancels=True)
    silent = streaming(begun(CHAT_PATH), end=False)
    for name, asked, answer in (
        ("the body comes", _ASKED[:-20], ()),
        ("an answer is made", _ASKED, ()),
        ("a stream waits", streams, ()),
        ("a stream runs", streams, silent),
    ):
        yield a_course(
            f"the gateway ends while {name}",
            sent(asked),
            engines={FIRST: engine(answer)},
            happenings=(cancelled,),
        )
    yield a_course(
        "the gateway ends while it waits",
        *FILLERS,
        sent(_ASKED),
        engines={FIRST: engine(())},
        directory=directory(FIRST, replica={"max_num_seqs": 1}),
        happenings=(cancelled,),
    )
    drains = Happening(seconds=0.005, drains=True)
    yield a_course("the gateway drains", sent(_ASKED), engines=_ENGINES, happenings=(drains,))
    ready = request("/readyz", b"", method="GET", key=None)
    yield a_course("readiness while it drains", sent(ready), engines={}, happenings=(drains,))
    full = Happening(seconds=0.005, recorder_refuses=RequestReason.USAGE_NOT_RECORDED)
    yield a_course("no room for records", sent(_ASKED), engines=_ENGINES, happenings=(full,))


def reasons() -> Iterator[Course]:
    """Return a course for each reason, beside those of stations and failures."""
    for name, asked in _sent_wrongly():
        yield a_course(f"sent with {name}", sent(asked), engines=_ENGINES)
    slow = request(CHAT_PATH, _CHAT, key="team-a.b.c")
    for seconds in (0.02, 7.0):
        yield a_course(
            f"a token verified in {seconds} s", sent(slow), engines=_ENGINES, verify_seconds=seconds
        )
    yield from _named_models()
    yield from _routes()
    yield from _bodies()
    yield from _answers_too_large()
    yield from _limits()
    yield from _queues()
    yield from _changes()
    yield from _drains()
