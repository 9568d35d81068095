"""Two tenants share models behind one URL, by keys, limits and fair queues."""

import asyncio
import contextlib
import json
import time
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import openai
from openai.types.chat import ChatCompletionMessageParam

from demo.charges import set_price, show_charges
from demo.cluster import NAMESPACE, InstalledCluster, Json, Ref, StepError, condition, until
from demo.conversations import ConversationTurn, show_conversations
from demo.lost_node import SPOT_SPEC, lose_node
from demo.tenants import MODEL, apply_spec, create_key, gateway_address
from tessera.domain.names import keys_namespace

# The owner of the models, and the guest who uses one of them.
OWNER, GUEST = "team-a", "team-b"
SERVICE, SLEEPER, SPOT = Ref(OWNER, "chat"), Ref(OWNER, "night"), Ref(OWNER, "spot")
PER_MINUTE = 5
GREEDY_CLIENTS, MODEST_CLIENTS = 60, 2
_ANSWER_TOKENS = 100
_SHOWN_LINES = 6
# For what takes seconds where nothing else runs.
_PATIENCE = 120.0
_FAIRNESS_SECONDS = 10.0
# A new replica gets so much of the requests in so many seconds after it is ready.
_MIN_SHARE, _SHARE_SECONDS = 0.4, 10.0
_MESSAGES: list[ChatCompletionMessageParam] = [
    {"role": "user", "content": "What does a tessera do in a mosaic?"}
]


@dataclass(frozen=True, slots=True)
class Answer:
    """What the gateway said of a request that it answered."""

    tenant: str
    sent_at: float
    """Monotonic seconds."""
    replica: str
    queue_ms: int


@dataclass(frozen=True, slots=True)
class Gateway:
    """The pod of the gateway, and a client of each tenant."""

    cluster: InstalledCluster
    address: str
    clients: dict[str, openai.AsyncOpenAI]
    answers: list[Answer] = field(default_factory=list)
    turns: list[ConversationTurn] = field(default_factory=list)
    """Those of conversations."""

    @property
    def metrics_port(self) -> tuple[str, str]:
        """Return the option of commands that read the gateway's metrics port."""
        return ("--gateway", f"http://{self.address}:8080")

    @property
    def keys(self) -> dict[str, str]:
        """Return the key of each tenant."""
        return {tenant: client.api_key for tenant, client in self.clients.items()}

    async def ask(self, tenant: str, model: str, client: openai.AsyncOpenAI | None = None) -> Any:
        """Send a request as a tenant; return the response with its headers."""
        sent_at = time.monotonic()
        client = client or self.clients[tenant]
        response = await client.chat.completions.with_raw_response.create(
            model=model, messages=_MESSAGES, max_tokens=_ANSWER_TOKENS
        )
        headers = response.headers
        replica, queue_ms = headers["x-tessera-replica"], int(headers["x-tessera-queue-ms"])
        self.answers.append(Answer(tenant, sent_at, replica, queue_ms))
        return response

    async def refusal(self, tenant: str, model: str) -> openai.APIStatusError | None:
        """Send a request; return how it was refused, or None for an answer."""
        try:
            await self.ask(tenant, model)
        except openai.APIStatusError as error:
            return error
        return None

    async def wait_for_answer(self, tenant: str, model: str) -> float:
        """Send requests until one is answered; return the seconds until then."""
        begun = time.monotonic()
        await until(
            lambda: self.refusal(tenant, model),
            lambda refusal: refusal is None,
            f"{tenant} gets an answer of {model}",
            _PATIENCE,
        )
        return time.monotonic() - begun


async def run(cluster: InstalledCluster) -> str:
    """Show keys, sharing, limits, charges, fairness, scaling, caches, sleep, and a lost node."""
    address = await gateway_address(cluster)
    await _serve(cluster)
    async with _connect(cluster, address) as gateway:
        await _share(gateway)
        await _limit(gateway)
        await show_charges(
            cluster, GUEST, gateway.clients[GUEST], lambda: gateway.ask(GUEST, SERVICE.name)
        )
        async with _greedy_load(gateway):
            await _show_requests(gateway)
            await _compare_queues(gateway)
            await _scale_out(gateway)
        base, keys = f"http://{address}:8443/v1", gateway.keys
        gateway.turns.extend(await show_conversations(base, keys, cluster.say))
        await _wake(gateway)
        await _show_usage(gateway)
        await _lose_node(gateway)
        return (
            f"{len(gateway.answers) + len(gateway.turns)} requests of {OWNER} and {GUEST} were "
            f"answered, and the usage records have each of them once."
        )


