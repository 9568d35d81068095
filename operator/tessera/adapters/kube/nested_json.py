"""JSON of the API server, which takes objects that nest deeper than any reader here does."""

import asyncio
import re
from typing import Any

from pydantic_core import from_json

# No object of Kubernetes or Tessera nests half as deep; pydantic reads 200 levels.
MAX_DEPTH = 128
_TOKEN = re.compile(rb'"(?:[^"\\]++|\\.)*+"|[\[{]|[\]}]', re.DOTALL)


async def read_json(text: bytes) -> Any:
    """Return a value; what nests deeper than MAX_DEPTH in it is null.

    Users nest what they like in a field without a schema, and one object that cannot be read must
    not hide the others of its list. Raises ValueError for what is no JSON.
    """
    try:
        return from_json(text)
    except ValueError as error:
        if "recursion limit" not in str(error):
            raise
    # It takes a third of a second for a MiB of brackets, in which others have their turns.
    return from_json(await asyncio.to_thread(_without_depths, text))


def _without_depths(text: bytes) -> bytes:
    parts, depth, end = list[bytes](), 0, 0
    for token in _TOKEN.finditer(text):
        if token[0] in (b"[", b"{"):
            depth += 1
            if depth == MAX_DEPTH + 1:
                parts.append(text[end : token.start()])
        elif token[0] in (b"]", b"}"):
            if depth == MAX_DEPTH + 1:
                parts.append(b"null")
                end = token.end()
            depth -= 1
    return b"".join((*parts, text[end:]))
