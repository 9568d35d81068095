"""The attacks on a gateway, by their names."""

import json
from dataclasses import dataclass

from attacks import engines, sending, sockets, streams
from attacks.engines import MIB, Script, answering, silent, without_end
from attacks.sending import Attack, posting
from tests.gateway.harness import CHAT, COMPLETION, STREAM, a_delta

FEW_DESCRIPTORS = 1024
# As in a container at the defaults of a node, and the clients that a gateway then has.
DESCRIPTORS, CLIENTS = 20_000, 9_872


@dataclass(frozen=True, slots=True, kw_only=True)
class HostileScene:
    """What attacks, and the gateway that it attacks."""

    engine: Script = silent
    """Of the attacker's model."""
    clients: int = 4
    attack: Attack = sending.wait
    """Again and again, by each client."""
    descriptors: int = FEW_DESCRIPTORS
    """Of the gateway."""
    replicas: int = 1
    """Of the attacker's model; more go on with each other's streams."""
    models: int = 1
    """That the attacker may list."""
    leaves: bool = False
    """Its first replica leaves after the beginning, and its streams may move."""
    shared: bool = False
    """The bystander may use the attacker's model as well."""
    tls: bool = False
    most_mib: int = 512
    """What the gateway may take of memory."""


_LARGE = {**CHAT, "user": "x" * (8 * MIB)}
_MANY_ONES = b'{"model":"chat","prompt":[' + b"1," * (7 * MIB) + b"1]}"
_ESCAPES = b'{"model":"chat","messages":"' + b"\\u0041" * (5 * MIB) + b'"}'
_FORGED = {**COMPLETION, "usage": {"prompt_tokens": 10**9, "completion_tokens": 10**9}}


_PROMPT = {"model": "chat", "prompt": "go on", "return_token_ids": True, "max_tokens": 10**6}


def _nested(levels: int) -> bytes:
    """Return a request with a schema of so many levels."""
    schema = b'{"type":"object","properties":{"x":' * levels + b"{}" + b"}}" * levels
    request = json.dumps({**CHAT, "structured_outputs": {"json": 0}}).encode()
    return request.replace(b'"json": 0', b'"json":' + schema)


_ORDINARY = {
    "trailers": HostileScene(clients=2, attack=sending.trailers),
    "chunk extensions": HostileScene(clients=2, attack=sending.extensions),
    "offers to upgrade": HostileScene(attack=sending.upgrades),
    "blank lines": HostileScene(engine=without_end(b"\n\n" * 2**13), attack=posting(STREAM)),
    "comments": HostileScene(engine=without_end(b":\n\n" * 2**13), attack=posting(STREAM)),
    "fast tokens": HostileScene(engine=without_end(a_delta() * 64), attack=posting(STREAM)),
    "unread answers": HostileScene(
        engine=without_end(a_delta("x" * 2**14)), clients=60, attack=posting(STREAM, reads=False)
    ),
    "large whole answers": HostileScene(
        engine=answering(b" " * (60 * MIB)), clients=8, attack=posting(CHAT)
    ),
    "lists of tokens": HostileScene(engine=answering(b"{}"), clients=2, attack=posting(_MANY_ONES)),
    "escapes": HostileScene(engine=answering(b"{}"), attack=posting(_ESCAPES)),
    "unfinished bodies": HostileScene(clients=40, attack=sending.unfinished(30 * MIB)),
    "waiting bodies": HostileScene(clients=80, attack=posting(_LARGE)),
    "idle connections": HostileScene(clients=1200, attack=sending.idle),
    "pages": HostileScene(engine=engines.pages, clients=1),
    "forged usage": HostileScene(
        engine=answering(json.dumps(_FORGED).encode()), attack=posting(CHAT)
    ),
    "early leavers": HostileScene(engine=without_end(a_delta()), clients=8, attack=sending.leave),
    "unknown keys": HostileScene(attack=sending.unknown_keys),
    "large first events": HostileScene(
        engine=streams.endless(a_delta("x" * (3 * MIB))),
        clients=200,
        # A replica has 64 places.
        replicas=4,
        attack=posting(STREAM),
        # A quarter above the 228 MiB that were measured, of which 139 are those of a quiet gateway.
        most_mib=285,
    ),
    "statuses": HostileScene(engine=streams.statuses(), clients=8, attack=posting(CHAT)),
    "deep schemas": HostileScene(
        engine=answering(json.dumps(COMPLETION).encode()), attack=posting(_nested(900)), shared=True
    ),
    "lists of models": HostileScene(attack=sockets.listing(reads=True), models=3000),
    "unread lists of models": HostileScene(
        clients=300, attack=sockets.listing(reads=False), models=3000
    ),
}
_RESUMED = {
    "large heads": HostileScene(
        engine=streams.broken(streams.LARGE_HEAD, streams.SMALL_EVENTS, 100), replicas=4,
        attack=posting(STREAM),
    ),
    "heads again and again": HostileScene(
        engine=streams.broken(streams.HEAD, streams.SMALL_EVENTS, 1000), replicas=4,
        attack=posting(STREAM),
    ),
    "empty choices": HostileScene(
        engine=streams.broken(streams.EMPTY_CHOICES), replicas=4, attack=posting(STREAM)
    ),
    "many fields": HostileScene(
        engine=streams.broken(a_delta(), streams.MANY_FIELDS, 10), replicas=4,
        attack=posting(STREAM),
    ),
    "spaces": HostileScene(
        engine=streams.broken(streams.SPACES, streams.SPACES), replicas=4, attack=posting(STREAM)
    ),
    "tokens of streams": HostileScene(
        engine=streams.endless(streams.TOKEN_IDS), clients=120, replicas=2,
        attack=sending.posting(_PROMPT | {"stream": True}, path=b"/v1/completions"),
    ),
    "streams that cannot move": HostileScene(
        engine=streams.endless(streams.LONG_TEXT), clients=60, replicas=2, leaves=True,
        attack=posting(STREAM),
    ),
}  # fmt: skip


def _of_all_clients(attack: Attack, *, tls: bool = False) -> HostileScene:
    return HostileScene(clients=CLIENTS, attack=attack, descriptors=DESCRIPTORS, tls=tls)


_CROWDS = {
    "idle crowd": _of_all_clients(sending.idle),
    "headers without end": _of_all_clients(sockets.headers_without_end),
    "pipelined": HostileScene(clients=1000, attack=sockets.pipelined, descriptors=DESCRIPTORS),
    "handshakes": _of_all_clients(sockets.handshakes(spread=False), tls=True),
    "handshakes of many addresses": _of_all_clients(sockets.handshakes(spread=True), tls=True),
    "idle crowd, TLS": _of_all_clients(sending.idle, tls=True),
    "headers without end, TLS": _of_all_clients(sockets.headers_without_end, tls=True),
}

ATTACKS = {**_ORDINARY, **_RESUMED, **_CROWDS}