async def _serve(cluster: InstalledCluster) -> None:
    """Two services of one tenant, the second of which may sleep, and a second tenant."""
    for tenant in (OWNER, GUEST):
        namespace = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": tenant}}
        await cluster.api.apply(f"/api/v1/namespaces/{tenant}", namespace, "kubectl")
        await apply_spec(cluster, "TenantBudget", "tenantbudgets", Ref("", tenant), _budget(tenant))
    sleeping = {"minReplicas": 0, "maxReplicas": 1, "idle": {"after": "30s"}}
    specs: dict[Ref, Json] = {
        SERVICE: {"replicas": 1, "engine": {"maxNumSeqs": 16}},
        SLEEPER: {"scaling": sleeping},
    }
    for ref, spec in specs.items():
        body = {"model": {"uri": MODEL}, **spec}
        await apply_spec(cluster, "InferenceService", "inferenceservices", ref, body)
    await set_price(cluster, GUEST, SERVICE.name)
    for ref in specs:
        await _wait_for_ready(cluster, ref, "CompletionSucceeded")


def _budget(tenant: str) -> Json:
    return {
        "owner": f"anna@{tenant}.example",
        "tenant": {"namespaces": [tenant]},
        "limits": [{"window": "Month", "amount": "100000"}],
        "publishing": [{"names": [SERVICE.name], "tenants": [GUEST]}] if tenant == OWNER else [],
    }


async def _wait_for_ready(cluster: InstalledCluster, ref: Ref, reason: str) -> None:
    await until(
        lambda: cluster.service(ref),
        lambda body: condition(body, "Ready").get("reason") == reason,
        f"{ref} is {reason}",
        _PATIENCE,
    )


@contextlib.asynccontextmanager
async def _connect(cluster: InstalledCluster, address: str) -> AsyncIterator[Gateway]:
    """Create a key for each tenant, and wait until the gateway knows it."""
    async with contextlib.AsyncExitStack() as stack:
        clients = {}
        for tenant in (OWNER, GUEST):
            key = await create_key(cluster, tenant)
            secret = f"tessera-keys-{tenant}"
            if key in await cluster.run(
                "kubectl", "-n", keys_namespace(NAMESPACE), "get", "secret", secret, "-oyaml"
            ):
                raise StepError(f"Secret/{secret} has the key itself")
            clients[tenant] = await stack.enter_async_context(_client(address, key))
        gateway = Gateway(cluster, address, clients)
        await gateway.wait_for_answer(OWNER, SERVICE.name)
        async with _client(address, "tsk-unknown") as stranger:
            try:
                await stranger.models.list()
            except openai.AuthenticationError as error:
                cluster.say(f"an unknown key gets {error.status_code}: {_text(error)}")
            else:
                raise StepError("an unknown key may list the models")
        yield gateway


def _client(address: str, key: str) -> openai.AsyncOpenAI:
    base = f"http://{address}:8443/v1"
    return openai.AsyncOpenAI(base_url=base, api_key=key, max_retries=0, timeout=120)


def _text(error: openai.APIStatusError) -> str:
    body: Any = error.body
    return str(body["message"])


async def _share(gateway: Gateway) -> None:
    """Show that the guest knows nothing of the model until its owner shares it."""
    cluster = gateway.cluster
    refusal = await until(
        lambda: gateway.refusal(GUEST, SERVICE.name),
        lambda error: error is not None and error.status_code != 401,
        f"the key of {GUEST} is known",
        _PATIENCE,
    )
    if refusal.status_code != 404:
        raise StepError(f"{GUEST} asks for a model of {OWNER} and gets {refusal}")
    cluster.say(f"{GUEST} gets 404: {_text(refusal)}")
    await cluster.patch(SERVICE, {"access": {"tenants": [GUEST]}})
    seconds = await gateway.wait_for_answer(GUEST, SERVICE.name)
    models = [model.id async for model in gateway.clients[GUEST].models.list()]
    cluster.say(
        f"spec.access.tenants: [{GUEST}] on {SERVICE}: answered after {seconds:.1f} s by "
        f"{gateway.answers[-1].replica}; {GUEST} may use {', '.join(models)}"
    )
    if models != [SERVICE.name]:
        raise StepError(f"{GUEST} may use {models}, and only {SERVICE.name} is shared")


