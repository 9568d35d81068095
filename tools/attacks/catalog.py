"""The attacks on a gateway, by their names."""

import json
from dataclasses import dataclass

from attacks import engines, sending
from attacks.engines import MIB, Script, answering, silent, without_end
from attacks.sending import Attack, posting
from tests.gateway.harness import CHAT, COMPLETION, STREAM, a_delta

FEW_DESCRIPTORS = 1024


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


_LARGE = {**CHAT, "user": "x" * (8 * MIB)}
_MANY_ONES = b'{"model":"chat","prompt":[' + b"1," * (7 * MIB) + b"1]}"
_ESCAPES = b'{"model":"chat","messages":"' + b"\\u0041" * (5 * MIB) + b'"}'
_FORGED = {**COMPLETION, "usage": {"prompt_tokens": 10**9, "completion_tokens": 10**9}}


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
}

ATTACKS = _ORDINARY
