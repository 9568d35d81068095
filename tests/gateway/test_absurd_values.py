"""Absurd sizes in requests: each gets a 400 in OpenAI's shape, by the gateway or its engine."""

from pathlib import Path

import aiohttp
import pytest

from tests.clients.running import CHAT, offered, simulators
from tests.gateway.harness import KEY, a_directory
from tests.gateway.test_gateway_process import a_process

pytestmark = pytest.mark.anyio

_LARGE = (str(10**9 + 1), str(2**63), str(10**40), "1e999")
_NO_COUNTS = ("-1", *_LARGE, "1.5", "NaN", '"9"', "[]", "true")
# The engine reads them as leniently as vLLM does, where -1 is the whole vocabulary.
_NO_LOGPROBS = ("-2", "21", *_LARGE, "1.5", "NaN", "[]")
_COMPLETIONS = ("/v1/completions", '"prompt": "a"')
_CHAT = ("/v1/chat/completions", '"messages": [{"role": "user", "content": "a"}]')
_RESPONSES = ("/v1/responses", '"input": "a"')
_FIELDS = [
    (*_COMPLETIONS, "n", ("0", "129", *_NO_COUNTS)),
    (*_COMPLETIONS, "best_of", ("129", *_NO_COUNTS)),
    (*_COMPLETIONS, "max_tokens", (str(10**9), *_NO_COUNTS)),
    (*_COMPLETIONS, "logprobs", _NO_LOGPROBS),
    (*_CHAT, "n", ("0", "129", *_NO_COUNTS)),
    (*_CHAT, "max_tokens", _NO_COUNTS),
    (*_CHAT, "max_completion_tokens", _NO_COUNTS),
    (*_CHAT, "logprobs", ("[]", '{"a": 1}', str(10**9))),
    (*_CHAT, 'logprobs": true, "top_logprobs', _NO_LOGPROBS),
    (*_RESPONSES, "max_output_tokens", ("0", *_NO_COUNTS)),
]


async def test_an_absurd_value_is_a_400_that_no_client_takes_for_a_failure(tmp_path: Path) -> None:
    wrong = []
    async with (
        simulators(tmp_path, CHAT) as (engine,),
        a_process(tmp_path, a_directory(offered(engine, "chat"))) as gateway,
        aiohttp.ClientSession(headers={"authorization": f"Bearer {KEY}"}) as client,
    ):
        for path, prompt, field, values in _FIELDS:
            for value in values:
                body = f'{{"model": "chat", {prompt}, "{field}": {value}}}'
                async with client.post(gateway.url + path, data=body) as response:
                    answer = await response.json()
                error = answer.get("error", {})
                if response.status != 400 or not {"message", "type", "param", "code"} <= set(error):
                    wrong.append(f"{path} {field} {value}: {response.status} {error}")
                assert "Traceback" not in str(answer)
    assert not wrong, "\n".join(wrong)
