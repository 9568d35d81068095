"""`tessera key` over Secrets in memory; gateways read what it writes."""

import base64
import json
import re
from collections import defaultdict
from collections.abc import Mapping
from datetime import timedelta
from decimal import Decimal
from types import SimpleNamespace
from typing import Any

import pytest

from tessera.adapters.kube.object_parsing import parse_object
from tessera.api.key_record import KeyBudget
from tessera.api.rate_limits import PeriodLimits, RateLimitsSpec
from tessera.api.ref import Ref
from tessera.cli.cluster import Reader
from tessera.cli.errors import CommandError, DeniedError
from tessera.cli.key.arguments import KEY_CREATE, KEY_LIST, KEY_REVOKE, KEY_ROTATE
from tessera.cli.key.create import create, digest_of
from tessera.cli.key.list_keys import list_keys
from tessera.cli.key.revoke import revoke
from tessera.cli.key.rotate import rotate
from tessera.domain.gateway.access import key_identity
from tessera.domain.gateway.build import GatewayObservations, build_directory
from tessera.domain.gateway.directory import ApiKey
from tessera.domain.kinds.kinds import INFERENCE_SERVICES, TENANT_BUDGETS
from tessera.domain.observed.tenant_keys import TenantKeys
from tessera.resources.api_resources import DEPLOYMENTS, KEY_SECRETS
from tests.builders import NOW, a_budget

NAMESPACE, GATEWAY_NAMESPACE = "tessera-system-keys", "tessera-system"
KEY = re.compile(r"^tsk-[A-Za-z0-9_-]{43}$", re.MULTILINE)
DIGEST = "ab" * 32


def a_body(kind: str, name: str, spec: dict[str, Any], **meta: str) -> dict[str, Any]:
    created = {"uid": name, "resourceVersion": "1", "creationTimestamp": "2026-11-01T00:00:00Z"}
    return {
        "apiVersion": "tessera.dev/v1alpha1",
        "kind": kind,
        "metadata": {"name": name, "generation": 1, **created, **meta},
        "spec": spec,
    }


A_BUDGET = a_body(
    "TenantBudget",
    "team-a",
    {
        "owner": "ann",
        "tenant": {"namespaces": ["team-a"]},
        "limits": [{"window": "Month", "amount": "1"}],
    },
)


class SecretsApi:
    """The API server, as far as keys need it."""

    def __init__(self) -> None:
        self.namespaces = defaultdict[str, dict[str, dict[str, Any]]](dict)
        self.secrets = self.namespaces[NAMESPACE]
        self.version = 1
        self.denied = False
        self.hidden: str | None = None
        """A namespace whose Secrets the user may not list."""
        self.services: list[dict[str, Any]] | None = []
        self.budgets: list[dict[str, Any]] | None = [A_BUDGET]
        self.deployments: list[dict[str, Any]] | None = None

    async def request(
        self,
        method: str,
        path: str,
        query: Mapping[str, str] | None = None,
        body: Mapping[str, Any] | None = None,
        content_type: str = "application/json",
    ) -> tuple[int, Any]:
        del query, content_type
        if path.startswith("/apis/tessera.dev/v1alpha1/tenantbudgets/"):
            exists = path.rpartition("/")[2] in ("team-a", "team-b")
            return (200, {}) if exists else (404, {"message": "not found"})
        namespace = path.split("/")[4]
        secrets = self.namespaces[namespace]
        if method == "GET":
            objects = {
                KEY_SECRETS.path(namespace): self._list(namespace),
                INFERENCE_SERVICES.path(None): self.services,
                TENANT_BUDGETS.path(None): self.budgets,
                DEPLOYMENTS.path(None): self.deployments,
            }[path]
            return (403, {}) if objects is None else (200, {"items": objects, "metadata": {}})
        if self.denied:
            return 403, {"message": "forbidden"}
        written: dict[str, Any] = json.loads(json.dumps(body))
        name = written["metadata"]["name"] if method == "POST" else path.rpartition("/")[2]
        self.version += 1
        if method == "PATCH":
            secret = secrets[name]
            if written["metadata"]["resourceVersion"] != secret["metadata"]["resourceVersion"]:
                return 409, {"message": "conflict"}
            data = {**secret["data"], **written["data"]}
            written = {**secret, "data": {key: value for key, value in data.items() if value}}
        written["metadata"] = {**written["metadata"], "resourceVersion": str(self.version)}
        secrets[name] = written
        return 201, written

    def _list(self, namespace: str) -> list[dict[str, Any]] | None:
        return None if namespace == self.hidden else list(self.namespaces[namespace].values())

    def keys(self) -> dict[str, ApiKey]:
        """Return what a gateway knows, by the names of keys."""
        bodies = [body for secrets in self.namespaces.values() for body in secrets.values()]
        parsed = [parse_object(KEY_SECRETS, body).plan_input for body in bodies]
        observed = GatewayObservations(
            keys=[keys for keys in parsed if isinstance(keys, TenantKeys)],
            budgets=[a_budget("team-a"), a_budget("team-b")],
        )
        return {key.name: key for key in build_directory(observed, RateLimitsSpec()).keys.values()}


