"""Conversations of several tenants, and how much of their prompts engines found in their caches."""

import asyncio
import json
import random
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import cycle, islice

import aiohttp

from demo.cluster import Json, Say, StepError
from tessera_lab.sim.bodies import ConversationBody, chat_prompt
from tessera_lab.sim.text import CHARACTERS_PER_TOKEN, prefix_hashes

_BLOCK_TOKENS = 16
_SECONDS = 120
# What a demo shows.
_SHOWN, _SHOWN_TURNS, _SHOWN_CLIENTS, _MIN_OF_BEST = 12, 4, 4, 0.8
_TEXT = """
tessera mosaic floor wall stone glass gold color pattern border artist workshop church villa sea
fish bird lion vine leaf circle square line shadow light mortar lime sand hammer hand eye
"""
_WORDS = _TEXT.split()


@dataclass(frozen=True, slots=True, kw_only=True)
class ConversationTenant:
    """A tenant whose conversations all begin with its system prompt."""

    name: str
    key: str
    system_prompt: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Conversation:
    """What a user asks; each question is sent with all before it and the answers to them."""

    number: int
    tenant: ConversationTenant
    questions: Sequence[str]


@dataclass(slots=True, kw_only=True)
class ConversationTurn:
    """One request of a conversation, as its client sees it."""

    conversation: Conversation
    sent_at: float
    """Monotonic seconds."""
    sent_before_tokens: int
    """Beginning of the prompt that its tenant had sent before, in blocks of an engine."""
    prompt_tokens: int = 0
    cached_tokens: int = 0
    """Those that the engine found in its cache."""
    output_tokens: int = 0
    replica: str = ""
    ttft: float | None = None
    """Of a stream."""
    answer: str = ""
    failure: str = ""

    async def read(self, response: aiohttp.ClientResponse) -> None:
        """Read a response to its end."""
        self.replica = response.headers.get("x-tessera-replica", "")
        if response.status != 200:
            self.failure = f"{response.status} {await response.text()}"
        elif response.content_type == "application/json":
            body = await response.json()
            self.answer = body["choices"][0]["message"]["content"]
            self._take_usage(body["usage"])
        else:
            async for line in response.content:
                if line.startswith(b"data: {"):
                    self._take_event(json.loads(line.removeprefix(b"data: ")))

    def _take_event(self, event: Json) -> None:
        if "error" in event:
            self.failure = str(event["error"])
        for choice in event.get("choices", ()):
            piece = choice["delta"].get("content") or ""
            if piece and self.ttft is None:
                self.ttft = time.monotonic() - self.sent_at
            self.answer += piece
        if event.get("usage"):
            self._take_usage(event["usage"])

    def _take_usage(self, usage: Json) -> None:
        self.prompt_tokens, self.output_tokens = usage["prompt_tokens"], usage["completion_tokens"]
        self.cached_tokens = (usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0


@dataclass(frozen=True, slots=True)
class CachedShares:
    """Cached prompt tokens of some turns."""

    turns: int
    prompt_tokens: int
    cached: float
    """Part of the prompt tokens that engines found in their caches."""
    best: float
    """The part if each engine had all prompts that were sent before, to whichever."""

    @property
    def of_best(self) -> float:
        return self.cached / self.best


def cached_shares(turns: Sequence[ConversationTurn]) -> CachedShares:
    """Return the shares of all answered turns."""
    answered = [turn for turn in turns if not turn.failure]
    prompt_tokens = sum(turn.prompt_tokens for turn in answered)
    return CachedShares(
        len(answered),
        prompt_tokens,
        sum(turn.cached_tokens for turn in answered) / prompt_tokens,
        sum(turn.sent_before_tokens for turn in answered) / prompt_tokens,
    )


def replicas_by_conversation(turns: Iterable[ConversationTurn]) -> list[set[str]]:
    """Return the replicas that each conversation had its answers of."""
    replicas = defaultdict[int, set[str]](set)
    for turn in turns:
        replicas[turn.conversation.number].add(turn.replica)
    return list(replicas.values())


def random_text(rng: random.Random, tokens: int) -> str:
    """Return words of about so many tokens of the simulated engine."""
    length, words = tokens * CHARACTERS_PER_TOKEN, list[str]()
    while length > 0:
        words.append(rng.choice(_WORDS))
        length -= len(words[-1]) + 1
    return " ".join(words)


def random_conversations(
    tenants: Sequence[ConversationTenant], turns: tuple[int, int], seed: int
) -> Iterator[Conversation]:
    """Yield conversations of all tenants in turn; a first question has a document of its own."""
    rng = random.Random(seed)  # noqa: S311 - not a secret
    for number, tenant in enumerate(cycle(tenants)):
        lengths = [(300, 1200), *[(30, 150)] * (rng.randint(*turns) - 1)]
        questions = [random_text(rng, rng.randint(*length)) for length in lengths]
        yield Conversation(number=number, tenant=tenant, questions=questions)


@dataclass(kw_only=True)
class ConversationClients:
    """Clients that hold conversations, each one after the other."""

    base: str
    """URL of the gateway with `/v1`."""
    answer_tokens: int
    streams: bool = True
    alike: bool = True
    """Whether a gateway can see that prompts begin alike: else each body has a name of its own
    before them, which the template of the engine does not render."""
    turns: list[ConversationTurn] = field(default_factory=list)
    _names_sent: defaultdict[str, set[int]] = field(default_factory=lambda: defaultdict(set))

    async def hold(self, conversations: Iterable[Conversation], clients: int) -> None:
        """Hold all conversations, as many at once as there are clients."""
        waiting = iter(conversations)
        timeout = aiohttp.ClientTimeout(total=_SECONDS)
        connector = aiohttp.TCPConnector(limit=0)
        async with (
            aiohttp.ClientSession(connector=connector, timeout=timeout) as session,
            asyncio.TaskGroup() as tasks,
        ):
            for _ in range(clients):
                tasks.create_task(self._hold_each(session, waiting))

    async def _hold_each(
        self, session: aiohttp.ClientSession, waiting: Iterator[Conversation]
    ) -> None:
        for conversation in waiting:
            messages = [{"role": "system", "content": conversation.tenant.system_prompt}]
            for question in conversation.questions:
                messages.append({"role": "user", "content": question})
                answer = await self._ask(session, conversation, messages)
                messages.append({"role": "assistant", "content": answer})

    async def _ask(
        self, session: aiohttp.ClientSession, conversation: Conversation, messages: list[Json]
    ) -> str:
        """Send one turn; return the text of its answer."""
        tenant = conversation.tenant
        turn = ConversationTurn(
            conversation=conversation,
            sent_at=time.monotonic(),
            sent_before_tokens=self._sent_before(tenant.name, messages),
        )
        self.turns.append(turn)
        first, *rest = messages
        if not self.alike:
            first = {"name": f"{len(self.turns)}-{turn.sent_at}", **first}
        body = {
            "model": "chat",
            "messages": [first, *rest],
            "max_tokens": self.answer_tokens,
            "ignore_eos": True,
            **({"stream": True, "stream_options": {"include_usage": True}} if self.streams else {}),
        }
        headers = {"Authorization": f"Bearer {tenant.key}"}
        try:
            async with session.post(
                f"{self.base}/chat/completions", json=body, headers=headers
            ) as response:
                await turn.read(response)
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            turn.failure = repr(error)
        if not turn.failure and turn.output_tokens != self.answer_tokens:
            turn.failure = f"ended after {turn.output_tokens} of {self.answer_tokens} tokens"
        return turn.answer

    def _sent_before(self, tenant: str, messages: list[Json]) -> int:
        """Count the tokens of a prompt's beginning that its tenant sent before, and note it."""
        prompt = chat_prompt(ConversationBody.model_validate({"messages": messages}))
        names, sent = prefix_hashes(prompt.blocks(_BLOCK_TOKENS)), self._names_sent[tenant]
        blocks = next((index for index, name in enumerate(names) if name not in sent), len(names))
        sent.update(names)
        # An engine computes the last token always.
        return min(blocks, (prompt.tokens - 1) // _BLOCK_TOKENS) * _BLOCK_TOKENS


async def show_conversations(
    base: str, keys: Mapping[str, str], say: Say
) -> Sequence[ConversationTurn]:
    """Check that conversations of some tenants find in caches what they sent before."""
    rng = random.Random(1)  # noqa: S311 - not a secret
    tenants = [
        ConversationTenant(name=name, key=key, system_prompt=random_text(rng, 600))
        for name, key in keys.items()
    ]
    load = ConversationClients(base=base, answer_tokens=20)
    conversations = random_conversations(tenants, (_SHOWN_TURNS, _SHOWN_TURNS), seed=1)
    await load.hold(islice(conversations, _SHOWN), _SHOWN_CLIENTS)
    failures = [turn.failure for turn in load.turns if turn.failure]
    if failures:
        raise StepError(f"{len(failures)} turns failed, first: {failures[0]}")
    shares, replicas = cached_shares(load.turns), replicas_by_conversation(load.turns)
    stayed = sum(len(names) == 1 for names in replicas)
    say(
        f"{_SHOWN} conversations of {_SHOWN_TURNS} turns: {shares.cached:.0%} of "
        f"{shares.prompt_tokens} prompt tokens were in caches, {shares.best:.0%} had been sent "
        f"before; {stayed} conversations stayed at one replica"
    )
    for replica, turns in sorted(Counter(turn.replica for turn in load.turns).items()):
        say(f"{replica} answered {turns} turns")
    if shares.of_best < _MIN_OF_BEST:
        raise StepError(f"caches had {shares.of_best:.0%} of what had been sent before")
    return load.turns
