"""Who sends a request."""

import asyncio
import hashlib
from collections.abc import Mapping
from datetime import datetime, timedelta

import pytest

from tessera.domain.gateway.directory import ApiKey, Directory, Identity, TenantLimits
from tessera.domain.gateway.reasons import RequestReason
from tessera.gateway.identify.authentication import Authenticator
from tessera.gateway.identify.senders import Senders, by_name
from tessera.gateway.identify.token_reviews import TokenSender
from tessera.gateway.identify.token_verifier import TokenVerdict
from tessera.gateway.refusals import RequestError
from tests.builders import NOW
from tests.gateway.harness import an_identified_request

KEY = "tsk-" + "a" * 43
DIGEST = hashlib.sha256(KEY.encode()).hexdigest()
TOKEN = "eyJh.eyJz.c2ln"  # noqa: S105 - no token of anybody
ADDRESS = "10.0.0.7"
OWNER = Identity(tenant="team-a", user="system:serviceaccount:team-a:ci")


def a_directory(expires: datetime | None = None) -> Directory:
    key = ApiKey(name="ci", digest=DIGEST, tenant="team-a", expires=expires)
    return Directory(keys={DIGEST: key})


class Verifier:
    """Answers the questions of an authenticator."""

    def __init__(self, verdict: TokenVerdict = OWNER) -> None:
        self.verdict = verdict
        self.tokens: list[str] = []
        self.senders: list[TokenSender] = []
        self.seconds = 0.0
        self.authenticator = Authenticator(
            self._verify, clock=lambda: NOW, monotonic=lambda: self.seconds
        )

    async def _verify(self, token: str, directory: Directory, sender: TokenSender) -> TokenVerdict:
        assert not directory.keys
        self.tokens.append(token)
        self.senders.append(sender)
        return self.verdict

    async def settle(self) -> None:
        """Let what runs beside the requests come to its end."""
        for _ in range(5):
            await asyncio.sleep(0)

    async def identify(self, credential: str) -> Identity | tuple[int, str]:
        headers = {b"authorization": f"Bearer {credential}".encode()}
        try:
            return await self.authenticator.identify(headers, Directory(), ADDRESS)
        except RequestError as error:
            return error.status, error.reason


@pytest.mark.parametrize(
    ("headers", "reason"),
    [
        ({}, RequestReason.MISSING_KEY),
        ({b"authorization": b"Basic " + KEY.encode()}, RequestReason.MISSING_KEY),
        ({b"authorization": b"Bearer "}, RequestReason.MISSING_KEY),
        ({b"authorization": b"Bearer " + b"x" * 20_000}, RequestReason.MISSING_KEY),
        ({b"authorization": b"Bearer " + KEY[:-1].encode()}, RequestReason.INVALID_KEY),
        ({b"authorization": f"Bearer {DIGEST}".encode()}, RequestReason.INVALID_KEY),
        ({b"authorization": "Bearer ключ".encode()}, RequestReason.INVALID_KEY),
    ],
)
async def test_requests_without_a_known_key_are_refused(
    headers: dict[bytes, bytes], reason: RequestReason
) -> None:
    with pytest.raises(RequestError) as refusal:
        await Verifier().authenticator.identify(headers, a_directory(), ADDRESS)
    assert (refusal.value.status, refusal.value.reason) == (401, reason)
    assert KEY[:-1] not in refusal.value.message


@pytest.mark.parametrize("header", [b"authorization", b"x-api-key"])
async def test_a_key_identifies_its_tenant(header: bytes) -> None:
    value = KEY if header == b"x-api-key" else f"bearer {KEY}"
    headers = {header: value.encode()}
    identity = await Verifier().authenticator.identify(headers, a_directory(), ADDRESS)
    assert identity == Identity(tenant="team-a", key="ci")


OTHER_KEY = "tsk-" + "b" * 43
BEARER, OTHER_BEARER = b"Bearer " + KEY.encode(), b"Bearer " + OTHER_KEY.encode()


