"""A model is served, scales with its load, sleeps and wakes."""

from demo import scale as scale_step
from demo.cluster import Json, condition
from demo.load import steady_load
from demo.serve import chat
from promises.installation import PATIENCE_SECONDS, gateway_for
from scenarios.actions import ScenarioNamespace
from scenarios.gateway import HELLO, answered
from tessera.resources.api_resources import PODS
from world.testing import eventually

_IDLE = {"minReplicas": 0, "maxReplicas": 1, "idle": {"after": "30s"}}


async def serve(namespace: ScenarioNamespace) -> None:
    """A service becomes Ready, streams an answer, and says its instance, price and ITL."""
    ref = await namespace.apply_service(replicas=1)
    await namespace.wait_until_ready(within=PATIENCE_SECONDS)
    await chat(namespace.cluster, ref, ref.name)

    async def status_has_instance_price_and_itl() -> None:
        status = await namespace.service_status()
        assert status["variant"]["name"] == "slices-1g-10gb"
        assert status["cost"]["perHour"] == "0.2397"
        assert float(status["cost"]["perMillionTokens"]) > 0
        # The ITL is measured of a hundred requests and more.
        itl = status.get("speed", {}).get("itlMs")
        assert itl is not None, status
        assert float(itl["predicted"]) > 0
        assert float(itl["measured"]) > 0

    base = await namespace.cluster.address(ref)
    async with steady_load(
        base, ref.name, clients=2, tokens=4, prompt_tokens=20, pause=0.2
    ) as load:
        await eventually(status_has_instance_price_and_itl, within=PATIENCE_SECONDS)
    assert load.failures == []


async def scale(namespace: ScenarioNamespace) -> None:
    """Replicas come with the load and leave after it, for reasons in the status."""
    ref = await namespace.apply_service(scaling=scale_step.SCALING, engine={"maxNumSeqs": 4})
    await namespace.wait_until_ready(within=PATIENCE_SECONDS)
    await scale_step.run(namespace.cluster, ref)


async def sleep_and_wake(namespace: ScenarioNamespace) -> None:
    """An idle service has no replica, and starts for a request, which is answered."""
    await namespace.apply_service(scaling=_IDLE)

    async def it_sleeps() -> None:
        service = await namespace.cluster.service(namespace.ref("chat"))
        assert condition(service, "Ready").get("reason") == "ScaledToZero"
        assert service["status"]["replicas"] == 0
        assert await namespace.list_objects(PODS) == []

    async def status_says_that_it_woke() -> None:
        scaling: Json = (await namespace.service_status())["scaling"]
        assert [change["replicas"] for change in scaling["recentChanges"]][-2:] == [0, 1]

    async with gateway_for(namespace) as gateway:
        await answered(gateway)
        await eventually(it_sleeps, within=PATIENCE_SECONDS)
        async with gateway.client() as client:
            answer = await client.chat.completions.create(
                model="chat", messages=HELLO, max_tokens=4
            )
        assert answer.choices[0].message.content
        await eventually(status_says_that_it_woke, within=PATIENCE_SECONDS)
