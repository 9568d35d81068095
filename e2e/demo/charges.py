"""A tenant's hundred dollars, spent at another's model: refused at their end, raised, resumed."""

import time
from collections.abc import Awaitable, Callable
from datetime import timedelta
from decimal import Decimal
from typing import Any

import httpx
import openai

from demo.cluster import InstalledCluster, Json, Ref, StepError, until
from demo.tenants import apply_spec
from tessera.adapters.clock import now

LIMIT, AMOUNT, RAISE = "hundred", Decimal(100), Decimal(50)
_PRICES = "demo"
# An answer costs some dollars, so that a hundred are spent in a few of them.
_INPUT, _OUTPUT = "200", "80000"
_MAX_REQUESTS = 200
_PATIENCE = 60.0
# After `tessera budget raise` has written it.
_RESUMED_SECONDS = 2.0

Ask = Callable[[], Awaitable[Any]]


async def show_charges(
    cluster: InstalledCluster, guest: str, client: openai.AsyncOpenAI, ask: Ask
) -> None:
    """Spend a limit at the model of another tenant by `ask`, raise it, and go on.

    The price was set before.
    """
    await _set_limits(cluster, guest, [_charge_limit()])
    first = await _wait_for_price(ask)
    more, error = await _spend(ask)
    spent = first + more
    if spent > AMOUNT:
        raise StepError(f"{spent} USD were charged, and the limit is {AMOUNT}")
    if error.status_code != 429 or error.code != "budget_exceeded":
        raise StepError(f"a limit that is used up is answered by {error}")
    body: Any = error.body
    cluster.say(f"{spent} of {AMOUNT} USD charged, then {error.status_code}: {body['message']}")
    left = await _read_budget(client)
    cluster.say(f"GET /v1/budget: {left}")
    end = f"{now() + timedelta(minutes=10):%Y-%m-%dT%H:%M:%SZ}"
    command = ("budget", "raise", guest, LIMIT, "--by", str(RAISE), "--until", end)
    await cluster.tessera(*command, "--reason", "demo")
    raised = time.monotonic()
    await until(lambda: _is_answered(ask), bool, "the raised limit is spent", _PATIENCE)
    seconds = time.monotonic() - raised
    cluster.say(f"tessera {' '.join(command[:-2])}: answered again after {seconds:.1f} s")
    if seconds > _RESUMED_SECONDS:
        cluster.say(f"that is more than {_RESUMED_SECONDS:g} s, on a busy machine")
    await _set_limits(cluster, guest, [])


def _charge_limit() -> Json:
    return {"name": LIMIT, "window": "Month", "amount": str(AMOUNT), "basis": "Charge"}


async def set_price(cluster: InstalledCluster, tenant: str, model: str) -> None:
    """Price a model for a tenant; the price counts a minute after gateways saw it."""
    entry = {
        "from": f"{now():%Y-%m-%d}",
        "models": [model],
        "tenants": [tenant],
        "input": _INPUT,
        "output": _OUTPUT,
    }
    spec = {"currency": "USD", "entries": [entry]}
    await apply_spec(cluster, "PriceList", "pricelists", Ref("", _PRICES), spec)


async def _set_limits(cluster: InstalledCluster, tenant: str, more: list[Json]) -> None:
    path = f"/apis/tessera.dev/v1alpha1/tenantbudgets/{tenant}"
    limits = [{"window": "Month", "amount": "100000"}, *more]
    await cluster.api.patch(path, {"spec": {"limits": limits}})


async def _wait_for_price(ask: Ask) -> Decimal:
    """Return the first charge of an answer: an entry counts a minute after it was seen."""

    async def charge() -> str | None:
        try:
            response = await ask()
        except openai.APIStatusError:
            return None
        header: str | None = response.headers.get("x-tessera-charge")
        return header

    header = await until(charge, bool, "an answer is charged", 2 * _PATIENCE)
    return _amount(header or "")


async def _spend(ask: Ask) -> tuple[Decimal, openai.APIStatusError]:
    """Send requests until one is refused; return what the others were charged, and the refusal."""
    spent = Decimal(0)
    for _ in range(_MAX_REQUESTS):
        try:
            response = await ask()
        except openai.APIStatusError as error:
            return spent, error
        spent += _amount(response.headers["x-tessera-charge"])
    raise StepError(f"{_MAX_REQUESTS} requests were charged {spent} USD and none was refused")


def _amount(header: str) -> Decimal:
    amount, _, _ = header.partition(" ")
    return Decimal(amount)


async def _is_answered(ask: Ask) -> bool:
    try:
        await ask()
    except openai.APIStatusError:
        return False
    return True


async def _read_budget(client: openai.AsyncOpenAI) -> str:
    async with httpx.AsyncClient() as http:
        headers = {"Authorization": f"Bearer {client.api_key}"}
        response = await http.get(f"{client.base_url}budget", headers=headers)
    if response.status_code != 200:
        raise StepError(f"GET /v1/budget: {response.status_code} {response.text}")
    return response.text.strip()
