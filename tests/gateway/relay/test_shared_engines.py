"""What passes to an engine that several tenants may use, and what does not."""

import json
from contextlib import AsyncExitStack
from typing import Any

import pytest
from openai.types import completion_create_params, embedding_create_params
from openai.types.chat import completion_create_params as chat_create_params
from openai.types.responses import response_create_params

from tessera.domain.gateway.directory import OfferedModel
from tessera.gateway.bodies.parsing import parse_with_unlisted
from tessera.gateway.paths import PATHS
from tests.conformance import cases
from tests.gateway.harness import (
    CHAT,
    COMPLETION,
    MODEL,
    Answer,
    EngineCall,
    RunningGateway,
    ScriptedEngine,
    a_directory,
    a_gateway,
    a_model,
    a_replica,
    an_api_key,
)
from tests.lab.sim.running import running

pytestmark = pytest.mark.anyio
OTHER_KEY = "tsk-team-b"
KEYS = (an_api_key(), an_api_key(OTHER_KEY, tenant="team-b"))
OTHER = {"authorization": f"Bearer {OTHER_KEY}"}
# Fields that vLLM takes, by path, and that concern more than one request.
UNLISTED = {
    "/v1/chat/completions": (
        "kv_transfer_params",
        "ec_transfer_params",
        "vllm_xargs",
        "chat_template",
        "mm_processor_kwargs",
        "media_io_kwargs",
        "request_id",
        "session_id",
        "watermarking",
        "guided_json",
        "x_unknown",
    ),
    "/v1/completions": ("kv_transfer_params", "vllm_xargs", "prompt_embeds", "request_id"),
    "/v1/responses": ("kv_transfer_params", "previous_input_messages", "enable_response_messages"),
    "/v1/messages": ("kv_transfer_params", "ec_transfer_params", "vllm_xargs", "mcp_servers"),
    "/v1/messages/count_tokens": ("kv_transfer_params",),
    "/v1/embeddings": ("mm_processor_kwargs", "chat_template", "request_id"),
    "/pooling": ("data", "mm_processor_kwargs"),
    "/tokenize": ("chat_template", "mm_processor_kwargs"),
    "/detokenize": ("messages",),
    "/rerank": ("mm_processor_kwargs",),
    "/v1/score": ("mm_processor_kwargs", "messages"),
}
# What a path requires beside the model.
NEEDED = {"query": "a", "documents": ["b"], "text_1": "a", "text_2": "b"}
OPENAI = {
    "/v1/chat/completions": chat_create_params.CompletionCreateParamsBase,
    "/v1/completions": completion_create_params.CompletionCreateParamsBase,
    "/v1/responses": response_create_params.ResponseCreateParamsBase,
    "/v1/embeddings": embedding_create_params.EmbeddingCreateParams,
}


async def answered(call: EngineCall) -> None:
    await call.whole(COMPLETION)


def body_of(path: str, **fields: Any) -> dict[str, Any]:
    needed = NEEDED if "rerank" in path or "score" in path else {}
    names = ("query", "documents") if "rerank" in path else ("text_1", "text_2")
    return {"model": MODEL, **{name: needed[name] for name in names if needed}, **fields}


def a_shared_model(engine: ScriptedEngine, **changes: Any) -> OfferedModel:
    return a_model(a_replica(engine.address), **{"public": True, **changes})


@pytest.mark.parametrize("sharing", [{"public": True}, {"tenants": frozenset({"team-b"})}])
async def test_a_field_that_is_not_listed_reaches_no_shared_engine(sharing: Any) -> None:
    async with (
        ScriptedEngine(answered) as engine,
        a_gateway(
            a_directory(a_shared_model(engine, **{"public": False, **sharing}), keys=KEYS)
        ) as gateway,
    ):
        for path, names in UNLISTED.items():
            for name in names:
                for headers in ({}, OTHER):
                    answer = await gateway.post(body_of(path, **{name: {}}), path, **headers)
                    assert (answer.status, answer.error["param"]) == (400, name), path
                    assert "several tenants" in answer.error["message"]
        assert not engine.calls


DEAR = {"properties": {str(most): {"maxLength": most} for most in (200, 201)}}


async def test_a_schema_that_takes_long_to_compile_reaches_no_shared_engine() -> None:
    """It took the compiler of an engine 8 s for each of its bounds."""
    body = body_of("/v1/chat/completions", structured_outputs={"json": DEAR})
    async with ScriptedEngine(answered) as engine:
        async with a_gateway(a_directory(a_shared_model(engine), keys=KEYS)) as gateway:
            for headers in ({}, OTHER):
                answer = await gateway.post(body, **headers)
                assert (answer.status, answer.error["param"]) == (400, "structured_outputs")
                assert "/json/properties/201/maxLength" in answer.error["message"]
        assert not engine.calls
        own = a_shared_model(engine, public=False)
        async with a_gateway(a_directory(own, keys=KEYS)) as gateway:
            assert (await gateway.post(body)).status == 200


