"""More than one plain answer: several of them, log-probabilities, adapters."""

from typing import Any

import pytest

from tests.lab.sim.running import running

HI = [{"role": "user", "content": "say hi"}]
LORA = ("--enable-lora",)
RUNTIME = {"VLLM_ALLOW_RUNTIME_LORA_UPDATING": "True"}


async def test_several_answers_of_several_prompts_come_in_order_and_count_prompts_once() -> None:
    async with running() as engine:
        asked = {"prompt": ["one", "two"], "n": 2, "max_tokens": 4}
        body = (await engine.post("/v1/completions", **asked)).json()
        single = (await engine.post("/v1/completions", prompt="two", max_tokens=4)).json()
        seen = await engine.metrics()
    assert [choice["index"] for choice in body["choices"]] == [0, 1, 2, 3]
    assert len({choice["text"] for choice in body["choices"]}) == 4
    assert body["choices"][2]["text"] == single["choices"][0]["text"]
    assert body["usage"]["prompt_tokens"] == 2
    assert body["usage"]["completion_tokens"] == 16
    assert seen["request_params_n_sum"] == 4 * 2 + 1


async def test_streamed_answers_are_distinguished_by_their_index() -> None:
    asked = {"messages": HI, "n": 3, "max_tokens": 5}
    async with running() as engine:
        whole = (await engine.post("/v1/chat/completions", **asked)).json()
        events = await engine.stream("/v1/chat/completions", **asked)
    texts = {0: "", 1: "", 2: ""}
    for event in events[:-1]:
        for choice in event["choices"]:
            texts[choice["index"]] += choice["delta"]["content"]
    assert texts == {choice["index"]: choice["message"]["content"] for choice in whole["choices"]}
    ends = [c["finish_reason"] for event in events[:-1] for c in event["choices"]]
    assert [end for end in ends if end] == ["length"] * 3


@pytest.mark.parametrize("begun", [1, 7, 80])
async def test_an_answer_goes_on_where_its_turn_was_begun(begun: int) -> None:
    whole_body = {"messages": HI, "max_tokens": 100, "ignore_eos": True}
    chat = {"continue_final_message": True, "add_generation_prompt": False}
    async with running() as engine:
        whole = (await engine.post("/v1/chat/completions", **whole_body)).json()
        text = whole["choices"][0]["message"]["content"]
        words = text.split(" ")
        turn = {"role": "assistant", "content": " ".join(words[:begun])}
        rest_body = {**whole_body, **chat, "messages": [*HI, turn], "max_tokens": 100 - begun}
        rest = (await engine.post("/v1/chat/completions", **rest_body)).json()
        prompt = (await engine.post("/tokenize", messages=HI)).json()
        continued = (await engine.post("/tokenize", messages=[*HI, turn], **chat)).json()
    assert turn["content"] + rest["choices"][0]["message"]["content"] == text
    assert prompt["count"] == len(prompt["tokens"]) == whole["usage"]["prompt_tokens"]
    assert continued["count"] == rest["usage"]["prompt_tokens"] == prompt["count"] + begun
    assert continued["tokens"][: prompt["count"]] == prompt["tokens"]


async def test_a_text_is_tokenized_as_a_prompt_is() -> None:
    async with running() as engine:
        text = (
            await engine.post("/tokenize", prompt="once upon a time", return_token_strs=True)
        ).json()
        both = {"messages": HI, "continue_final_message": True}
        refused = await engine.post("/v1/chat/completions", **both)
    assert (text["count"], text["max_model_len"]) == (4, 4096)
    assert text["token_strs"] == ["once", " upo", "n a ", "time"]
    assert refused.status_code == 400


async def test_log_probabilities_are_of_the_tokens_and_fall_from_the_chosen_one_on() -> None:
    async with running() as engine:
        asked = {"prompt": "tell", "max_tokens": 6, "logprobs": 3}
        body = (await engine.post("/v1/completions", **asked)).json()["choices"][0]
        again = (await engine.post("/v1/completions", **asked)).json()["choices"][0]
    logprobs = body["logprobs"]
    assert logprobs == again["logprobs"]
    assert "".join(logprobs["tokens"]) == body["text"]
    assert [body["text"][start:].startswith(t) for start, t in _places(logprobs)] == [True] * 6
    for token, number, top in zip(
        logprobs["tokens"], logprobs["token_logprobs"], logprobs["top_logprobs"], strict=True
    ):
        assert top[token] == number == max(top.values()) <= 0
        assert len(top) == 3


def _places(logprobs: dict[str, Any]) -> list[tuple[int, str]]:
    return list(zip(logprobs["text_offset"], logprobs["tokens"], strict=True))


async def test_the_limit_of_log_probabilities_is_the_flag() -> None:
    async with running("--max-logprobs", "2") as engine:
        asked = {"prompt": "tell", "max_tokens": 1}
        codes = [
            (await engine.post("/v1/completions", **asked, logprobs=count)).status_code
            for count in (2, 3)
        ]
    assert codes == [200, 400]


async def test_an_echoed_prompt_precedes_the_answer_with_its_log_probabilities() -> None:
    async with running() as engine:
        asked = {"prompt": "once upon a time", "max_tokens": 2, "echo": True, "logprobs": 1}
        body = (await engine.post("/v1/completions", **asked)).json()["choices"][0]
    assert body["text"].startswith("once upon a time")
    assert "".join(body["logprobs"]["tokens"]) == body["text"]
    assert body["logprobs"]["token_logprobs"][0] is None
    assert len(body["prompt_logprobs"]) == 4


async def test_per_request_metrics_add_up() -> None:
    async with running("--enable-per-request-metrics") as engine:
        body = (await engine.post("/v1/completions", prompt="x", max_tokens=9)).json()["metrics"]
    assert body["queue_time_ms"] <= body["time_to_first_token_ms"]
    assert body["mean_itl_ms"] == pytest.approx(body["generation_time_ms"] / 8)
    seconds = (body["time_to_first_token_ms"] + body["generation_time_ms"]) / 1e3
    assert body["tokens_per_second"] == pytest.approx(9 / seconds)


async def test_an_adapter_is_loaded_and_unloaded_while_the_engine_runs(tmp_path: Any) -> None:
    (tmp_path / "adapter_config.json").write_text("{}")
    loaded = {"lora_name": "sql", "lora_path": str(tmp_path)}
    asked = {"model": "sql", "prompt": "a", "max_tokens": 1}
    async with running(*LORA, **RUNTIME) as engine:
        before = await engine.post("/v1/completions", **asked)
        load = await engine.post("/v1/load_lora_adapter", **loaded)
        during = await engine.post("/v1/completions", **asked)
        listed = (await engine.http.get("/v1/models")).json()["data"]
        unload = await engine.post("/v1/unload_lora_adapter", lora_name="sql")
        after = await engine.post("/v1/completions", **asked)
    codes = [response.status_code for response in (before, load, during, unload, after)]
    assert codes == [404, 200, 200, 200, 404]
    assert during.json()["model"] == "sql"
    assert [(model["id"], model["parent"]) for model in listed] == [("tiny", None), ("sql", "tiny")]


async def test_adapters_stay_as_they_are_without_the_engine_s_variable() -> None:
    async with running(*LORA) as engine:
        response = await engine.post("/v1/load_lora_adapter", lora_name="sql", lora_path="acme/sql")
    assert response.status_code == 404