def words(text: str) -> list[str]:
    return [*text.split(), "--keys-namespace", NAMESPACE]


async def create_key(api: SecretsApi, text: str) -> str:
    return (await create(Reader(api), KEY_CREATE.parse(words(text)), NOW)).text


async def rotate_key(api: SecretsApi, text: str, at: Any = NOW) -> str:
    return (await rotate(Reader(api), KEY_ROTATE.parse(words(text)), at)).text


def shown(text: str) -> str:
    [key] = KEY.findall(text)
    return str(key)


async def test_a_key_is_shown_once_and_gateways_know_its_digest() -> None:
    api = SecretsApi()
    text = await create_key(
        api,
        "ci --tenant team-a --team search --models chat,legal --expires 90d "
        "--requests-per-minute 60 --tokens-per-day 1000 --budget 20.50/month --sheddable "
        "--no-downgrade",
    )
    key = shown(text)
    assert (
        "key ci of tenant team-a: for chat, legal, until 2027-02-18T12:00Z, charges up to "
        "20.50/Month, sheddable, no downgrade\n"
    ) in text
    assert api.keys() == {
        "ci": ApiKey(
            name="ci",
            digest=digest_of(key),
            tenant="team-a",
            team="search",
            models=("chat", "legal"),
            expires=NOW + timedelta(days=90),
            limits=RateLimitsSpec(
                requests=PeriodLimits(per_minute=60), total_tokens=PeriodLimits(per_day=1000)
            ),
            budget=KeyBudget(amount=Decimal("20.5"), window="Month"),
            sheddable=True,
            allow_downgrade=False,
        )
    }
    stored = json.dumps(api.secrets) + str(
        [base64.b64decode(value) for value in api.secrets["tessera-keys-team-a"]["data"].values()]
    )
    assert key not in stored
    assert api.secrets["tessera-keys-team-a"]["type"] == "tessera.dev/keys"


async def test_keys_of_one_tenant_share_a_secret_and_get_names() -> None:
    api = SecretsApi()
    keys = {
        shown(await create_key(api, f"--tenant {tenant}"))
        for tenant in ("team-a", "team-a", "team-b")
    }
    assert len(keys) == 3
    assert sorted(api.secrets) == ["tessera-keys-team-a", "tessera-keys-team-b"]
    assert {key.digest for key in api.keys().values()} == {digest_of(key) for key in keys}


async def test_a_key_for_a_model_that_the_tenant_cannot_use_is_made_with_a_warning() -> None:
    api = SecretsApi()
    model = {"uri": "hf://meta-llama/Llama-3.1-8B-Instruct", "servedName": "assistant-8b"}
    spec = {"model": model, "access": {"aliases": ["default"]}}
    other = {"model": {"uri": "hf://meta-llama/Llama-3.1-8B-Instruct"}}
    api.services = [
        a_body("InferenceService", "assistant", spec, namespace="team-a"),
        a_body("InferenceService", "other", other, namespace="team-b"),
    ]

    text = await create_key(api, "ci --tenant team-a --models assistant,default,other")

    assert (
        "\nwarning: tenant team-a may use no model assistant, other now; "
        "its models: assistant-8b, default\n" in text
    )
    assert KEY.search(text)
    assert "warning" not in await create_key(api, "ok --tenant team-a --models assistant-8b")
    assert "warning" not in await create_key(api, "all --tenant team-a")
    api.services = None
    assert "warning" not in await create_key(api, "denied --tenant team-a --models assistant")


async def test_a_key_for_services_opens_these_alone() -> None:
    api = SecretsApi()
    model = {"model": {"uri": "hf://meta-llama/Llama-3.1-8B-Instruct"}}
    api.services = [a_body("InferenceService", "chat", model, namespace="team-a")]
    text = await create_key(api, "ci --tenant team-a --models chat --services team-a/chat,team-b/x")
    assert "key ci of tenant team-a: for chat of team-a/chat, team-b/x, until it is" in text
    assert "warning: tenant team-a may use no model team-b/x now; its models: chat\n" in text
    assert api.keys()["ci"].services == {Ref("team-a", "chat"), Ref("team-b", "x")}
    listed = (await list_keys(Reader(api), KEY_LIST.parse(words("")), NOW)).text
    assert "chat of team-a/chat, team-b/x" in listed
    with pytest.raises(CommandError, match="--services: String should match"):
        await create_key(api, "cd --tenant team-a --services chat")