@pytest.mark.parametrize("field", ["input", "instructions"])
async def test_a_body_of_another_route_is_told_where_to_go(field: str) -> None:
    """As Cursor sends it."""
    async with (
        ScriptedEngine(answered) as engine,
        a_gateway(a_directory(a_shared_model(engine))) as gateway,
    ):
        answer = await gateway.post(body_of("/v1/chat/completions", **{field: "hi"}))
        assert (answer.status, answer.error["param"]) == (400, field)
        message = f"{field} is a field of /v1/responses. Send the request there."
        assert answer.error["message"] == message
        followed = await gateway.post(body_of("/v1/responses", input="hi"), "/v1/responses")
        assert followed.status == 200


TEMPLATED = (
    "/v1/chat/completions",
    "/v1/responses",
    "/v1/messages",
    "/v1/messages/count_tokens",
    "/v1/embeddings",
    "/pooling",
    "/tokenize",
    "/rerank",
    "/v1/score",
)


@pytest.mark.parametrize("path", TEMPLATED)
async def test_no_template_reaches_a_shared_engine_among_its_arguments(path: str) -> None:
    name, variables = "chat_template_kwargs", {"enable_thinking": False, "template": "a"}
    async with (
        ScriptedEngine(answered) as engine,
        a_gateway(a_directory(a_shared_model(engine))) as gateway,
    ):
        for argument in ("chat_template", "chat\\u005ftemplate", "tokenize"):
            body = json.dumps(body_of(path, **{name: {**variables, argument: "{{ x }}"}}))
            answer = await gateway.post(body.replace("\\\\", "\\").encode(), path)
            written = argument.replace("\\u005f", "_")
            assert (answer.status, answer.error["param"]) == (400, f"{name}.{written}")
        assert not engine.calls
        for passed in (variables, None, "chat_template", [{"chat_template": "a"}]):
            assert (await gateway.post(body_of(path, **{name: passed}), path)).status == 200
            assert engine.calls.pop().json[name] == passed


@pytest.mark.parametrize("own", [{}, {"tenants": frozenset({"team-a"})}])
async def test_an_engine_of_the_own_tenant_gets_all_fields_as_sent(own: Any) -> None:
    async with (
        ScriptedEngine(answered) as engine,
        a_gateway(a_directory(a_model(a_replica(engine.address), **own))) as gateway,
    ):
        for path, names in UNLISTED.items():
            sent = body_of(path, cache_salt="mine", **dict.fromkeys(names))
            answer = await gateway.post(sent, path)
            assert (path, answer.status) == (path, 200)
            assert engine.calls.pop().json == sent


async def test_requests_of_two_tenants_never_have_one_name_at_an_engine() -> None:
    async with (
        ScriptedEngine(answered) as engine,
        a_gateway(a_directory(a_shared_model(engine), keys=KEYS)) as gateway,
    ):
        for headers in ({}, {}, OTHER):
            answer = await gateway.post(CHAT, **{"x-request-id": "my-id", **headers})
            assert answer.headers["x-request-id"] == "my-id"
        names = {call.headers["x-request-id"] for call in engine.calls}
        assert len(names) == 3
        # Who has one of them finds the request in the log of the engine.
        assert all(name.startswith("my-id-") for name in names)
        assert {record.request_id for record in gateway.records} == {"my-id"}


async def test_who_may_not_use_a_model_learns_nothing_by_a_field_of_it() -> None:
    foreign = a_model(names=("secret",), tenant="team-b", tenants=frozenset({"team-c"}))
    async with a_gateway(a_directory(foreign)) as gateway:
        for name in ("secret", "unknown"):
            body = {**CHAT, "model": name, "vllm_xargs": {}}
            assert (await gateway.post(body)).status == 404


@pytest.mark.parametrize("path", OPENAI)
def test_all_parameters_of_openai_pass(path: str) -> None:
    refused = {"background", "previous_response_id"} if path == "/v1/responses" else set()
    for name in OPENAI[path].__annotations__.keys() - refused - {"model"}:
        body = json.dumps({"model": MODEL, name: None}).encode()
        item = PATHS[path]
        assert parse_with_unlisted(item.decoder, item.listed, body)[1] is None, name


def test_all_requests_that_the_real_engine_was_asked_pass() -> None:
    requests = [
        case
        for case in (*cases.PLAIN, *cases.PLAIN_MORE)
        if case.path in PATHS and isinstance(case.body, dict)
    ]
    assert len(requests) > 30
    for case in requests:
        item = PATHS[case.path]
        body = json.dumps({"model": MODEL, **dict.fromkeys(case.body)}).encode()
        if "model" not in case.body:
            assert parse_with_unlisted(item.decoder, item.listed, body)[1] is None, case.name


