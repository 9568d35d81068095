"""With `watch.namespaces` Tessera acts in the named namespaces, and has no rights elsewhere."""

import pytest

from chart_tests.release import OPERATOR, Release
from demo.cluster import NAMESPACE
from tessera.domain.kinds.kinds import INFERENCE_SERVICES
from tessera.domain.names import prepull_namespace
from tessera.resources.api_resources import DEPLOYMENTS, KINDS
from world.testing import eventually

_watched: dict[int, tuple[str, str]] = {}


async def install_for_one_namespace(release: Release) -> tuple[str, str]:
    """Return the namespace that is named and another one, the same for all tests of a world."""
    pid = release.cluster.world.pid
    if pid not in _watched:
        _watched[pid] = await release.namespace(), await release.namespace()
    named, other = _watched[pid]
    await release.install(watch={"namespaces": [named]})
    return named, other


async def test_a_named_namespace_is_served_and_another_is_left_alone(release: Release) -> None:
    named, other = await install_for_one_namespace(release)
    assert "Warning" not in await release.apply(named, "chat", replicas=2)
    output = await release.apply(other, "chat", replicas=2)
    assert f"Tessera does not watch {other}; it watches 1 namespace: {named}" in output
    await release.wait_for_reason(named, "chat", "Ready", "CompletionSucceeded")
    service = await release.cluster.api.get(INFERENCE_SERVICES.path(other, "chat"))
    assert "status" not in service
    assert (await release.cluster.api.get(DEPLOYMENTS.path(other)))["items"] == []
    for namespace in (named, other):
        await release.kubectl("delete", "tsvc", "chat", "-n", namespace)


async def test_rights_end_at_the_named_namespaces(release: Release) -> None:
    named, other = await install_for_one_namespace(release)
    checked = 0
    for kind in KINDS:
        resource = f"{kind.group}/{kind.plural}"
        for verb in [
            verb for verb in kind.verbs if not kind.resource_names or verb in ("list", "create")
        ]:
            checked += 1
            if not kind.namespaced:
                assert await release.is_allowed(verb, resource)
                assert verb in ("get", "list", "watch")
                continue
            if kind.in_prepull_namespace:
                assert await release.is_allowed(verb, resource, prepull_namespace(NAMESPACE))
                assert not await release.is_allowed(verb, resource, NAMESPACE)
                assert not await release.is_allowed(verb, resource, named)
                continue
            assert await release.is_allowed(verb, resource, named)
            assert not await release.is_allowed(verb, resource, other)
            assert not await release.is_allowed(verb, resource)
    print(f"{checked} rights checked")
    for namespace in (named, "default"):
        for verb, allowed in (("create", True), ("patch", True), ("get", False), ("delete", False)):
            assert await release.is_allowed(verb, "events.k8s.io/events", namespace) is allowed
    assert not await release.is_allowed("create", "events.k8s.io/events", other)
    assert not await release.is_allowed("get", "/secrets", named)
    assert not await release.is_allowed("get", "/secrets", NAMESPACE)  # any but its own by name
    message = await release.expect_refusal(
        *("create", "service", "clusterip", "x", "--tcp=80", "-n", other, "--as", OPERATOR)
    )
    assert "cannot create resource" in message


@pytest.mark.full
async def test_a_namespace_that_is_named_later_is_served_too(release: Release) -> None:
    first, second = await release.namespace(), await release.namespace()
    await release.install(watch={"namespaces": [first]})
    await release.apply(second, "chat", replicas=1)
    await release.install(watch={"namespaces": [first, second]})
    await release.wait_for_reason(second, "chat", "Ready", "CompletionSucceeded")

    async def roles() -> list[str]:
        path = f"/apis/rbac.authorization.k8s.io/v1/namespaces/{first}/roles"
        return [role["metadata"]["name"] for role in (await release.cluster.api.get(path))["items"]]

    assert await roles() == [f"tessera-operator-{NAMESPACE}"]
    await release.install()

    async def no_role_remains() -> None:
        assert await roles() == []

    await eventually(no_role_remains)
    for namespace in (first, second):
        await release.kubectl("delete", "namespace", namespace)


@pytest.mark.full
async def test_a_named_namespace_that_is_deleted_holds_up_no_other(release: Release) -> None:
    staying, going = await release.namespace(), await release.namespace()
    await release.install(watch={"namespaces": [staying, going]})
    await release.kubectl("delete", "namespace", going)
    await release.kubectl("rollout", "restart", "deployment/tessera-operator", "-n", NAMESPACE)
    await release.wait_until_rolled_out()
    await release.apply(staying, "chat", replicas=1)
    await release.wait_for_reason(staying, "chat", "Ready", "CompletionSucceeded")
    # The next upgrade has to omit it: Helm cannot create a Role in a deleted namespace.
    await release.install(watch={"namespaces": [staying]})
    await release.kubectl("delete", "namespace", staying)
