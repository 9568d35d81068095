"""Measures what compilers of engines take for schemas, beside what `schema_cost.py` says.

It needs the xgrammar of `requirements/engine.txt` (which imports torch and transformers), and takes
some minutes. A JSON file with the vocabulary, a list of tokens in base64, makes it exact; without
one, words by chance stand for it, which take 1.6 times as long.
"""

import base64
import json
import random
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from tessera.domain.gateway.schema_cost import find_excess

_TOKENS = 128_000
_TEXT = {"type": "string"}


def _pattern(pattern: str) -> dict[str, Any]:
    return {"type": "string", "pattern": pattern}


def _optional(count: int, **others: Any) -> dict[str, Any]:
    properties = {f"p{number}": _TEXT for number in range(count)}
    return {"type": "object", "properties": properties, **others}


def _length(least: int, most: int) -> dict[str, Any]:
    return {"type": "string", "minLength": least, "maxLength": most}


def _nested(levels: int, properties: int) -> dict[str, Any]:
    schema: dict[str, Any] = {**_optional(properties)}
    schema["required"] = list(schema["properties"])
    for _ in range(levels):
        schema = {"type": "object", "properties": {"p": schema}, "required": ["p"]}
    return schema


SCHEMAS: Mapping[str, dict[str, Any]] = {
    "a text": _TEXT,
    "maxLength 20": _length(0, 20),
    "maxLength 100": _length(0, 100),
    "maxLength 200": _length(0, 200),
    "minLength 1, maxLength 255": _length(1, 255),
    "5 times maxLength 200": {"type": "array", "prefixItems": [_length(0, 200)] * 5},
    "maxLength 200 and 201": {"type": "array", "prefixItems": [_length(0, 200), _length(0, 201)]},
    "minItems 100, maxItems 200": {
        "type": "array",
        "items": _TEXT,
        "minItems": 100,
        "maxItems": 200,
    },
    ".{100}": _pattern("^.{100}$"),
    "[a-z]{1,64}": _pattern("^[a-z]{1,64}$"),
    "[ -~]{1,50}x 7 times": _pattern("^" + "[ -~]{1,50}x" * 7 + "$"),
    ".{1,100}a.{1,100}b": _pattern("^.{1,100}a.{1,100}b$"),
    ".? 20 times": _pattern("^" + ".?" * 20 + "$"),
    "[a-z]? 75 times": _pattern("^" + "[a-z]?" * 75 + "$"),
    "[a-z]{1,1000}": _pattern("^[a-z]{1,1000}$"),
    "[a-z]{1,3000}": _pattern("^[a-z]{1,3000}$"),
    "600 optional properties": _optional(600),
    "110 counted ones": _optional(110, minProperties=50),
    "{} 40,000 times": {"type": "array", "prefixItems": [{}] * 40_000},
    "uri-template 20 times": {"prefixItems": [{**_TEXT, "format": "uri-template"}] * 20},
    "40 properties of 8 letters beside others": _optional(40, additionalProperties=True),
    "28 levels around 1,100 properties": _nested(28, 1100),
    "31 levels around 3,000 properties": _nested(31, 3000),
}


def main(compiler: Any, grammar: Any) -> None:
    """Print a row for each schema: seconds of the reader, of the compiler, and what is said."""
    print(f"{'schema':36} {'reader s':>9} {'compiler s':>11}  the gateway")
    for name, schema in SCHEMAS.items():
        text = json.dumps(schema)
        excess = find_excess({"schema": schema}, len(text))
        read = _seconds(partial(grammar.from_json_schema, text))
        compiled = _seconds(partial(compiler.compile_json_schema, text))
        print(f"{name:36} {read:9.2f} {compiled:11.2f}  {excess.text if excess else 'passes'}")


def _seconds(step: Callable[[], object]) -> float:
    began = time.process_time()
    step()
    return time.process_time() - began


def _words() -> Iterator[bytes]:
    """Yield tokens of about the lengths and letters of a real vocabulary."""
    chance = random.Random(1)  # noqa: S311 - no secret
    letters = [*"etaoinshrdlcumwfgypbvkjxqz", "é", "д", "中", "文"]
    while True:
        length = min(16, max(2, round(chance.gauss(6, 2.5))))
        word = "".join(chance.choices(letters, range(len(letters), 0, -1), k=length))
        yield (" " * (chance.random() < 0.45) + word).encode()


def _vocabulary(path: str | None) -> list[bytes]:
    if path is not None:
        return [base64.b64decode(token) for token in json.loads(Path(path).read_text("utf-8"))]
    tokens = dict.fromkeys(bytes([byte]) for byte in range(256))
    words = _words()
    while len(tokens) < _TOKENS:
        tokens[next(words)] = None
    return list(tokens)


if __name__ == "__main__":
    import xgrammar

    tokens = _vocabulary(sys.argv[1] if len(sys.argv) > 1 else None)
    info = xgrammar.TokenizerInfo(
        encoded_vocab=[*tokens, b"<end>"],
        vocab_type=xgrammar.VocabType.RAW,
        vocab_size=len(tokens) + 1,
        stop_token_ids=[len(tokens)],
    )
    main(xgrammar.GrammarCompiler(info, cache_enabled=False), xgrammar.Grammar)