SALTED = (
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/responses",
    "/v1/messages",
    "/v1/embeddings",
    "/pooling",
    "/rerank",
    "/score",
)


async def salts(gateway: RunningGateway, engine: ScriptedEngine, **fields: Any) -> list[Any]:
    """Return the salts that an engine gets for each path."""
    for path in SALTED:
        answer = await gateway.post(body_of(path, **fields), path)
        assert answer.status == 200, answer.body
    calls, engine.calls = engine.calls, []
    return [call.json.get("cache_salt") for call in calls]


async def test_each_tenant_has_a_salt_of_its_own_that_no_client_chooses() -> None:
    async with ScriptedEngine(answered) as engine, AsyncExitStack() as stack:

        async def of(model: OfferedModel, key: str, **fields: Any) -> list[Any]:
            directory = a_directory(model, keys=(an_api_key(key, tenant=key), an_api_key()))
            gateway = await stack.enter_async_context(a_gateway(directory))
            gateway.client.headers["authorization"] = f"Bearer {key}"
            return await salts(gateway, engine, **fields)

        shared = a_shared_model(engine, tenant="team-a")
        (first,) = set(await of(shared, "team-a"))
        (second,) = set(await of(shared, "team-b"))
        assert len({None, first, second}) == 3
        assert 0 < len(first) <= 128
        # vLLM refuses a salt with any of these.
        assert not set(first) & set("@/\\\0")
        # Of every gateway, also after a restart, and whatever a client sends.
        assert set(await of(shared, "team-b")) == {second}
        for sent in (first, None, "", ["x"], {"a": 1}):
            assert set(await of(shared, "team-b", cache_salt=sent)) == {second}
        alone = a_model(a_replica(engine.address), tenant="team-b")
        assert set(await of(alone, "team-b")) == {None}
        lifted = a_shared_model(engine, shared_prefix_cache=True)
        assert set(await of(lifted, "team-b")) == {None}
        assert set(await of(lifted, "team-b", cache_salt="mine")) == {"mine"}


async def test_a_salt_stands_for_all_of_its_name_however_it_is_written() -> None:
    bodies = (
        b'{"model":"chat","cache_salt":"a","cache\\u005fsalt":"b","cache_salt":"c"}',
        b'{"model":"chat","cache_salt":"a","x":"%b"}' % (b"y" * 2**15),
    )
    async with (
        ScriptedEngine(answered) as engine,
        a_gateway(a_directory(a_shared_model(engine))) as gateway,
    ):
        for body in bodies:
            sent = body.replace(b'"x"', b'"user"')
            assert (await gateway.post(sent)).status == 200
            body_of_engine = engine.calls.pop().body
            assert body_of_engine.count(b"salt") == 1
            assert len(json.loads(body_of_engine)["cache_salt"]) == 32


@pytest.mark.parametrize("path", ["/v1/embeddings", "/pooling", "/v1/rerank", "/v1/score"])
async def test_no_request_goes_before_those_of_others_by_its_priority(path: str) -> None:
    async with (
        ScriptedEngine(answered) as engine,
        a_gateway(a_directory(a_shared_model(engine))) as gateway,
    ):
        for sent, expected in ((-(2**40), 0), (5, 5)):
            assert (await gateway.post(body_of(path, priority=sent), path)).status == 200
            assert engine.calls.pop().json["priority"] == expected


PROMPT = "The salary of Ann is 4,000 a month. " * 110


def cached_tokens(answer: Answer) -> int:
    assert answer.status == 200, answer.body
    return int(json.loads(answer.body)["usage"]["prompt_tokens_details"]["cached_tokens"])


@pytest.mark.parametrize("shared_prefix_cache", [False, True])
async def test_what_another_tenant_sent_is_in_no_cache(shared_prefix_cache: bool) -> None:
    async with running("--enable-prompt-tokens-details", "--served-model-name=chat") as engine:
        model = a_model(
            a_replica(engine.url.removeprefix("http://")),
            public=True,
            shared_prefix_cache=shared_prefix_cache,
        )
        async with a_gateway(a_directory(model, keys=KEYS)) as gateway:
            body = {**CHAT, "messages": [{"role": "user", "content": PROMPT}], "max_tokens": 1}
            assert cached_tokens(await gateway.post(body, **OTHER)) == 0
            guessed = cached_tokens(await gateway.post(body))
            assert (guessed > 900) == shared_prefix_cache
            assert guessed == 0 or shared_prefix_cache
            # A salt that the client makes up leads to no other cache.
            forged = {**body, "cache_salt": "team-b"}
            assert cached_tokens(await gateway.post(forged)) > 900 or shared_prefix_cache
            # What one sends again oneself is in the cache.
            assert cached_tokens(await gateway.post(body)) > 900
            assert cached_tokens(await gateway.post(body, **OTHER)) > 900
