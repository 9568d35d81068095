"""State that a model made in a chat, as providers get it with the next request."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tessera.domain.gateway.reasons import RequestReason
from tessera.gateway.bodies.signed import thinking_mark, without_marked
from tessera.gateway.outside.answers import ProviderEvents, read_answer
from tessera.gateway.paths import PATHS
from tessera.gateway.refusals import RequestError
from tests.gateway.outside.test_bodies import CHAT, refused, sent
from tests.gateway_builders import an_offered_provider, an_outside_model

CALL = {"id": "call12345", "type": "function", "function": {"name": "now", "arguments": "{}"}}
RESULT = {"role": "tool", "tool_call_id": "call12345", "content": "12:00"}
QUESTION = {"role": "user", "content": "What time is it?"}
DEEPSEEK, KIMI = "https://api.deepseek.com/v1", "https://api.moonshot.ai/v1"
ZAI, MISTRAL = "https://api.z.ai/api/paas/v4", "https://api.mistral.ai/v1"
PLAIN, GROQ = "https://acme.example/v1", "https://api.groq.com/openai/v1"


def at(base_url: str, **fields: Any) -> Any:
    """Return a model of a provider at an address."""
    return an_outside_model(provider=an_offered_provider(base_url=base_url), **fields)


def a_turn(**reasoning: Any) -> list[Any]:
    """Return a turn that called a tool after this reasoning."""
    call = {"role": "assistant", "content": "", **reasoning, "tool_calls": [CALL]}
    return [QUESTION, call, RESULT]


@pytest.mark.parametrize("base_url", [DEEPSEEK, KIMI, ZAI])
@pytest.mark.parametrize("reasons", [False, True])
def test_reasoning_goes_back_where_the_dialect_wants_it(base_url: str, reasons: bool) -> None:
    turn = a_turn(reasoning_content="I have to call now().")
    body = sent(CHAT, messages=turn, model=at(base_url, reasoning=reasons))
    assert body["messages"] == turn
    assert "thinking" not in body
    answered = {"role": "assistant", "content": "12:00", "reasoning_content": "I know."}
    # An answer within a turn of tools has some, a turn without tools has none.
    body = sent(CHAT, messages=[*turn, answered, QUESTION, answered], model=at(base_url))
    assert ["reasoning_content" in each for each in body["messages"][3:]] == [True, False, False]


@pytest.mark.parametrize("base_url", [PLAIN, MISTRAL])
def test_no_other_provider_gets_reasoning(base_url: str) -> None:
    turn = a_turn(reasoning_content="I have to call now().", reasoning="So I do.")
    assert sent(CHAT, messages=turn, model=at(base_url))["messages"] == a_turn()


def test_calls_without_reasoning_are_asked_without_thinking() -> None:
    asked = {"thinking": {"type": "enabled"}, "reasoning_effort": "high"}
    body = sent(CHAT, messages=a_turn(reasoning="Hm"), model=at(DEEPSEEK), **asked)
    assert (body["messages"], body["thinking"]) == (a_turn(), {"type": "disabled"})
    assert "reasoning_effort" not in body
    # A model that does not think has no such switch.
    assert "thinking" not in sent(CHAT, messages=a_turn(), model=at(DEEPSEEK, reasoning=False))


@pytest.mark.parametrize("reasoning", [{}, {"reasoning_content": ""}])
def test_calls_of_others_have_a_text_in_place_of_reasoning_at_kimi(reasoning: Any) -> None:
    body = sent(CHAT, messages=a_turn(**reasoning), model=at(KIMI), temperature=1)
    assert body["messages"] == a_turn(reasoning_content="(not given)")
    assert (body["temperature"], "thinking" in body) == (1, False)


def test_roles_that_deepseek_does_not_know_have_its_names() -> None:
    messages = [{"role": "developer", "content": "Be brief."}, QUESTION]
    body = sent(CHAT, messages=messages, model=at(DEEPSEEK))
    assert [each["role"] for each in body["messages"]] == ["system", "user"]
    assert sent(CHAT, messages=messages, model=at(PLAIN))["messages"] == messages


def test_a_switch_of_thinking_passes_where_the_dialect_has_one() -> None:
    asked = {"thinking": {"type": "disabled"}}
    assert sent(CHAT, model=at(DEEPSEEK), **asked)["thinking"] == asked["thinking"]
    for model in (at(PLAIN), at(DEEPSEEK, reasoning=False)):
        assert "thinking" not in sent(CHAT, model=model, **asked)


def test_fields_that_a_dialect_names_otherwise_have_its_names() -> None:
    model = at(MISTRAL, output_limit_field="max_completion_tokens")
    asked = {"max_completion_tokens": 50, "seed": 7, "stream": True, "verbosity": "medium"}
    body = sent(CHAT, model=model, messages=[{**QUESTION, "name": "ann"}], **asked)
    assert body == {
        **{"model": "large-1", "messages": [QUESTION], "stream": True},
        **{"max_tokens": 50, "random_seed": 7},
    }


def test_fields_that_a_dialect_refuses_skip_it_unless_they_have_no_effect() -> None:
    assert refused(CHAT, model=at(GROQ), logprobs=True).startswith("logprobs: ")
    assert "logprobs" not in sent(CHAT, model=at(GROQ), logprobs=False)


ACME, OTHER = an_offered_provider(base_url=PLAIN), an_offered_provider("other")
MARK = thinking_mark(ACME)
SIGNED_CALL = {**CALL, "extra_content": {"google": {"thought_signature": "EqQB+/=="}}}
ENCRYPTED = {"type": "reasoning.encrypted", "data": "gAAA", "format": "openai-responses-v1"}
SIGNED = {"type": "reasoning.text", "text": "Hm", "signature": "EqQB", "index": 0}
SUMMARY = {"type": "reasoning.summary", "summary": "It calls now().", "index": 1}
ANSWER: dict[str, Any] = {
    **{"role": "assistant", "content": None, "tool_calls": [SIGNED_CALL]},
    "reasoning_details": [SIGNED, ENCRYPTED, SUMMARY],
}


def answered(message: Any) -> Any:
    """Return a message of an answer as the client gets it."""
    body = json.dumps({"choices": [{"index": 0, "message": message}]}).encode()
    return json.loads(read_answer(CHAT, body, MARK).body)["choices"][0]["message"]


def returned(message: Any, provider: Any = ACME) -> Any:
    """Return a message as a provider gets it with the next request."""
    model = an_outside_model(provider=provider)
    return sent(CHAT, messages=[QUESTION, message, RESULT], model=model)["messages"][1]


def test_signed_state_of_a_chat_goes_back_to_its_maker_alone() -> None:
    answer = answered(ANSWER)
    signature = answer["tool_calls"][0]["extra_content"]["google"]["thought_signature"]
    assert signature == MARK.decode() + "EqQB+/=="
    assert returned(answer) == {**ANSWER, "reasoning_details": [SIGNED, ENCRYPTED]}
    plain = {"role": "assistant", "content": None, "tool_calls": [CALL]}
    assert returned(answer, OTHER) == plain
    assert returned(ANSWER) == plain
    openrouter = an_offered_provider(base_url="https://openrouter.ai/api/v1")
    assert returned(answer, openrouter) == {**plain, "reasoning_details": [SUMMARY]}


@pytest.mark.parametrize("space", ["", " " * 20_000])
def test_engines_of_the_cluster_get_no_signed_state_of_a_chat(space: str) -> None:
    signed = {"google": {"thought_signature": MARK.decode() + "EqQB"}}
    said = {**answered(ANSWER), "x": space, "extra_content": signed, "thinking_blocks": [signed]}
    body = {"messages": [{**QUESTION, "x": space}, said], "top_k": 3}
    text = without_marked(CHAT, json.dumps(body).encode())
    assert MARK not in text
    _, message = json.loads(text)["messages"]
    assert message["reasoning_details"] is None
    assert message["tool_calls"] == [{**CALL, "extra_content": None}]
    for untouched in (b'{"messages": [ ]}', json.dumps({"messages": [ANSWER]}).encode()):
        assert without_marked(CHAT, untouched) is untouched


def test_signed_state_in_a_stream_of_a_chat_is_marked_event_by_event() -> None:
    stream = PATHS[CHAT].stream
    assert stream is not None
    deltas: list[Any] = [
        {"tool_calls": [{"index": 0, **SIGNED_CALL}]},
        {"reasoning_details": [{**SIGNED, "signature": "Eq"}]},
        {"reasoning_details": [{**SIGNED, "signature": "QB"}]},
        {"content": '"thought_signature": "x"'},
    ]
    chunks = [json.dumps({"choices": [{"index": 0, "delta": each}]}) for each in deltas]
    events = b"".join(f"data: {chunk}\n\n".encode() for chunk in chunks)
    passed = ProviderEvents(CHAT, stream, MARK, keep_usage=True).feed(events)
    assert passed.count(MARK) == 3
    assert passed.replace(MARK, b"") == events
    m = MARK.decode()
    pieces = {**ANSWER, "reasoning_details": [{**SIGNED, "signature": f"{m}Eq{m}QB"}]}
    assert returned(pieces)["reasoning_details"] == [SIGNED]


JSON_TEXT = st.text(alphabet='"\\:,{}thought_signatureda \n', max_size=40)


@given(JSON_TEXT, JSON_TEXT, JSON_TEXT)
def test_texts_beside_signed_state_are_untouched(content: str, name: str, value: str) -> None:
    function = {"name": "now", "arguments": json.dumps({name: value, "data": value})}
    message = {**ANSWER, "content": content, "tool_calls": [{**SIGNED_CALL, "function": function}]}
    answer = answered(message)
    assert (answer["content"], answer["tool_calls"][0]["function"]) == (content, function)
    assert returned(answer) == {**message, "reasoning_details": [SIGNED, ENCRYPTED]}


@pytest.mark.parametrize(
    "state",
    [
        {"tool_calls": MARK.decode()},
        {"tool_calls": [MARK.decode(), 1, None]},
        {"tool_calls": {"a": MARK.decode()}},
        {"reasoning_details": {"data": MARK.decode()}, "tool_calls": None},
        {"tool_calls": [{"extra_content": [MARK.decode()]}]},
    ],
)
def test_state_of_another_shape_is_refused_or_left_out(state: Any) -> None:
    body = json.dumps({"messages": [{"role": "assistant", **state}]}).encode()
    try:
        text = without_marked(CHAT, body)
    except RequestError as error:
        text = b""
        assert error.reason is RequestReason.INVALID_REQUEST  # noqa: PT017 - both are right
    assert MARK not in text


def test_ids_of_calls_that_mistral_refuses_are_replaced_wherever_they_stand() -> None:
    calls = [{**CALL, "id": "call_1"}, CALL]
    results = [{**RESULT, "tool_call_id": call["id"]} for call in calls]
    turn = [QUESTION, {"role": "assistant", "content": "", "tool_calls": calls}, *results]
    _, called, first, second = sent(CHAT, messages=turn, model=at(MISTRAL))["messages"]
    ids = [call["id"] for call in called["tool_calls"]]
    assert ids == [first["tool_call_id"], second["tool_call_id"]]
    assert (len(ids[0]), ids[0].isalnum(), ids[1]) == (9, True, CALL["id"])
    assert sent(CHAT, messages=turn, model=at(PLAIN))["messages"] == turn


def test_thoughts_within_the_content_go_to_mistral_alone() -> None:
    thought = {"type": "thinking", "thinking": [{"type": "text", "text": "Hm"}], "closed": True}
    said = {"role": "assistant", "content": [thought, {"type": "text", "text": "Noon."}]}
    turn = [QUESTION, said, QUESTION]
    assert sent(CHAT, messages=turn, model=at(MISTRAL))["messages"] == turn
    other = sent(CHAT, messages=turn, model=at(PLAIN))["messages"][1]
    assert other["content"] == said["content"][1:]
    # Providers take no empty list.
    alone = {**said, "content": [thought]}
    assert sent(CHAT, messages=[QUESTION, alone, QUESTION])["messages"] == [QUESTION, QUESTION]
    called = {**alone, "tool_calls": [CALL]}
    assert sent(CHAT, messages=[QUESTION, called, RESULT])["messages"][1]["content"] is None


def test_long_ids_of_calls_are_replaced_for_openai() -> None:
    long = f"chatcmpl-tool-{'0123456789abcdef' * 2}"
    turn = [QUESTION, {"role": "assistant", "content": "", "tool_calls": [{**CALL, "id": long}]}]
    turn += [{**RESULT, "tool_call_id": long}]
    _, called, result = sent(CHAT, messages=turn, model=at("https://api.openai.com/v1"))["messages"]
    assert called["tool_calls"][0]["id"] == result["tool_call_id"] != long
    assert len(result["tool_call_id"]) == 9


def test_ids_of_calls_that_messages_cannot_have_are_replaced() -> None:
    use = {"type": "tool_use", "id": "functions.now:0", "name": "now", "input": {}}
    result = {"type": "tool_result", "tool_use_id": "functions\u002enow:0", "content": "12:00"}
    turn = [
        QUESTION,
        {"role": "assistant", "content": [use]},
        {"role": "user", "content": [result]},
    ]
    body = sent("/v1/messages", messages=turn)
    ids = [
        body["messages"][1]["content"][0]["id"],
        body["messages"][2]["content"][0]["tool_use_id"],
    ]
    assert ids[0] == ids[1]
    assert ids[0].isalnum()


def test_calls_of_others_have_the_signature_that_google_takes_for_them() -> None:
    google = at("https://generativelanguage.googleapis.com/v1beta/openai")
    call = sent(CHAT, messages=a_turn(), model=google)["messages"][1]["tool_calls"][0]
    signature = call["extra_content"]["google"]["thought_signature"]
    assert signature == "skip_thought_signature_validator"
