"""How other routers choose a replica, by their published formulas and from what they see.

`published` are the settings of their authors, `grid` those that the bench tunes over. What a router
learns from events of the engines it sees at once here, and equal replicas take turns: both favor
it.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from tessera_lab.fleet.model import Router
from tessera_lab.fleet.observation import Settings
from tessera_lab.fleet.simulated_replica import SimulatedReplica


@dataclass(frozen=True, slots=True, kw_only=True)
class RoutedPrompt:
    """A prompt that is to be sent."""

    turn: int
    """Requests that were sent before it."""
    tokens: int
    names: Sequence[int]
    """Of its prefixes, as `EngineRequest.shared_prefixes`, without those of its answer."""
    prefix_tokens: int
    """Tokens that each name covers."""


Choose = Callable[[RoutedPrompt, Sequence[SimulatedReplica], Settings], SimulatedReplica]


@dataclass(frozen=True, slots=True, kw_only=True)
class RouterFamily:
    """A router with its knobs."""

    choose: Choose
    published: Settings
    grid: tuple[Settings, ...] = ()
    """Changes of `published` to tune over."""
    sees_caches: bool = False


def random_replica(
    prompt: RoutedPrompt, replicas: Sequence[SimulatedReplica], _: Settings
) -> SimulatedReplica:
    """Return any replica."""
    return replicas[int.from_bytes(_digest(str(prompt.turn))) % len(replicas)]


def least_requests(
    prompt: RoutedPrompt, replicas: Sequence[SimulatedReplica], _: Settings
) -> SimulatedReplica:
    """Return the replica with the fewest requests."""
    return min(_in_turn(prompt, replicas), key=lambda replica: replica.load)


def bounded_hash(
    prompt: RoutedPrompt, replicas: Sequence[SimulatedReplica], settings: Settings
) -> SimulatedReplica:
    """Return the first replica in the order of a prompt's hash that is not above the bound."""
    names = prompt.names[: max(1, int(settings["hashed_tokens"]) // prompt.prefix_tokens)]
    key = names[-1] if names else -prompt.turn
    load = sum(replica.load for replica in replicas)
    bound = settings["load_factor"] * (load + 1) / len(replicas)
    order = sorted(replicas, key=lambda replica: _digest(f"{key}/{replica.number}"))
    return next((each for each in order if each.load < bound), order[0])


def llm_d(
    prompt: RoutedPrompt, replicas: Sequence[SimulatedReplica], settings: Settings
) -> SimulatedReplica:
    """Return the replica with the highest weighted sum of scores, each from 0 to 1.

    `prefix`: the share of the prompt's blocks that it holds; `queue`: its waiting requests between
    the most and the fewest of all; `kv`: what is free of its KV cache; `active`: its requests
    relative to the most of all.
    """
    waiting = [replica.engine.waiting for replica in replicas]
    fewest, most = min(waiting), max(waiting)
    most_active = max(1, *(replica.load for replica in replicas))
    whole = max(1, len(prompt.names)) * prompt.prefix_tokens

    def score(replica: SimulatedReplica) -> float:
        engine = replica.engine
        queue = (most - engine.waiting) / (most - fewest) if most > fewest else 1.0
        return (
            settings["prefix"] * engine.cached_tokens(prompt.names) / whole
            + settings["queue"] * queue
            + settings["kv"] * (1 - engine.kv_usage)
            + settings["active"] * (1 - replica.load / most_active)
        )

    return max(_in_turn(prompt, replicas), key=score)


def dynamo(
    prompt: RoutedPrompt, replicas: Sequence[SimulatedReplica], settings: Settings
) -> SimulatedReplica:
    """Return the replica with the fewest blocks to compute and to keep, this prompt included.

    What is to compute is the prompt and what was sent and has no first token yet, less a credit for
    what the replica holds of the prompt; blocks that several requests use count once.
    """

    def cost(replica: SimulatedReplica) -> float:
        engine = replica.engine
        queued = replica.state.prefill_tokens + prompt.tokens
        prefill = queued - settings["overlap_credit"] * engine.cached_tokens(prompt.names)
        limits = engine.limits
        resident = (
            limits.blocks - 1 - engine.free_blocks
        ) * limits.block_size + engine.waiting_tokens
        resident += prompt.tokens - engine.held_tokens(prompt.names)
        return settings["prefill_scale"] * max(0.0, prefill) + resident

    return min(_in_turn(prompt, replicas), key=cost)


def _in_turn(
    prompt: RoutedPrompt, replicas: Sequence[SimulatedReplica]
) -> Sequence[SimulatedReplica]:
    first = prompt.turn % len(replicas)
    return (*replicas[first:], *replicas[:first])


def _digest(text: str) -> bytes:
    return hashlib.blake2b(text.encode(), digest_size=8).digest()


RIVALS: Mapping[Router, RouterFamily] = {
    Router.RANDOM: RouterFamily(choose=random_replica, published={}),
    Router.LEAST_REQUESTS: RouterFamily(choose=least_requests, published={}),
    # KubeAI's `PrefixHash`: 100 characters, 125 % of the mean load.
    Router.BOUNDED_HASH: RouterFamily(
        choose=bounded_hash,
        published={"hashed_tokens": 25, "load_factor": 1.25},
        grid=tuple(
            {"hashed_tokens": tokens, "load_factor": factor}
            for tokens in (256, 1408)
            for factor in (1.1, 1.25, 2.0)
        ),
    ),
    # The default profile of its router (and of the Gateway API Inference Extension before).
    Router.LLM_D: RouterFamily(
        choose=llm_d,
        published={"prefix": 3, "queue": 2, "kv": 2, "active": 0},
        grid=(
            *({"prefix": prefix} for prefix in (1.0, 6.0, 12.0)),
            *(
                {"prefix": prefix, "queue": 0.0, "kv": 0.0, "active": 2.0}
                for prefix in (1.0, 3.0, 6.0)
            ),
        ),
        sees_caches=True,
    ),
    Router.DYNAMO: RouterFamily(
        choose=dynamo,
        published={"prefill_scale": 1, "overlap_credit": 1},
        grid=tuple({"prefill_scale": scale} for scale in (0.25, 0.5, 2, 4, 16)),
        sees_caches=True,
    ),
}