@pytest.mark.parametrize(
    "sent",
    [
        [(b"authorization", OTHER_BEARER), (b"authorization", BEARER)],
        [(b"authorization", BEARER), (b"authorization", OTHER_BEARER)],
        [(b"authorization", b"Basic YTpi"), (b"authorization", BEARER)],
        [(b"authorization", BEARER), (b"authorization", b"")],
        [(b"authorization", BEARER), (b"authorization", BEARER)],
        [(b"x-api-key", OTHER_KEY.encode()), (b"x-api-key", KEY.encode())],
        [(b"authorization", BEARER), (b"x-api-key", OTHER_KEY.encode())],
        [(b"authorization", b"Bearer "), (b"x-api-key", KEY.encode())],
    ],
)
async def test_two_keys_identify_nobody(sent: list[tuple[bytes, bytes]]) -> None:
    with pytest.raises(RequestError, match="two keys") as refusal:
        await Verifier().authenticator.identify(by_name(sent), a_directory(), ADDRESS)
    assert (refusal.value.status, refusal.value.reason) == (401, RequestReason.AMBIGUOUS_KEY)


@pytest.mark.parametrize(
    "sent",
    [
        [(b"authorization", BEARER), (b"x-api-key", KEY.encode())],
        [(b"authorization", b"Basic YTpi"), (b"x-api-key", KEY.encode())],
    ],
)
async def test_a_key_in_both_headers_identifies_its_tenant(
    sent: list[tuple[bytes, bytes]],
) -> None:
    identity = await Verifier().authenticator.identify(by_name(sent), a_directory(), ADDRESS)
    assert identity == Identity(tenant="team-a", key="ci")


async def test_an_expired_key_is_refused_at_its_time() -> None:
    headers, authenticator = {b"x-api-key": KEY.encode()}, Verifier().authenticator
    assert await authenticator.identify(headers, a_directory(NOW + timedelta(seconds=1)), ADDRESS)
    with pytest.raises(RequestError, match="expired"):
        await authenticator.identify(headers, a_directory(NOW), ADDRESS)


async def test_a_token_is_verified_once_while_its_verdict_lasts() -> None:
    verifier = Verifier()
    both = await asyncio.gather(verifier.identify(TOKEN), verifier.identify(TOKEN))
    assert list(both) == [OWNER, OWNER]
    verifier.seconds = 39
    assert await verifier.identify(TOKEN) == OWNER
    await verifier.settle()
    assert (verifier.tokens, verifier.senders) == ([TOKEN], [ADDRESS])


@pytest.mark.parametrize("seconds", [41, 59, 60, 3600])
async def test_a_known_token_that_is_used_is_verified_again_before_strangers(seconds: int) -> None:
    verifier = Verifier()
    await verifier.identify(TOKEN)
    verifier.seconds = seconds
    assert await verifier.identify(TOKEN) == OWNER
    await verifier.settle()
    assert (len(verifier.tokens), verifier.senders) == (2, [ADDRESS, OWNER])


async def test_a_verdict_holds_while_it_is_renewed_until_its_own_end() -> None:
    verifier = Verifier()
    await verifier.identify(TOKEN)
    verifier.verdict = RequestReason.TOKENS_NOT_VERIFIED
    for seconds in (41, 41, 41, 50, 59):
        verifier.seconds = seconds
        assert await verifier.identify(TOKEN) == OWNER
        await verifier.settle()
    # Without a verdict not each request asks.
    assert len(verifier.tokens) == 4
    verifier.seconds = 60
    assert await verifier.identify(TOKEN) == (503, "TokensNotVerified")
    verifier.verdict = OWNER
    assert await verifier.identify(TOKEN) == OWNER
    assert verifier.senders[1:] == [OWNER] * 5


async def test_a_renewal_that_is_refused_ends_the_token_at_once() -> None:
    verifier = Verifier()
    await verifier.identify(TOKEN)
    verifier.verdict, verifier.seconds = RequestReason.INVALID_TOKEN, 41
    assert await verifier.identify(TOKEN) == OWNER
    await verifier.settle()
    assert await verifier.identify(TOKEN) == (401, "InvalidToken")
    verifier.seconds = 60
    assert await verifier.identify(TOKEN) == (401, "InvalidToken")
    # It is a stranger's again.
    assert verifier.senders == [ADDRESS, OWNER, ADDRESS]


async def test_a_token_waits_for_no_other_one() -> None:
    """Those of an OIDC issuer need no review, for which others wait."""

    async def verify(token: str, directory: Directory, sender: TokenSender) -> TokenVerdict:
        assert (directory, sender) == (Directory(), ADDRESS)
        if token.startswith("junk"):
            await asyncio.get_running_loop().create_future()
        return OWNER

    def identify(token: str) -> asyncio.Task[Identity]:
        headers = {b"x-api-key": token.encode()}
        return asyncio.create_task(authenticator.identify(headers, Directory(), ADDRESS))

    authenticator = Authenticator(verify)
    junk = [identify(f"junk.b.{number}") for number in range(1000)]
    await asyncio.sleep(0)
    assert await identify(TOKEN) == OWNER
    for task in junk:
        task.cancel()
    await asyncio.wait(junk)


