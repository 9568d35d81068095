"""How large an answer of embeddings is, before an engine makes it."""

from typing import NamedTuple

# Of a response that is not a stream.
MAX_RESPONSE_BYTES = 32 * 2**20
# Of a number with its comma, as engines write 32 bits: 21 on average where a vector has length 1.
# Without that those of 16 bits have 11.
_TEXT_BYTES, _MOST_TEXT_BYTES = 19, 22
_UNSCALED_TEXT_BYTES = 10
_BASE64 = 4 / 3
_TYPE_BYTES = {b"": 4, b'"float32"': 4, b'"float16"': 2, b'"bfloat16"': 2}


class VectorSize(NamedTuple):
    """The bytes of one embedding in an answer, rather fewer and rather more than it has."""

    least: float
    most: float

    @property
    def texts(self) -> int:
        """Return how many texts have an answer that is within the bound."""
        return int(MAX_RESPONSE_BYTES / self.most)

    def passes_bound(self, texts: int) -> bool:
        """Return whether the answer for so many texts is above the bound."""
        return texts * self.least > MAX_RESPONSE_BYTES


def vector_size(
    width: int | None,
    dimensions: memoryview,
    encoding: memoryview,
    number_type: memoryview,
    activation: memoryview,
) -> VectorSize | None:
    """Return the size of an embedding of a model, as these values of a body ask for it.

    Each is empty where it is not given. None where a size is not known: the engine may refuse such
    a request.
    """
    numbers = _count(bytes(dimensions)) or width
    if width is not None and numbers is not None:
        numbers = min(numbers, width)
    type_bytes = _TYPE_BYTES.get(bytes(number_type))
    if numbers is None or type_bytes is None:
        return None
    match bytes(encoding):
        case b"" | b'"float"':
            least = _UNSCALED_TEXT_BYTES if bytes(activation) == b"false" else _TEXT_BYTES
            return VectorSize(numbers * least, numbers * _MOST_TEXT_BYTES)
        case b'"base64"':
            size = numbers * type_bytes * _BASE64
            return VectorSize(size, size)
        case _:
            return None


def _count(value: bytes) -> int | None:
    return int(value) if value.isdigit() and len(value) < 10 else None
