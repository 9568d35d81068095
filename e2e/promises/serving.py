"""A model is served, scales with its load, sleeps and wakes."""

from demo.load import steady_load
from demo.serve import chat
from promises.installation import PATIENCE_SECONDS, gateway_for
from scenarios.actions import ScenarioNamespace
from scenarios.gateway import HELLO, answered
from scenarios.scaling import recording
from tessera.resources.api_resources import PODS
from world.testing import eventually

# A small window, so that minutes become seconds, and small replicas, which few clients fill.
_SCALING = {"minReplicas": 1, "maxReplicas": 3, "scaleDown": {"stabilizationWindow": "8s"}}
_MAX_NUM_SEQS, _TIMES_FULL = 4, 12
# Why replicas come, or no more than these, and why they leave, or will.
_CAME = {"DemandAboveCapacity", "BacklogAboveTarget", "ReplicasFull", "TooManyReplicas"}
_LEFT = {"CapacityAboveDemand", "ScaleDownStabilized"}
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
    """Replicas come with the load and leave after it; the status says why, and none fails."""
    ref = await namespace.apply_service(scaling=_SCALING, engine={"maxNumSeqs": _MAX_NUM_SEQS})
    await namespace.wait_until_ready(within=PATIENCE_SECONDS)
    base = await namespace.cluster.address(ref)

    async def replicas_came() -> None:
        await check_replicas(3)
        assert high.finished > _MAX_NUM_SEQS
        assert set(recorder.reasons(ref.name)) & _CAME, recorder.report(ref.name)

    async def replicas_left() -> None:
        await check_replicas(1)
        assert low.finished > 0
        assert set(recorder.reasons(ref.name)) & _LEFT, recorder.report(ref.name)

    async def check_replicas(count: int) -> None:
        status = await namespace.service_status()
        counts = status["replicas"], status["readyReplicas"]
        assert counts == (count, count), status.get("scaling")

    async with recording(namespace, ref.name) as recorder:
        clients = _TIMES_FULL * _MAX_NUM_SEQS
        async with steady_load(base, ref.name, clients=clients, tokens=300) as high:
            await eventually(replicas_came, within=PATIENCE_SECONDS)
        async with steady_load(base, ref.name, clients=1, tokens=10, pause=10.0) as low:
            await eventually(replicas_left, within=PATIENCE_SECONDS)
    namespace.cluster.say(recorder.report(ref.name))
    assert high.failures + low.failures == []


async def sleep_and_wake(namespace: ScenarioNamespace) -> None:
    """An idle service has no replica, and starts for a request, which is answered."""
    await namespace.apply_service(scaling=_IDLE)

    async def it_sleeps() -> None:
        await namespace.check_condition("chat", "Ready", "ScaledToZero")
        assert (await namespace.service_status())["replicas"] == 0
        assert await namespace.list_objects(PODS) == []

    async with gateway_for(namespace) as gateway:
        await answered(gateway, within=PATIENCE_SECONDS)
        await eventually(it_sleeps, within=PATIENCE_SECONDS)
        namespace.cluster.say("it sleeps")
        async with gateway.client() as client:
            answer = await client.chat.completions.create(
                model="chat", messages=HELLO, max_tokens=4
            )
        assert answer.choices[0].message.content

        async def it_is_ready() -> None:
            # One request keeps it awake for less time than a loaded machine may take to say so.
            await answered(gateway, within=PATIENCE_SECONDS)
            await namespace.check_condition("chat", "Ready", "CompletionSucceeded")

        await eventually(it_is_ready, within=PATIENCE_SECONDS)
