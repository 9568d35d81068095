"""The keys and tokens in the headers of a request."""

from collections.abc import Mapping, Sequence

from tessera.domain.gateway.reasons import RequestReason
from tessera.gateway.refusals import RequestError

# No credential is longer; the tokens of some issuers list hundreds of groups.
_MAX_CREDENTIAL_BYTES = 16 * 1024
_CREDENTIAL_HEADERS = (b"authorization", b"x-api-key")
# Between two values of one header: no value has it.
_NEXT = b"\0"


def by_name(headers: Sequence[tuple[bytes, bytes]]) -> dict[bytes, bytes]:
    """Return the headers of a request; of those with one name the last, and all credentials."""
    values = dict(headers)
    if len(values) == len(headers):
        return values
    values.clear()
    for name, value in headers:
        # A filter in front may have checked another one than the last.
        is_second = name in values and name in _CREDENTIAL_HEADERS
        values[name] = values[name] + _NEXT + value if is_second else value
    return values


def credential_of(headers: Mapping[bytes, bytes]) -> bytes | None:
    """Return the key or token of `Authorization`, or of `x-api-key` as clients of messages.

    Raises RequestError where a header comes twice, or the two headers have keys that differ.
    """
    authorization, key = (headers.get(name, b"") for name in _CREDENTIAL_HEADERS)
    scheme, _, credential = authorization.partition(b" ")
    credential, key = credential.strip(), key.strip()
    if scheme.lower() != b"bearer":
        credential = key
    if _NEXT in authorization + key or (key and key != credential):
        raise RequestError(RequestReason.AMBIGUOUS_KEY)
    return credential if 0 < len(credential) <= _MAX_CREDENTIAL_BYTES else None