async def _limit(gateway: Gateway) -> None:
    """Limit the guest to a few requests a minute, and lift the limit again."""
    cluster = gateway.cluster
    await _limit_guest(cluster, {"requests": {"perMinute": PER_MINUTE}})

    async def limit_in_headers() -> str | None:
        response = await gateway.ask(GUEST, SERVICE.name)
        limit: str | None = response.headers.get("x-ratelimit-limit-requests")
        return limit

    await until(limit_in_headers, bool, "responses show the limit", _PATIENCE)
    refusals = [await gateway.refusal(GUEST, SERVICE.name) for _ in range(2 * PER_MINUTE)]
    limited = [error for error in refusals if error is not None]
    answered = len(refusals) - len(limited)
    if not limited or answered > PER_MINUTE:
        raise StepError(f"{answered} of {len(refusals)} requests passed {PER_MINUTE} a minute")
    error = limited[0]
    if error.status_code != 429 or int(error.response.headers["retry-after"]) < 1:
        raise StepError(f"a limit is answered by {error}")
    cluster.say(
        f"{PER_MINUTE} requests a minute: {error.status_code} {_text(error)} "
        f"(Retry-After: {error.response.headers['retry-after']})"
    )
    if await gateway.refusal(OWNER, SERVICE.name) is not None:
        raise StepError(f"the limit of {GUEST} holds for {OWNER} too")
    await _limit_guest(cluster, None)
    seconds = await gateway.wait_for_answer(GUEST, SERVICE.name)
    cluster.say(f"without the limit {GUEST} is answered after {seconds:.1f} s")


async def _limit_guest(cluster: InstalledCluster, limits: Json | None) -> None:
    path = f"/apis/tessera.dev/v1alpha1/tenantbudgets/{GUEST}"
    await cluster.api.patch(path, {"spec": {"rateLimits": limits}})


@contextlib.asynccontextmanager
async def _greedy_load(gateway: Gateway) -> AsyncIterator[None]:
    """Let many clients of the guest and few of the owner send requests, each on its connection."""
    ended = asyncio.Event()

    async def run_client(tenant: str) -> None:
        connection = openai.DefaultAsyncHttpxClient()
        async with gateway.clients[tenant].copy(http_client=connection) as client:
            while not ended.is_set():
                await gateway.ask(tenant, SERVICE.name, client)

    clients = {GUEST: GREEDY_CLIENTS, OWNER: MODEST_CLIENTS}
    tasks = [
        asyncio.create_task(run_client(tenant))
        for tenant, count in clients.items()
        for _ in range(count)
    ]
    try:
        yield
    finally:
        ended.set()
        results = await asyncio.gather(*tasks, return_exceptions=True)
    failures = [result for result in results if result is not None]
    if failures:
        raise StepError(f"{len(failures)} clients failed, first: {failures[0]!r}")


async def _show_requests(gateway: Gateway) -> None:
    """Show what runs and waits at the gateway."""
    await _wait_for_answers(gateway, 2 * GREEDY_CLIENTS)
    command = ("top", "requests")
    lines = (await gateway.cluster.tessera(*command, *gateway.metrics_port)).splitlines()
    missing = [word for word in ("Queued", "Running", GUEST) if word not in "\n".join(lines)]
    if missing:
        raise StepError(f"tessera top requests does not show {missing}: {lines}")
    rest = f"... and {len(lines) - _SHOWN_LINES} more"
    gateway.cluster.say("\n".join(["tessera top requests", *lines[:_SHOWN_LINES], rest]))


async def _compare_queues(gateway: Gateway) -> None:
    """Check that what the tenant with few requests has waiting waits less than the greedy one's.

    Of the greedy one some wait long, so that the rest is in time.
    """
    await asyncio.sleep(_FAIRNESS_SECONDS)
    command = ("top", "requests", "-o", "json")
    listing = json.loads(await gateway.cluster.tessera(*command, *gateway.metrics_port))
    ages: dict[str, list[float]] = {OWNER: [], GUEST: []}
    for request in listing["requests"]:
        if request["phase"] == "Queued":
            ages[request["tenant"]].append(request["ageSeconds"])
    oldest = {tenant: max(waiting, default=0.0) for tenant, waiting in ages.items()}
    gateway.cluster.say(
        f"of {GUEST}, with {GREEDY_CLIENTS} clients, {len(ages[GUEST])} requests wait, the oldest "
        f"for {oldest[GUEST]:.1f} s; of {OWNER}, with {MODEST_CLIENTS}, {len(ages[OWNER])}, the "
        f"oldest for {oldest[OWNER]:.1f} s"
    )
    if not ages[GUEST] or oldest[OWNER] > oldest[GUEST] / 4:
        raise StepError(f"{OWNER} waits {oldest[OWNER]:.1f} s behind the requests of {GUEST}")


