"""Files of dated prices, of GPUs and of APIs: JSON with one list of entries."""

import json
from typing import TypeVar

from pydantic import TypeAdapter, ValidationError

EntriesT = TypeVar("EntriesT")


class PriceError(ValueError):
    """A price file cannot be used; the message says where and what to do."""


def read_entries(text: str, entries: TypeAdapter[EntriesT], format_help: str) -> EntriesT:
    """Return the entries of the list `prices`; PriceError with the format where one is invalid."""
    try:
        return entries.validate_python(json.loads(text)["prices"])
    except (json.JSONDecodeError, RecursionError) as error:
        raise PriceError(f"it is not JSON: {error}; {format_help}") from None
    except (KeyError, TypeError):
        raise PriceError(f"it has no list prices; {format_help}") from None
    except ValidationError as error:
        first = error.errors()[0]
        path = "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in first["loc"])
        raise PriceError(f"prices{path}: {first['msg']}; {format_help}") from None
