"""Admission answers without a pause through every renewal of its certificate."""

import asyncio
import base64
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

import pytest
from cryptography import x509

from chart_tests.release import PODS, SECRET, SELECTOR, WEBHOOKS, Release
from tessera.adapters import certificates
from world import clock
from world.testing import eventually

# Admission rejects it; when no webhook answers, the API server admits it.
BAD = {"engine": {"extraArgs": ["--port=1"]}}
REFUSED = "remove --port"
SHORT = {
    "TESSERA_WEBHOOK_CERTIFICATE_DURATION": "PT18S",
    "TESSERA_WEBHOOK_CERTIFICATE_POLL_INTERVAL": "PT0.5S",
}


@asynccontextmanager
async def ask_continuously(release: Release) -> AsyncIterator[list[str]]:
    """Collect what admission answers to a bad service, several times a second."""
    answers: list[str] = []

    async def ask() -> None:
        while True:
            answers.append(await release.dry_run(**BAD))
            await asyncio.sleep(0.05)

    task = asyncio.create_task(ask())
    try:
        yield answers
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def wait_until_refused(release: Release) -> None:
    async def bad_service_is_refused() -> None:
        assert REFUSED in await release.dry_run(**BAD)

    await eventually(bad_service_is_refused)


async def served_certificate(release: Release) -> str:
    """Return the certificate that the webhook serves now."""
    data = (await release.cluster.api.get(SECRET))["data"]
    return base64.b64decode(data["tls.crt"]).decode()


async def trusted_authorities(release: Release) -> tuple[str, ...]:
    """Return the authorities that the API server trusts for admission."""
    webhooks = (await release.cluster.api.get(WEBHOOKS))["webhooks"]
    (ca_bundle,) = {webhook["clientConfig"].get("caBundle", "") for webhook in webhooks}
    return certificates.split_bundle(base64.b64decode(ca_bundle).decode())


async def restart_counts(release: Release) -> dict[str, int]:
    """Count the restarts of each process of the operator."""
    pods = await release.cluster.api.get(PODS, labelSelector=SELECTOR)
    return {
        pod["metadata"]["name"]: pod["status"]["containerStatuses"][0]["restartCount"]
        for pod in pods["items"]
        if "deletionTimestamp" not in pod["metadata"]
    }


@pytest.mark.full
async def test_admission_answers_all_the_time_while_short_certificates_follow_each_other(
    release: Release,
) -> None:
    await release.install(replicaCount=2)
    await release.set_env(**SHORT)
    await wait_until_refused(release)
    before, seen, widest = await restart_counts(release), set(), 0
    async with ask_continuously(release) as answers:

        async def certificates_follow_each_other() -> None:
            nonlocal widest
            seen.add(await served_certificate(release))
            widest = max(widest, len(await trusted_authorities(release)))
            assert len(seen) >= 4
            assert len(answers) > 100

        await eventually(certificates_follow_each_other)
    print(f"{len(seen)} certificates, {len(answers)} questions, at most {widest} authorities")
    assert [answer for answer in answers if REFUSED not in answer] == []
    assert widest >= 2
    assert await restart_counts(release) == before


@pytest.mark.full
async def test_a_certificate_that_expired_while_no_operator_ran_is_replaced_at_the_start(
    release: Release,
) -> None:
    await release.install()
    await release.set_env(**SHORT)

    async def certificate_expires_within(seconds: float) -> None:
        certificate = x509.load_pem_x509_certificate((await served_certificate(release)).encode())
        assert (certificate.not_valid_after_utc - clock.now()).total_seconds() < seconds

    await eventually(partial(certificate_expires_within, 60))
    await release.scale(0)
    short = await served_certificate(release)
    await eventually(partial(certificate_expires_within, 0))
    assert "remove" not in await release.dry_run(**BAD)
    await release.scale(1)
    await wait_until_refused(release)
    assert await served_certificate(release) != short


async def test_a_deleted_secret_and_a_broken_bundle_are_recreated(release: Release) -> None:
    await release.install()
    old = await served_certificate(release)
    await release.cluster.api.delete(SECRET)

    async def secret_is_recreated() -> None:
        assert await served_certificate(release) != old

    await eventually(secret_is_recreated)
    await wait_until_refused(release)
    count = len((await release.cluster.api.get(WEBHOOKS))["webhooks"])
    broken = [
        {"op": "remove", "path": f"/webhooks/{index}/clientConfig/caBundle"}
        for index in range(count)
    ]
    await release.cluster.api.patch(WEBHOOKS, broken, "application/json-patch+json")
    await wait_until_refused(release)


@pytest.mark.full
async def test_without_admission_the_reconcile_rejects_the_spec(release: Release) -> None:
    await release.install()
    namespace = await release.namespace()
    await release.scale(0)
    assert "created" in await release.apply(namespace, "chat", **BAD)
    await release.scale(1)
    condition = await release.wait_for_reason(namespace, "chat", "Accepted", "ReservedFlag")
    assert REFUSED in condition["message"]
    await release.kubectl("delete", "namespace", namespace)
