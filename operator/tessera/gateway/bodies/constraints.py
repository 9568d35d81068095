"""What of a request an engine compiles before it answers, or keeps room for while it does."""

import re
from collections.abc import Mapping
from hashlib import blake2b
from typing import Any

import msgspec

from tessera.api.text import counted
from tessera.domain.gateway.schema_cost import MAX_SCHEMA_BYTES, find_excess
from tessera.gateway.bodies.json_values import decode
from tessera.gateway.bodies.listed_fields import MAX_BAD_WORDS_BYTES, MAX_TOKEN_IDS
from tessera.gateway.bodies.parsing import RequestFields
from tessera.gateway.refusals import RequestError, invalid_request

# Checking takes as long as other work with a body of so many times the bytes.
WORK = 32
_DIGEST_BYTES = 16
# Of a token with its bias.
_MAX_TOKEN_BYTES = 64
_COMPILED = (
    "response_format",
    "structured_outputs",
    "text",
    "output_config",
    "output_format",
    "functions",
)
# They are JSON that is a string.
_ENCODED = ("json", "structural_tag")
# Around the schema of a tool: the list, the tool and its function. Other fields have as many.
_WRAPPERS = 3
_any = msgspec.json.Decoder()


def _escaped(word: str) -> bytes:
    """Return a pattern for a word, each letter of which may be an escape."""
    letters = (rf"(?:{letter}|\\u00(?i:{ord(letter):02x}))" for letter in word)
    return "".join(letters).encode()


_STRICT = re.compile(rb'"' + _escaped("strict") + rb'"\s*+:\s*+(?!false|null)')
# A quotation mark within a text has a backslash in front.
_DEFINITION = re.compile(rb'"' + _escaped("tool_definition") + rb'"')


def compiled_values(fields: RequestFields) -> Mapping[str, memoryview]:
    """Return what an engine compiles, by field.

    Raises RequestError where a definition of a tool is within the messages, and where the sampler
    has no room for what changes its choice.
    """
    _check_sampler(fields)
    names = [name for name in _COMPILED if _raw(fields, name)]
    tools = _raw(fields, "tools")
    if tools and (_forces(_raw(fields, "tool_choice")) or _STRICT.search(tools)):
        names.append("tools")
    if hasattr(fields, "output_config") and _DEFINITION.search(_raw(fields, "messages")):
        raise invalid_request(
            "messages: several tenants may use this model, and a tool_definition among messages "
            "does not pass to its engines. Define the tool in tools.",
            "messages",
        )
    return {name: _raw(fields, name) for name in names}


def check_compiled(values: Mapping[str, memoryview]) -> bytes | None:
    """Return a digest of what an engine compiles; None without anything.

    Raises RequestError where it costs more than engines that tenants share may spend on it.
    """
    digest, size = blake2b(digest_size=_DIGEST_BYTES), sum(map(len, values.values()))
    if not size:
        return None
    decoded = {}
    if size <= MAX_SCHEMA_BYTES:
        decoded = {name: _decoded(name, value) for name, value in values.items()}
    excess = find_excess(decoded, size, _WRAPPERS)
    if excess is not None:
        _, _, pointer = excess.pointer.partition("/")
        # Of all together, the largest.
        largest = max(values, key=lambda name: len(values[name]))
        name, _, place = (pointer or largest).partition("/")
        at = f" at /{place}" if place else ""
        raise invalid_request(
            f"{name}{at}: {excess.text}; or use a model that is your tenant's alone, since several "
            "may use this one.",
            name,
        )
    for value in values.values():
        digest.update(value)
    return digest.digest()


def _check_sampler(fields: RequestFields) -> None:
    for name, most in MAX_TOKEN_IDS.items():
        value = _raw(fields, name)
        if len(value) > most * _MAX_TOKEN_BYTES:
            raise _too_many(name, counted(len(value), "byte"), most * _MAX_TOKEN_BYTES)
        # Whatever it is: as many as it has commas, and one.
        count = bytes(value).count(b",") + 1
        if count > most:
            raise _too_many(name, counted(count, "token"), most)
    size = len(_raw(fields, "bad_words"))
    if size > MAX_BAD_WORDS_BYTES:
        raise _too_many("bad_words", counted(size, "byte"), MAX_BAD_WORDS_BYTES)


def _too_many(name: str, count: str, most: int) -> RequestError:
    return invalid_request(
        f"{name}: it has {count}, limit {most}. Send fewer, or use a model that is your tenant's "
        "alone, since several may use this one.",
        name,
    )


def _decoded(name: str, value: memoryview) -> Any:
    decoded = _json(name, value)
    if name == "structured_outputs" and isinstance(decoded, dict):
        for part in _ENCODED:
            text = decoded.get(part)
            if isinstance(text, str):
                decoded[part] = _json(f"{name}.{part}", text)
    return decoded


def _json(name: str, text: memoryview | str) -> Any:
    try:
        return decode(_any, text.encode() if isinstance(text, str) else text)
    except (msgspec.ValidationError, UnicodeEncodeError) as error:
        raise invalid_request(f"{name}: {error}", name) from None


def _forces(choice: memoryview) -> bool:
    """Return whether an answer has to call a tool."""
    decoded = _json("tool_choice", choice) if 0 < len(choice) <= MAX_SCHEMA_BYTES else None
    if isinstance(decoded, dict):
        decoded = decoded.get("type")
    return bool(choice) and decoded not in (None, "auto", "none")


def _raw(fields: RequestFields, name: str) -> memoryview:
    """Return a value as it was sent; empty where it is null or not there."""
    value = getattr(fields, name, None)
    raw = memoryview(value) if isinstance(value, msgspec.Raw) else memoryview(b"")
    return memoryview(b"") if bytes(raw[:5]).strip() == b"null" else raw