async def _wait_for_answers(gateway: Gateway, count: int) -> None:
    """Wait for so many answers from now on, so that every client has its connection."""
    before = len(gateway.answers)

    async def new_answers() -> int:
        return len(gateway.answers) - before

    await until(new_answers, lambda new: new >= count, f"{count} answers", _PATIENCE)


async def _answers_of(gateway: Gateway, seconds: float) -> list[Answer]:
    """Return the answers to the requests that are sent in the next seconds."""
    begun = time.monotonic()
    await asyncio.sleep(seconds)
    await _wait_for_answers(gateway, GREEDY_CLIENTS + MODEST_CLIENTS)
    return [answer for answer in gateway.answers if begun <= answer.sent_at < begun + seconds]


async def _scale_out(gateway: Gateway) -> None:
    """Add a replica, which takes its share of clients that keep their connections."""
    cluster, before = gateway.cluster, {answer.replica for answer in gateway.answers}
    await cluster.run(
        *("kubectl", "-n", SERVICE.namespace, "scale"), f"tsvc/{SERVICE.name}", "--replicas=2"
    )
    await until(
        lambda: cluster.service(SERVICE),
        lambda body: body["status"].get("readyReplicas") == 2,
        "the second replica is ready",
        _PATIENCE,
    )
    answers = await _answers_of(gateway, _SHARE_SECONDS)
    new = [answer for answer in answers if answer.replica not in before]
    share = len(new) / len(answers)
    cluster.say(
        f"a second replica: it got {len(new)} of the {len(answers)} requests ({share:.0%}) of the "
        f"{_SHARE_SECONDS:.0f} s after it was ready, on the connections of before"
    )
    if share < _MIN_SHARE:
        raise StepError(f"the new replica got {share:.0%} of the requests")


async def _wake(gateway: Gateway) -> None:
    """Wait until the second service sleeps, and wake it by a request."""
    cluster = gateway.cluster
    await _wait_for_ready(cluster, SLEEPER, "ScaledToZero")
    await until(
        lambda: cluster.service(SLEEPER),
        lambda body: body["status"].get("replicas") == 0,
        f"{SLEEPER} has no replica",
        _PATIENCE,
    )
    message = condition(await cluster.service(SLEEPER), "Ready")["message"]
    cluster.say(f"{SLEEPER} has no replica: {message}")
    sent_at = time.monotonic()
    await gateway.ask(OWNER, SLEEPER.name)
    answer = gateway.answers[-1]
    cluster.say(
        f"a request woke it: answered by {answer.replica} after {time.monotonic() - sent_at:.1f} s"
    )


async def _lose_node(gateway: Gateway) -> None:
    """Serve on spot nodes, of which one is lost under streams."""
    cluster = gateway.cluster
    body = {"model": {"uri": MODEL}, **SPOT_SPEC}
    await apply_spec(cluster, "InferenceService", "inferenceservices", SPOT, body)
    await lose_node(
        cluster, SPOT, f"http://{gateway.address}:8443/v1", gateway.clients[OWNER].api_key
    )


async def _show_usage(gateway: Gateway) -> None:
    """Check that the usage records have every answer, once."""
    cluster = gateway.cluster
    command = ("usage", "--by", "tenant,key,model")
    answered = Counter(answer.tenant for answer in gateway.answers)
    answered.update(turn.conversation.tenant.name for turn in gateway.turns)

    async def recorded() -> Counter[str]:
        report = json.loads(
            await cluster.tessera(*command, *gateway.metrics_port, "--output", "json")
        )
        requests = Counter[str]()
        for row in report["rows"]:
            requests[row["tenant"]] += row["requests"]
        return requests

    await until(recorded, lambda requests: requests == answered, f"usage of {answered}", _PATIENCE)
    cluster.say(
        f"tessera {' '.join(command)}\n{await cluster.tessera(*command, *gateway.metrics_port)}"
    )
