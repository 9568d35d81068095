"""The certificate of admission through years of renewals: clients always trust the server."""

import itertools
import ssl
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from tessera.adapters import certificates
from tessera.controller.certificates import CertificateRotator
from tessera.domain.serving_certificate import (
    CertificateAction,
    CertificatePolicy,
    CertificateSecret,
    KeyPair,
)
from tessera.ports import ClusterError
from tests.builders import NOW

_numbers = itertools.count(1)
HOST = "tessera-webhook.tessera-system.svc"
TERMS = CertificatePolicy(host=HOST, lifetime=timedelta(days=90), trust_delay=timedelta(seconds=60))


@dataclass
class MemoryStore:
    """The Secret, and the CA bundle of the API server."""

    folder: Path
    secret: CertificateSecret = field(default_factory=CertificateSecret)
    trusted: str = ""
    refuses: bool = False
    trust_fails: bool = False
    steps: list[CertificateSecret] = field(default_factory=list)

    async def read(self) -> CertificateSecret:
        return self.secret

    async def write(self, secret: CertificateSecret) -> None:
        if self.refuses:
            raise ClusterError("apply the Secret: 409 the object has been modified")
        self.secret = replace(secret, version=str(len(self.steps)))
        self.steps.append(self.secret)

    async def trust(self, bundle: str) -> None:
        if self.trust_fails:
            raise ClusterError("get the ValidatingWebhookConfiguration: 404")
        self.trusted = bundle


@dataclass
class Clock:
    now: datetime = NOW

    def __call__(self) -> datetime:
        return self.now


@pytest.fixture
def store(tmp_path: Path) -> MemoryStore:
    return MemoryStore(tmp_path)


def a_process(store: MemoryStore, clock: Clock, *, leads: bool = True) -> CertificateRotator:
    folder = store.folder / str(next(_numbers))
    folder.mkdir()
    return CertificateRotator(
        store,
        folder=folder,
        terms=TERMS,
        may_renew=lambda: leads,
        clock=clock,
    )


def accepts_handshake(server: CertificateRotator, bundle: str) -> bool:
    """Make a TLS handshake in memory, as the API server does, but without checking times."""
    client = ssl.create_default_context(cadata=bundle)
    client.verify_flags |= 0x200000  # X509_V_FLAG_NO_CHECK_TIME: tests set their own clock
    wires = [ssl.MemoryBIO() for _ in range(4)]
    peers = [
        client.wrap_bio(wires[0], wires[1], server_hostname=HOST),
        server.context.wrap_bio(wires[2], wires[3], server_side=True),
    ]
    for _ in range(4):
        for peer in peers:
            try:
                peer.do_handshake()
            except ssl.SSLWantReadError:
                pass
            except ssl.SSLError:
                return False
            wires[2].write(wires[1].read())
            wires[0].write(wires[3].read())
    return peers[0].version() is not None


async def test_the_leader_makes_the_certificate_and_a_stand_by_serves_it_too(
    store: MemoryStore,
) -> None:
    clock = Clock()
    stand_by, leader = a_process(store, clock, leads=False), a_process(store, clock)
    await stand_by.sync()
    assert (stand_by.ready.is_set(), store.steps) == (False, [])
    await leader.sync()
    await stand_by.sync()
    assert stand_by.ready.is_set()
    assert accepts_handshake(leader, store.trusted)
    assert accepts_handshake(stand_by, store.trusted)


async def test_clients_with_the_bundle_of_a_minute_ago_reach_every_process_for_a_year(
    store: MemoryStore,
) -> None:
    clock = Clock()
    leader, stand_by = a_process(store, clock), a_process(store, clock, leads=False)
    await leader.sync()
    served: set[KeyPair] = set()
    for day in range(365):
        for second in (0, 30, 61):
            clock.now = NOW + timedelta(days=day, seconds=second)
            late = store.trusted  # an API server that does not have the newest bundle
            if second == 0:
                await stand_by.sync()
            await leader.sync()
            if day % 29 == 0 or len(served) < len({secret.serving for secret in store.steps}):
                assert accepts_handshake(leader, late)
                assert accepts_handshake(leader, store.trusted)
                assert accepts_handshake(stand_by, store.trusted)
            assert store.secret.serving is not None
            expires_at = certificates.expiry(store.secret.serving)
            assert expires_at is not None
            assert expires_at - clock.now >= timedelta(days=29)
            served.add(store.secret.serving)
    assert len(served) == 7
    assert len(store.secret.authorities) <= 3


