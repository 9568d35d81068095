"""Admission answers through every renewal of its certificate, and nobody waits for it."""

import asyncio
import base64
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from cryptography import x509

from chart_tests.release import PODS, SECRET, SELECTOR, WEBHOOKS, Release
from tessera.adapters import certificates
from world import clock
from world.testing import eventually

# Admission refuses it; when nobody answers, the API server lets it pass.
BAD = {"engine": {"extraArgs": ["--port=1"]}}
REFUSED = "remove --port"
SHORT = {
    "TESSERA_WEBHOOK_CERTIFICATE_DURATION": "PT18S",
    "TESSERA_WEBHOOK_CERTIFICATE_POLL_INTERVAL": "PT0.5S",
}


@asynccontextmanager
async def asked_all_the_time(release: Release) -> AsyncIterator[list[str]]:
    """What admission said to a bad service, several times a second."""
    said: list[str] = []

    async def ask() -> None:
        while True:
            said.append(await release.dry_run(**BAD))

    asking = asyncio.create_task(ask())
    try:
        yield said
    finally:
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)


async def serving(release: Release) -> str:
    """The certificate that is served by now."""
    data = (await release.stage.api.get(SECRET))["data"]
    return base64.b64decode(data["tls.crt"]).decode()


async def bundle(release: Release) -> tuple[str, ...]:
    """The authorities that the API server trusts for admission."""
    found = (await release.stage.api.get(WEBHOOKS))["webhooks"]
    (told,) = {one["clientConfig"].get("caBundle", "") for one in found}
    return certificates.split_bundle(base64.b64decode(told).decode())


async def starts(release: Release) -> dict[str, int]:
    """How often each process of the operator began anew."""
    found = await release.stage.api.get(PODS, labelSelector=SELECTOR)
    return {
        pod["metadata"]["name"]: pod["status"]["containerStatuses"][0]["restartCount"]
        for pod in found["items"]
        if "deletionTimestamp" not in pod["metadata"]
    }


@pytest.mark.full
async def test_admission_answers_all_the_time_while_short_certificates_follow_each_other(
    release: Release,
) -> None:
    await release.install(replicaCount=2)
    await release.set_env(**SHORT)
    await eventually(lambda: release.dry_run(**BAD), lambda told: REFUSED in told, within=30)
    before, seen, widest = await starts(release), set(), 0
    async with asked_all_the_time(release) as said:

        async def renewed() -> int:
            nonlocal widest
            seen.add(await serving(release))
            widest = max(widest, len(await bundle(release)))
            return len(seen)

        await eventually(renewed, lambda count: count >= 4, within=120)
    print(f"{len(seen)} certificates, {len(said)} questions, at most {widest} authorities")
    assert len(said) > 100
    assert [told for told in said if REFUSED not in told] == []
    assert widest >= 2
    assert await starts(release) == before


@pytest.mark.full
async def test_a_certificate_that_ended_while_nobody_ran_is_replaced_at_the_start(
    release: Release,
) -> None:
    await release.install()
    await release.set_env(**SHORT)

    async def left() -> float:
        ends = x509.load_pem_x509_certificate((await serving(release)).encode())
        return (ends.not_valid_after_utc - clock.now()).total_seconds()

    await eventually(left, lambda seconds: seconds < 60, within=60)
    await release.scale(0)
    short = await serving(release)
    await eventually(left, lambda seconds: seconds < 0, within=60)
    assert "remove" not in await release.dry_run(**BAD)
    await release.scale(1)
    await eventually(lambda: release.dry_run(**BAD), lambda told: REFUSED in told, within=30)
    assert await serving(release) != short


async def test_a_deleted_secret_and_a_broken_bundle_are_made_anew(release: Release) -> None:
    await release.install()
    old = await serving(release)
    await release.stage.api.delete(SECRET)
    await eventually(lambda: serving(release), lambda now: now != old, within=40)
    await eventually(lambda: release.dry_run(**BAD), lambda told: REFUSED in told, within=40)
    count = len((await release.stage.api.get(WEBHOOKS))["webhooks"])
    broken = [
        {"op": "remove", "path": f"/webhooks/{index}/clientConfig/caBundle"}
        for index in range(count)
    ]
    await release.stage.api.patch(WEBHOOKS, broken, "application/json-patch+json")
    await eventually(lambda: release.dry_run(**BAD), lambda told: REFUSED in told, within=40)


async def test_without_admission_the_turn_judges(release: Release) -> None:
    await release.install()
    namespace = await release.namespace()
    await release.scale(0)
    assert "created" in await release.apply(namespace, "chat", **BAD)
    await release.scale(1)
    told = await release.until_reason(namespace, "chat", "Accepted", "ReservedFlag")
    assert REFUSED in told["message"]
    await release.kubectl("delete", "namespace", namespace)
