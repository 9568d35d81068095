"""What T and E try in a running world, each with only his rights."""

import asyncio
import json
from collections.abc import Awaitable, Callable

import pytest

from demo.cluster import Json, StepError, condition, fund
from hostile.bystander import Bystander
from hostile.identities import HOSTILE, Identity
from tessera.domain.kinds.kinds import INFERENCE_SERVICES
from tessera.resources.api_resources import DEPLOYMENTS, PODS
from tests.cases import full
from world.testing import eventually

# Two scrapes and two cycles: what a page does, it has done by then.
SCRAPED_SECONDS = 12
PAGES = {
    "digits": 'vllm:cache_config_info{kv_cache_size_tokens="' + "9" * 3000 + '"} 1',
    "infinite": "\n".join(
        [
            "vllm:kv_cache_usage_perc 1e300",
            "vllm:num_requests_running 1e308",
            "vllm:num_requests_waiting 1e308",
            "vllm:generation_tokens_total 1e300",
            "vllm:iteration_tokens_total_count 1e300",
        ]
    ),
    "bill": "\n".join(
        [
            "tessera_cost_as_of_timestamp_seconds 4102444800",
            'tessera_cost_nanos_total{state="bribe",namespace="bystander",currency="USD"} 9e18',
        ]
    ),
    "identity": (
        'vllm:num_requests_waiting{namespace="bystander",pod="x",tessera_dev_service="chat"} 1e6'
    ),
}


async def deployments(bystander: Bystander) -> list[Json]:
    listed: list[Json] = (await bystander.cluster.api.get(DEPLOYMENTS.path(HOSTILE)))["items"]
    return listed


async def wait_until_nothing_is_desired(bystander: Bystander) -> None:
    """Wait until all Deployments of the hostile tenant have 0 replicas."""

    async def all_are_at_zero() -> None:
        assert {body["spec"]["replicas"] for body in await deployments(bystander)} <= {0}

    await eventually(all_are_at_zero)


async def running_pod(bystander: Bystander) -> Json:
    """Return the replica of the hostile tenant, once it runs."""

    async def all_are_running() -> Json:
        pods: list[Json] = (await bystander.cluster.api.get(PODS.path(HOSTILE)))["items"]
        assert {pod["status"].get("phase") for pod in pods} == {"Running"}
        return pods[0]

    return await eventually(all_are_running)


@pytest.mark.parametrize(
    "page",
    ["bill", *full("digits", "infinite", "identity")],
)
async def test_no_metrics_page_reaches_beyond_its_service(
    bystander: Bystander, tenant: Identity, page: str
) -> None:
    await tenant.serve(
        "liar",
        replicas=1,
        engine={"image": "world/http:1"},
        podTemplate={"env": [{"name": "METRICS_PAGE", "value": PAGES[page] + "\n"}]},
    )
    await running_pod(bystander)
    await asyncio.sleep(SCRAPED_SECONDS)  # the attack itself
    await bystander.assert_undisturbed()
    output = await bystander.cluster.tessera(
        "cost", "--prometheus", bystander.cluster.world.prometheus_url
    )
    assert "bribe" not in output


async def test_an_unfunded_tenant_takes_nothing(bystander: Bystander, tenant: Identity) -> None:
    await fund(bystander.cluster, HOSTILE, HOSTILE, amount="0")
    for index in range(5):
        await tenant.serve(f"x{index}", scaling={"minReplicas": 1000, "maxReplicas": 1000})

    async def budget_is_exhausted() -> None:
        path = INFERENCE_SERVICES.path(HOSTILE, "x0")
        entry = condition(await bystander.cluster.api.get(path), "Ready")
        assert entry.get("reason") == "BudgetExhausted", entry

    await eventually(budget_is_exhausted)
    await bystander.assert_undisturbed()
    await wait_until_nothing_is_desired(bystander)