async def test_refused_tokens_are_remembered_and_displace_no_accepted_one() -> None:
    verifier = Verifier()
    await verifier.identify(TOKEN)
    verifier.verdict = RequestReason.INVALID_TOKEN
    for number in range(11_000):
        assert await verifier.identify(f"a.b.{number}") == (401, "InvalidToken")
    verified = len(verifier.tokens)
    assert await verifier.identify("a.b.10999") == (401, "InvalidToken")
    assert await verifier.identify(TOKEN) == OWNER
    assert len(verifier.tokens) == verified


async def test_many_tokens_of_one_tenant_displace_no_token_of_another() -> None:
    verifier = Verifier()
    await verifier.identify(TOKEN)
    verifier.verdict = other = Identity(tenant="team-b")
    for number in range(10_001):
        assert await verifier.identify(f"a.b.{number}") == other
    verified = len(verifier.tokens)
    assert await verifier.identify(TOKEN) == OWNER
    assert len(verifier.tokens) == verified
    # The oldest ones of the tenant who has most made room.
    await verifier.identify("a.b.0")
    assert len(verifier.tokens) == verified + 1


async def test_without_a_verdict_requests_are_told_to_retry_and_the_next_one_asks_again() -> None:
    verifier = Verifier(RequestReason.TOKENS_NOT_VERIFIED)
    assert await verifier.identify(TOKEN) == (503, "TokensNotVerified")
    verifier.verdict = OWNER
    assert await verifier.identify(TOKEN) == OWNER


async def test_a_client_that_goes_away_does_not_cancel_the_others() -> None:
    verifier = Verifier()
    first = asyncio.create_task(verifier.identify(TOKEN))
    second = asyncio.create_task(verifier.identify(TOKEN))
    await asyncio.sleep(0)
    first.cancel()
    assert await second == OWNER


@pytest.mark.parametrize(
    ("key", "tenant", "allows"),
    [(True, True, True), (False, True, False), (True, False, False), (False, False, False)],
)
def test_neither_a_key_nor_its_tenant_alone_allows_downgrades(
    key: bool, tenant: bool, allows: bool
) -> None:
    senders = Senders(Verifier().authenticator)
    limits = TenantLimits(name="team-a", namespaces=("team-a",), allow_downgrade=tenant)
    senders.directory = Directory(tenants={"team-a": limits})
    assert senders.allows_downgrade(Identity(tenant="team-a", allow_downgrade=key)) is allows


async def test_a_key_of_a_tenant_that_does_not_exist_is_told_so() -> None:
    key = ApiKey(name="ci", digest=DIGEST, tenant="team-a")
    authenticator = Verifier().authenticator
    headers = {b"authorization": f"Bearer {KEY}".encode()}
    with pytest.raises(RequestError) as refused:
        await authenticator.identify(headers, Directory(tenantless_keys={DIGEST: key}), ADDRESS)
    assert (refused.value.status, refused.value.reason) == (401, RequestReason.UNKNOWN_TENANT)
    assert "its tenant does not exist" in refused.value.message
    assert refused.value.sender == Identity(tenant="team-a", key="ci")


@pytest.mark.parametrize(
    ("expires", "changes", "times"), [(False, False, 1), (True, False, 2), (False, True, 2)]
)
async def test_a_key_is_looked_up_again_where_it_expires_or_its_directory_changed(
    *, expires: bool, changes: bool, times: int
) -> None:
    asked = list[Directory]()

    class Asked:
        async def identify(
            self, _: Mapping[bytes, bytes], directory: Directory, address: str
        ) -> Identity:
            asked.append(directory)
            return Identity(tenant=address, is_lasting=not expires)

    senders = Senders(Asked())
    senders.directory = Directory()
    number = senders.directory_number
    identity = await senders.identify({}, ADDRESS)
    if changes:
        senders.directory = Directory()
    identified = an_identified_request(
        identity=identity, directory_number=number, client_address=ADDRESS
    )
    assert await senders.identify_again(identified) == identity
    assert len(asked) == times
