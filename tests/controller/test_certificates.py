"""Admission's certificate through years of renewals: whoever calls always trusts who answers."""

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
    """The Secret, and the bundle of the API server, which takes a while to reach everybody."""

    folder: Path
    held: CertificateSecret = field(default_factory=CertificateSecret)
    trusted: str = ""
    refuses: bool = False
    nobody_trusts: bool = False
    steps: list[CertificateSecret] = field(default_factory=list)

    async def read(self) -> CertificateSecret:
        return self.held

    async def write(self, held: CertificateSecret) -> None:
        if self.refuses:
            raise ClusterError("apply the Secret: 409 the object has been modified")
        self.held = replace(held, version=str(len(self.steps)))
        self.steps.append(self.held)

    async def trust(self, bundle: str) -> None:
        if self.nobody_trusts:
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


def answers(server: CertificateRotator, bundle: str) -> bool:
    """A TLS handshake in memory, as the API server makes it, apart from the time of day."""
    client = ssl.create_default_context(cadata=bundle)
    client.verify_flags |= 0x200000  # X509_V_FLAG_NO_CHECK_TIME: these tests turn their own clock
    wires = [ssl.MemoryBIO() for _ in range(4)]
    ends = [
        client.wrap_bio(wires[0], wires[1], server_hostname=HOST),
        server.context.wrap_bio(wires[2], wires[3], server_side=True),
    ]
    for _ in range(4):
        for end in ends:
            try:
                end.do_handshake()
            except ssl.SSLWantReadError:
                pass
            except ssl.SSLError:
                return False
            wires[2].write(wires[1].read())
            wires[0].write(wires[3].read())
    return ends[0].version() is not None


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
    assert answers(leader, store.trusted)
    assert answers(stand_by, store.trusted)


async def test_whoever_trusts_the_bundle_of_a_minute_ago_reaches_every_process_for_a_year(
    store: MemoryStore,
) -> None:
    clock = Clock()
    leader, stand_by = a_process(store, clock), a_process(store, clock, leads=False)
    await leader.sync()
    served: set[KeyPair] = set()
    for day in range(365):
        for second in (0, 30, 61):
            clock.now = NOW + timedelta(days=day, seconds=second)
            late = store.trusted  # an API server that has not heard of the newest bundle
            if second == 0:
                await stand_by.sync()
            await leader.sync()
            if day % 29 == 0 or len(served) < len({one.serving for one in store.steps}):
                assert answers(leader, late)
                assert answers(leader, store.trusted)
                assert answers(stand_by, store.trusted)
            assert store.held.serving is not None
            ends = certificates.expiry(store.held.serving)
            assert ends is not None
            assert ends - clock.now >= timedelta(days=29)
            served.add(store.held.serving)
    assert len(served) == 7
    assert len(store.held.authorities) <= 3


async def test_a_new_leader_waits_anew_before_it_uses_what_the_last_one_prepared(
    store: MemoryStore,
) -> None:
    clock = Clock()
    await a_process(store, clock).sync()
    first = store.held.serving
    clock.now += timedelta(days=61)
    await a_process(store, clock).sync()
    assert store.held.pending is not None
    clock.now += timedelta(hours=1)
    successor = a_process(store, clock)
    await successor.sync()
    assert store.held.serving == first
    clock.now += TERMS.trust_delay
    await successor.sync()
    assert store.held.serving != first
    assert store.held.pending is None


async def test_a_lost_race_changes_nothing_and_is_tried_again(store: MemoryStore) -> None:
    clock = Clock()
    store.refuses = True
    leader = a_process(store, clock)
    with pytest.raises(ClusterError, match="409"):
        await leader.sync()
    assert store.held == CertificateSecret()
    store.refuses = False
    await leader.sync()
    assert leader.ready.is_set()


@pytest.mark.parametrize(
    "broken",
    [
        lambda held: replace(held, serving=KeyPair("no certificate", held.serving.key)),
        lambda held: replace(held, serving=KeyPair(held.serving.certificate, "no key")),
        lambda held: replace(held, authorities=()),
        lambda held: replace(
            held, serving=certificates.issue("other.svc", NOW, timedelta(days=90)).pair
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
    store.held = broken(store.held)
    await leader.sync()
    assert answers(leader, store.trusted)


async def test_a_stand_by_serves_on_with_what_it_has_when_the_secret_is_broken(
    store: MemoryStore,
) -> None:
    clock = Clock()
    stand_by = a_process(store, clock, leads=False)
    await a_process(store, clock).sync()
    await stand_by.sync()
    good = store.held
    assert good.serving is not None
    for broken in (
        KeyPair("no certificate", good.serving.key),
        KeyPair(good.serving.certificate, ""),
    ):
        store.held = replace(good, serving=broken)
        with pytest.raises(ClusterError, match="do not match"):
            await stand_by.sync()
        assert answers(stand_by, store.trusted)


async def test_what_cannot_be_made_known_is_served_all_the_same(store: MemoryStore) -> None:
    leader = a_process(store, Clock())
    store.nobody_trusts = True
    with pytest.raises(ClusterError, match="404"):
        await leader.sync()
    assert leader.ready.is_set()


async def test_an_expired_certificate_is_replaced_at_once(store: MemoryStore) -> None:
    clock = Clock()
    leader = a_process(store, clock)
    await leader.sync()
    clock.now += timedelta(days=91)
    await leader.sync()
    assert store.held.serving is not None
    assert certificates.expiry(store.held.serving) == (clock.now + TERMS.lifetime).replace(
        microsecond=0
    )
    assert answers(leader, store.trusted)


def test_the_key_of_an_authority_is_kept_nowhere() -> None:
    made = certificates.issue(HOST, NOW, TERMS.lifetime)
    assert "PRIVATE" not in made.authority
    assert made.pair.key.count("PRIVATE KEY") == 2
    assert "PRIVATE" not in repr(made)


def test_authorities_that_have_ended_leave_the_bundle() -> None:
    old, new = (certificates.issue(HOST, NOW, timedelta(days=count)) for count in (1, 2))
    bundle = certificates.split_bundle(old.authority + "garbage\n" + new.authority)
    assert certificates.unexpired(bundle, NOW) == (old.authority, new.authority)
    assert certificates.unexpired(bundle, NOW + timedelta(days=1.5)) == (new.authority,)


def test_every_step_has_its_word() -> None:
    assert [str(step) for step in CertificateAction] == ["Keep", "Issue", "Prepare", "Promote"]