async def test_our_labels_are_no_free_ticket(bystander: Bystander, editor: Identity) -> None:
    await fund(bystander.cluster, HOSTILE, HOSTILE)
    await editor.serve("paid", replicas=1)
    pod = (await running_pod(bystander))["metadata"]["name"]
    words = await editor.expect_refusal("label", "pod", pod, "app.kubernetes.io/component-")
    assert "Tessera" in words
    decoy = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": "decoy",
            "labels": {
                "app.kubernetes.io/component": "engine",
                "tessera.dev/service": "paid",
                "tessera.dev/variant": "a100-reserved-1g-10gb",
            },
        },
        "spec": {"containers": [{"name": "main", "image": "world/http:1"}]},
    }
    path = bystander.cluster.world.folder / "decoy.json"
    path.write_text(json.dumps(decoy))
    assert "Tessera" in await editor.expect_refusal("apply", "-f", str(path))
    await bystander.assert_undisturbed()


async def orphan(bystander: Bystander, tenant: Identity, editor: Identity) -> None:
    """Delete the service without its Deployment, and scale that, which only an admin may."""
    (deployment,) = await deployments(bystander)
    scale = ("scale", "deployment", deployment["metadata"]["name"], "--replicas=3")
    assert "InferenceService/left sets its replicas" in await editor.expect_refusal(*scale)
    await tenant.run("delete", "inferenceservice", "left", "--cascade=orphan")
    try:
        await bystander.cluster.run("kubectl", "-n", HOSTILE, *scale)
    except StepError as error:
        if "NotFound" not in str(error):  # the operator may have been faster
            raise


async def hold(_bystander: Bystander, tenant: Identity, _editor: Identity) -> None:
    """Delete the service behind a finalizer."""
    patch = json.dumps({"metadata": {"finalizers": ["example.org/held"]}})
    await tenant.run("patch", "inferenceservice", "left", "--type=merge", "-p", patch)
    await tenant.run("delete", "inferenceservice", "left", "--wait=false")


@pytest.mark.parametrize("delete", [orphan, *full(hold)])
async def test_a_deleted_service_keeps_nothing_running(
    bystander: Bystander,
    tenant: Identity,
    editor: Identity,
    delete: Callable[[Bystander, Identity, Identity], Awaitable[None]],
) -> None:
    await fund(bystander.cluster, HOSTILE, HOSTILE)
    await tenant.serve("left", replicas=1)
    await running_pod(bystander)
    await delete(bystander, tenant, editor)

    await wait_until_nothing_is_desired(bystander)
    await bystander.assert_undisturbed()


async def test_a_deployment_is_scaled_by_no_tenant_and_what_an_admin_scales_is_taken_back(
    bystander: Bystander, editor: Identity
) -> None:
    """Admission refuses the tenant; what it lets pass, the operator sets back."""
    await fund(bystander.cluster, HOSTILE, HOSTILE)
    await editor.serve("grown", replicas=1)
    await running_pod(bystander)
    (deployment,) = await deployments(bystander)
    scale = ("scale", "deployment", deployment["metadata"]["name"], "--replicas=9")
    assert "InferenceService/grown sets its replicas" in await editor.expect_refusal(*scale)
    await bystander.cluster.run("kubectl", "-n", HOSTILE, *scale)

    async def is_taken_back() -> None:
        assert [body["spec"]["replicas"] for body in await deployments(bystander)] == [1]

    await eventually(is_taken_back)
    await bystander.assert_undisturbed()


@pytest.mark.parametrize("name", ["a.b.c", "a" * 64])
async def test_a_name_that_no_service_can_bear_is_refused(
    bystander: Bystander, tenant: Identity, name: str
) -> None:
    with pytest.raises(Exception, match="name"):
        await tenant.serve(name)
    await bystander.assert_undisturbed()


async def test_nobody_writes_a_status(bystander: Bystander, tenant: Identity) -> None:
    await tenant.serve("mine", replicas=0)
    patch = json.dumps({"status": {"speed": None}})
    words = await tenant.expect_refusal(
        *("patch", "inferenceservice", "mine", "--subresource=status", "--type=merge", "-p", patch)
    )
    assert "forbidden" in words.lower()
    await bystander.assert_undisturbed()