async def test_a_key_for_a_name_without_a_grant_is_warned_about() -> None:
    api = SecretsApi()
    model = {"uri": "hf://meta-llama/Llama-3.1-8B-Instruct"}
    shared = {"model": model, "access": {"public": True}}
    api.services = [a_body("InferenceService", "chat", shared, namespace="team-b")]
    names = {"tenant": {"namespaces": ["team-b"]}}
    grant = {"publishing": [{"names": ["chat"], "public": True}]}
    for number, granted in enumerate(({}, grant)):
        spec = A_BUDGET["spec"] | names | granted
        api.budgets = [A_BUDGET, a_body("TenantBudget", "team-b", spec)]
        text = await create_key(api, f"key-{number} --tenant team-a --models chat")
        assert ("warning" in text) == (not granted)


async def test_keys_of_a_tenant_that_does_not_exist_are_listed_with_a_warning() -> None:
    api = SecretsApi()
    await create_key(api, "ci --tenant team-a")
    await create_key(api, "ci --tenant team-b")
    for budgets, warned in (([A_BUDGET], ["team-b"]), ([], ["team-a", "team-b"]), (None, [])):
        api.budgets = budgets
        text = (await list_keys(Reader(api), KEY_LIST.parse(words("")), NOW)).text
        assert [line for line in text.splitlines() if line.startswith("warning")] == [
            f"warning: tenant {tenant} does not exist, so its keys get 401: create "
            f"TenantBudget/{tenant}, or revoke them"
            for tenant in warned
        ]


async def test_a_record_with_a_misspelled_field_is_listed_with_the_field() -> None:
    api = SecretsApi()
    await create_key(api, "ci --tenant team-a")
    record = json.dumps({"sha256": DIGEST, "model": ["llama"]}).encode()
    data = api.secrets["tessera-keys-team-a"]["data"]
    data["app"] = base64.b64encode(record).decode()

    text = (await list_keys(Reader(api), KEY_LIST.parse(words("")), NOW)).text
    body = json.loads((await list_keys(Reader(api), KEY_LIST.parse(words("--json")), NOW)).text)

    assert text.splitlines()[-1] == (
        "record app of tenant team-a in Secret/tessera-keys-team-a is no key: unknown field model"
    )
    assert [row["name"] for row in body["keys"]] == ["ci"]
    assert body["unreadable"] == [
        {
            "tenant": "team-a",
            "name": "app",
            "namespace": NAMESPACE,
            "secret": "tessera-keys-team-a",
            "fault": "unknown field model",
        }
    ]


async def test_a_given_digest_is_stored_without_a_key() -> None:
    api = SecretsApi()
    text = await create_key(api, f"gitops --tenant team-a --sha256 {DIGEST.upper()}")
    assert not KEY.search(text)
    assert api.keys()["gitops"].digest == DIGEST


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("ci --tenant team-z", "TenantBudget/team-z not found: a tenant is a TenantBudget"),
        (f"ci --tenant {'a' * 64}", "at most 63"),
        ("Big --tenant team-a", "lower-case letters"),
        ("old --tenant team-a", "key old of tenant team-a exists"),
        (f"ci --tenant team-b --sha256 {DIGEST}", "key old of tenant team-a has this digest"),
        ("ci --tenant team-a --sha256 secret", "--sha256: String should match"),
        ("ci --tenant team-a --expires soon", "--expires soon: use a span"),
        ("ci --tenant team-a --expires 2026-01-01T00:00:00Z", "in the past"),
        ("ci --tenant team-a --expires 2027-01-01", "time zone is missing"),
        ("ci --tenant team-a --team a/b", "--team: String should match"),
        ("ci --tenant team-a --requests-per-minute 0", "--requests-per-minute.*greater than"),
        ("ci --tenant team-a --budget 20", "--budget: Input should be 'Hour', 'Day', 'Week' or"),
        ("ci --tenant team-a --budget=-1/Day", "--budget: Value error, must be a number from 0"),
        ("ci --tenant team-a --budget nan/Day", "--budget: Input should be a finite number"),
        ("ci --tenant team-a --budget 1e400/Day", "--budget: Value error, must be a number from 0"),
    ],
)
async def test_what_cannot_be_a_key_is_refused_with_what_to_do(text: str, message: str) -> None:
    api = SecretsApi()
    await create_key(api, f"old --tenant team-a --sha256 {DIGEST}")
    with pytest.raises(CommandError, match=message):
        await create_key(api, text)
    assert list(api.keys()) == ["old"]