async def test_a_new_leader_waits_again_before_it_uses_a_pending_certificate(
    store: MemoryStore,
) -> None:
    clock = Clock()
    await a_process(store, clock).sync()
    first = store.secret.serving
    clock.now += timedelta(days=61)
    await a_process(store, clock).sync()
    assert store.secret.pending is not None
    clock.now += timedelta(hours=1)
    successor = a_process(store, clock)
    await successor.sync()
    assert store.secret.serving == first
    clock.now += TERMS.trust_delay
    await successor.sync()
    assert store.secret.serving != first
    assert store.secret.pending is None


async def test_a_lost_race_changes_nothing_and_is_tried_again(store: MemoryStore) -> None:
    clock = Clock()
    store.refuses = True
    leader = a_process(store, clock)
    with pytest.raises(ClusterError, match="409"):
        await leader.sync()
    assert store.secret == CertificateSecret()
    store.refuses = False
    await leader.sync()
    assert leader.ready.is_set()


@pytest.mark.parametrize(
    "broken",
    [
        lambda secret: replace(secret, serving=KeyPair("no certificate", secret.serving.key)),
        lambda secret: replace(secret, serving=KeyPair(secret.serving.certificate, "no key")),
        lambda secret: replace(secret, authorities=()),
        lambda secret: replace(
            secret, serving=certificates.issue("other.svc", NOW, timedelta(days=90)).pair
        ),
    ],
    ids=["no certificate", "no key", "no authority", "of another name"],
)
async def test_what_cannot_serve_is_replaced_at_once(
    store: MemoryStore, broken: Callable[[CertificateSecret], CertificateSecret]
) -> None:
    clock = Clock()
    leader = a_process(store, clock)
    await leader.sync()
    store.secret = broken(store.secret)
    await leader.sync()
    assert accepts_handshake(leader, store.trusted)


async def test_a_stand_by_keeps_its_certificate_when_the_secret_is_broken(
    store: MemoryStore,
) -> None:
    clock = Clock()
    stand_by = a_process(store, clock, leads=False)
    await a_process(store, clock).sync()
    await stand_by.sync()
    good = store.secret
    assert good.serving is not None
    for broken in (
        KeyPair("no certificate", good.serving.key),
        KeyPair(good.serving.certificate, ""),
    ):
        store.secret = replace(good, serving=broken)
        with pytest.raises(ClusterError, match="do not match"):
            await stand_by.sync()
        assert accepts_handshake(stand_by, store.trusted)


async def test_a_certificate_is_served_even_if_its_bundle_cannot_be_published(
    store: MemoryStore,
) -> None:
    leader = a_process(store, Clock())
    store.trust_fails = True
    with pytest.raises(ClusterError, match="404"):
        await leader.sync()
    assert leader.ready.is_set()


async def test_an_expired_certificate_is_replaced_at_once(store: MemoryStore) -> None:
    clock = Clock()
    leader = a_process(store, clock)
    await leader.sync()
    clock.now += timedelta(days=91)
    await leader.sync()
    assert store.secret.serving is not None
    assert certificates.expiry(store.secret.serving) == (clock.now + TERMS.lifetime).replace(
        microsecond=0
    )
    assert accepts_handshake(leader, store.trusted)


def test_the_key_of_an_authority_is_stored_nowhere() -> None:
    issued = certificates.issue(HOST, NOW, TERMS.lifetime)
    assert "PRIVATE" not in issued.authority
    assert issued.pair.key.count("PRIVATE KEY") == 2
    assert "PRIVATE" not in repr(issued)


def test_authorities_that_have_ended_leave_the_bundle() -> None:
    old, new = (certificates.issue(HOST, NOW, timedelta(days=count)) for count in (1, 2))
    bundle = certificates.split_bundle(old.authority + "garbage\n" + new.authority)
    assert certificates.unexpired(bundle, NOW) == (old.authority, new.authority)
    assert certificates.unexpired(bundle, NOW + timedelta(days=1.5)) == (new.authority,)


def test_every_action_has_its_word() -> None:
    assert [str(step) for step in CertificateAction] == ["Keep", "Issue", "Prepare", "Promote"]