async def test_a_rotated_key_and_its_successor_are_both_valid_until_the_old_one_ends() -> None:
    api = SecretsApi()
    old = shown(await create_key(api, "ci --tenant team-a --team search"))
    text = await rotate_key(api, "ci --tenant team-a --expire-old-in 24h")
    former = f"ci.{digest_of(old)[:8]}"
    assert f"the old key is {former} and ends at 2026-11-21T12:00Z" in text
    keys = api.keys()
    assert (keys["ci"].digest, keys["ci"].expires) == (digest_of(shown(text)), None)
    assert (keys[former].digest, keys[former].expires) == (digest_of(old), NOW + timedelta(days=1))
    assert keys["ci"].team == keys[former].team == "search"
    await rotate_key(api, "ci --tenant team-a", NOW + timedelta(days=2))
    left = api.keys()
    assert former not in left
    assert len(left) == 2


async def test_a_rotated_key_is_the_same_sender_as_its_successor() -> None:
    """Whatever reads an Identity cannot tell them apart: limits, rates, sums, queues, records."""
    api = SecretsApi()
    scope = "--team search --budget 20/Month --requests-per-minute 60 --models chat"
    old = shown(await create_key(api, f"ci --tenant team-a {scope}"))
    await create_key(api, "ci.sandbox --tenant team-a")
    await rotate_key(api, "ci --tenant team-a --expire-old-in 24h")
    former = f"ci.{digest_of(old)[:8]}"
    keys = api.keys()
    identities = {name: key_identity(key, NOW) for name, key in keys.items()}
    assert identities["ci"] == identities[former] != identities["ci.sandbox"]
    with pytest.raises(CommandError, match=rf"key {former} is the former key of ci"):
        await rotate_key(api, f"{former} --tenant team-a")


async def test_a_rotation_never_prolongs_a_key() -> None:
    api = SecretsApi()
    old = shown(await create_key(api, "ci --tenant team-a --expires 1h"))
    await rotate_key(api, "ci --tenant team-a")
    assert api.keys()[f"ci.{digest_of(old)[:8]}"].expires == NOW + timedelta(hours=1)


async def test_a_revoked_key_is_gone() -> None:
    api = SecretsApi()
    await create_key(api, "ci --tenant team-a")
    await create_key(api, "other --tenant team-a")
    arguments = KEY_REVOKE.parse(words("ci --tenant team-a"))
    assert "key ci of tenant team-a is revoked" in (await revoke(Reader(api), arguments)).text
    assert list(api.keys()) == ["other"]
    with pytest.raises(CommandError, match="key ci of tenant team-a not found; its keys: other"):
        await revoke(Reader(api), arguments)


async def test_of_two_changes_at_once_one_is_refused() -> None:
    api = SecretsApi()
    await create_key(api, "ci --tenant team-a")
    reader = Reader(api)
    await reader.list_objects(KEY_SECRETS, NAMESPACE)
    await create_key(api, "other --tenant team-a")
    with pytest.raises(CommandError, match="run the command again"):
        await rotate(reader, KEY_ROTATE.parse(words("ci --tenant team-a")), NOW)


async def test_keys_are_listed_by_tenant_without_the_keys() -> None:
    api = SecretsApi()
    keys = [
        shown(await create_key(api, "ci --tenant team-a --models chat --budget 5/Day")),
        shown(await create_key(api, "app --tenant team-b --expires 1h")),
    ]

    async def listing(text: str, hours: int = 0) -> str:
        arguments: SimpleNamespace = KEY_LIST.parse(words(text))
        return (await list_keys(Reader(api), arguments, NOW + timedelta(hours=hours))).text

    text = await listing("", hours=2)
    assert re.search(r"team-a +ci +- +chat +5/Day +2026-11-20T12:00Z +never", text)
    assert re.search(r"team-b +app +- +all +- +2026-11-20T12:00Z +expired", text)
    assert not any(key in text for key in keys)
    rows = json.loads(await listing("--tenant team-b --json"))["keys"]
    assert [(row["name"], row["sha256"]) for row in rows] == [("app", digest_of(keys[1]))]
    assert "no keys" in await listing("--tenant team-z")


async def test_without_the_permission_nothing_is_written() -> None:
    api = SecretsApi()
    api.denied = True
    with pytest.raises(DeniedError, match="create secret tessera-keys-team-a in namespace"):
        await create_key(api, "ci --tenant team-a")


async def old_key(api: SecretsApi, text: str) -> str:
    """Create a key as the version before did: in the namespace of the gateway."""
    words = [*text.split(), "--keys-namespace", GATEWAY_NAMESPACE]
    return shown((await create(Reader(api), KEY_CREATE.parse(words), NOW)).text)


async def test_keys_are_in_a_namespace_of_their_own_by_default() -> None:
    api = SecretsApi()
    await create(Reader(api), KEY_CREATE.parse(["ci", "--tenant", "team-a"]), NOW)
    assert {name: list(secrets) for name, secrets in api.namespaces.items() if secrets} == {
        "tessera-system-keys": ["tessera-keys-team-a"]
    }


async def test_keys_in_the_namespace_of_the_gateway_go_on_with_a_warning() -> None:
    api = SecretsApi()
    await old_key(api, "ci --tenant team-a")
    await old_key(api, "app --tenant team-a")

    text = (await list_keys(Reader(api), KEY_LIST.parse([]), NOW)).text
    assert "team-a" in text
    assert text.splitlines()[-1] == (
        "warning: Secret/tessera-keys-team-a is in namespace tessera-system, and the next version "
        "of the gateway reads keys in tessera-system-keys alone: move it as docs/tasks/upgrade.md "
        "says"
    )
    rotated = await rotate(Reader(api), KEY_ROTATE.parse(["ci", "--tenant", "team-a"]), NOW)
    assert api.keys()["ci"].digest == digest_of(shown(rotated.text))
    await revoke(Reader(api), KEY_REVOKE.parse(["app", "--tenant", "team-a"]))
    left = api.keys()
    assert "app" not in left
    with pytest.raises(CommandError, match="key ci of tenant team-a exists"):
        await create(Reader(api), KEY_CREATE.parse(["ci", "--tenant", "team-a"]), NOW)
    # Together, so that one move is all of the tenant's keys.
    await create(Reader(api), KEY_CREATE.parse(["new", "--tenant", "team-a"]), NOW)
    assert "new" in api.namespaces[GATEWAY_NAMESPACE]["tessera-keys-team-a"]["data"]


async def copied_key(api: SecretsApi) -> str:
    """Create a key where keys were, and copy it to where they are."""
    key = await old_key(api, "ci --tenant team-a")
    secret = json.loads(json.dumps(api.namespaces[GATEWAY_NAMESPACE]["tessera-keys-team-a"]))
    secret["metadata"]["namespace"] = NAMESPACE
    api.secrets["tessera-keys-team-a"] = secret
    return key


async def test_a_key_that_was_copied_is_revoked_in_both_namespaces() -> None:
    api = SecretsApi()
    await copied_key(api)
    await revoke(Reader(api), KEY_REVOKE.parse(["ci", "--tenant", "team-a"]))
    assert api.keys() == {}


async def test_a_copy_of_a_rotated_key_is_not_valid_again_when_the_old_namespace_is_empty() -> None:
    api = SecretsApi()
    key = await copied_key(api)
    await rotate(Reader(api), KEY_ROTATE.parse(["ci", "--tenant", "team-a"]), NOW)
    assert {each.expires for each in api.keys().values() if each.digest == digest_of(key)} != {None}
    api.namespaces[GATEWAY_NAMESPACE].clear()
    assert api.keys() == {}


@pytest.mark.parametrize("command", ["revoke", "rotate"])
async def test_a_namespace_that_was_not_read_is_warned_about(command: str) -> None:
    api = SecretsApi()
    await copied_key(api)
    api.hidden = GATEWAY_NAMESPACE
    if command == "revoke":
        output = await revoke(Reader(api), KEY_REVOKE.parse(["ci", "--tenant", "team-a"]))
    else:
        output = await rotate(Reader(api), KEY_ROTATE.parse(["ci", "--tenant", "team-a"]), NOW)
    assert "you may not read Secrets in namespace tessera-system: " in output.text


async def test_keys_are_managed_without_a_right_in_the_namespace_of_the_gateway() -> None:
    api = SecretsApi()
    api.hidden = GATEWAY_NAMESPACE
    await create(Reader(api), KEY_CREATE.parse(["ci", "--tenant", "team-a"]), NOW)
    assert list(api.keys()) == ["ci"]
    api.hidden = NAMESPACE
    with pytest.raises(DeniedError):
        await create(Reader(api), KEY_CREATE.parse(["app", "--tenant", "team-a"]), NOW)
