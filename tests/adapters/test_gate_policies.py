"""Who may go past a QualityGate is decided by the API server itself, by the chart's policies."""

import subprocess
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import pytest
import yaml

from environments import ROOT
from tessera.adapters.kube.client import KubeCluster
from tessera.api.api_resource import ApiResource
from tessera.domain.kinds.kinds import INFERENCE_SERVICES, QUALITY_GATES
from tessera.resources.api_resources import (
    CONTROLLER_REVISIONS,
    JOBS,
    NETWORK_POLICIES,
    SERVICE_ACCOUNTS,
)
from tests.conftest import GOLDEN
from world import World, binaries
from world.api import Api, ApiError, session
from world.testing import eventually

Json = dict[str, Any]

# Evan writes what is in the namespace; Paula may go past gates.
EVAN, PAULA = "evan", "paula"
OPERATOR = "system:serviceaccount:tessera-system:tessera-operator"
FREE, DEMANDED = "gates-free", "gates-demanded"
CHILDREN = {
    "apiGroups": ["batch", "", "networking.k8s.io"],
    "resources": ["jobs", "serviceaccounts", "networkpolicies"],
    "verbs": ["create"],
}
POLICIES = "/apis/admissionregistration.k8s.io/v1"
ROLES = "/apis/rbac.authorization.k8s.io/v1"
STABLE: Json = {
    "model": {"uri": "hf://org/stable"},
    "rollout": {"strategy": "Gated", "gateRef": "answers"},
}
DIGEST = "a" * 64
_worlds_with_policies = set[int]()
STATUSES = ("inferenceservices/status", "qualitygates/status")
GATE: Json = {
    "suite": {"configMap": {"name": "suite"}, "digest": DIGEST, "prompts": {"sums": 40, "code": 9}},
    "judge": {"service": "judge"},
    "require": "Proven",
    "repeats": 2,
    "minScore": "0.8",
}


@cache
def rendered() -> tuple[Json, ...]:
    helm = binaries.ensure(print, ("helm",)) / "helm"
    command = [
        *(str(helm), "template", "tessera", str(ROOT / "charts/tessera")),
        *("--namespace", "tessera-system", "--show-only", "templates/policies-gates.yaml"),
        *("--show-only", "templates/policies-operator.yaml"),
        *("--set", f"gates.require.namespaces={{{DEMANDED}}},gates.require.classes={{Batch}}"),
    ]
    done = subprocess.run(command, check=True, capture_output=True)
    return tuple(yaml.load_all(done.stdout, Loader=yaml.CSafeLoader))


@dataclass(frozen=True, slots=True)
class Writer:
    """Writes in dry runs, as a user."""

    api: Api

    async def refusal(self, body: Json, change: Mapping[str, Any] | None, kind: ApiResource) -> str:
        """Return why the user may not create an object, or change it; empty if he may."""
        meta = body["metadata"]
        path = kind.path(meta["namespace"], meta["name"] if change is not None else None)
        try:
            if change is None:
                await self.api.create(path, body, dryRun="All")
            else:
                await self.api.patch(f"{path}?dryRun=All", dict(change))
        except ApiError as error:
            return str(error)
        return ""


@dataclass(frozen=True, slots=True)
class Gates:
    """An API server with the policies, and the objects that users try to change."""

    admin: Api
    users: Mapping[str, Writer]

    async def expect(
        self, user: str, words: str, body: Json, change: Mapping[str, Any] | None, kind: ApiResource
    ) -> None:
        refusal = await self.users[user].refusal(body, change, kind)
        assert words in refusal if words else not refusal, (user, change, refusal)

    async def only_with_bypass(
        self, body: Json, change: Mapping[str, Any] | None, words: str, kind: ApiResource
    ) -> None:
        await self.expect(EVAN, words, body, change, kind)
        await self.expect(PAULA, "", body, change, kind)


def named(kind: ApiResource, name: str, namespace: str = FREE, **fields: Any) -> Json:
    meta = {"name": name, "namespace": namespace}
    return {"apiVersion": kind.api_version, "kind": kind.kind, "metadata": meta, **fields}


def a_service(spec: Json, name: str = "new", namespace: str = FREE) -> Json:
    return named(INFERENCE_SERVICES, name, namespace, spec=spec)


async def exist(api: Api, *bodies: Json) -> None:
    for body in bodies:
        status = body.pop("status", None)
        answer = await api.apply_manifest(body, "kubectl")
        if status is not None:
            path = await api.path_of(body)
            await api.patch(f"{path}/status", {"status": status})
        assert answer


async def grant(api: Api, user: str, *rules: Json) -> None:
    meta, group = {"name": f"gates-{user.rpartition(':')[2]}"}, "rbac.authorization.k8s.io"
    subject = {"apiGroup": group, "kind": "User", "name": user}
    reference = {"apiGroup": group, "kind": "ClusterRole", **meta}
    version = {"apiVersion": f"{group}/v1"}
    await exist(
        api,
        {**version, "kind": "ClusterRole", "metadata": meta, "rules": list(rules)},
        {
            **version,
            "kind": "ClusterRoleBinding",
            "metadata": meta,
            "roleRef": reference,
            "subjects": [subject],
        },
    )


@pytest.fixture
async def gates(cluster: KubeCluster, world: World) -> AsyncIterator[Gates]:
    """Install the policies once; they limit only services with a gate and their gates."""
    del cluster  # it has the CRDs installed
    writes = {
        "apiGroups": ["tessera.dev", "apps"],
        "resources": ["inferenceservices", "qualitygates", "controllerrevisions", *STATUSES],
        "verbs": ["get", "create", "patch", "delete"],
    }
    bypass = {"apiGroups": ["tessera.dev"], "resources": ["qualitygates"], "verbs": ["bypass"]}
    async with (
        session(world.kubeconfig) as admin_session,
        session(world.kubeconfig) as evan_session,
        session(world.kubeconfig) as paula_session,
        session(world.kubeconfig) as operator_session,
    ):
        admin, users = Api(admin_session), {}
        sessions = {EVAN: evan_session, PAULA: paula_session, OPERATOR: operator_session}
        for user, user_session in sessions.items():
            user_session.headers["Impersonate-User"] = user
            users[user] = Writer(Api(user_session))
        known = Gates(admin, users)
        if world.pid in _worlds_with_policies:
            yield known
            return
        namespaces = [
            {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}}
            for name in (FREE, DEMANDED)
        ]
        await exist(admin, *namespaces, *rendered())
        await grant(admin, EVAN, writes)
        await grant(admin, PAULA, writes, bypass)
        await grant(admin, OPERATOR, writes, CHILDREN)

        async def policies_hold() -> None:
            body = a_service(STABLE | {"rollout": STABLE["rollout"] | SKIP})
            await known.only_with_bypass(body, None, "needs the verb bypass", INFERENCE_SERVICES)

        await eventually(policies_hold)
        _worlds_with_policies.add(world.pid)
        yield known


SKIP: Json = {"skipGate": {"by": PAULA, "reason": "the old model is gone"}}


def skipping(user: str) -> Json:
    return {"spec": {"rollout": {"skipGate": SKIP["skipGate"] | {"by": user}}}}


async def test_who_skips_a_gate_has_the_verb_and_writes_his_own_name(gates: Gates) -> None:
    chat, kind = a_service(STABLE, "chat"), INFERENCE_SERVICES
    await exist(gates.admin, chat)
    await gates.expect(EVAN, "needs the verb bypass", chat, skipping(EVAN), kind)
    await gates.expect(EVAN, "needs the verb bypass", chat, skipping(PAULA), kind)
    await gates.expect(PAULA, "", chat, skipping(PAULA), kind)
    other = "must be the name of the user who writes it: paula"
    await gates.expect(PAULA, other, chat, skipping(EVAN), kind)
    for user in (EVAN, PAULA):
        await gates.expect(user, "", chat, {"spec": {"model": {"uri": "hf://org/next"}}}, kind)
        await gates.expect(user, "", a_service(STABLE), None, kind)


LATER: tuple[Json, ...] = (
    {"spec": {"model": {"uri": "hf://org/worse"}}},
    {"spec": {"precision": {"variants": [{"precision": "fp8"}]}}},
    {"spec": {"engine": {"version": "0.31.0"}}},
    {"spec": {"context": {"maxModelLen": 4096}}},
    {"spec": {"access": {"rateLimits": {"maxOutputTokens": 100}}}},
    {"spec": {"podTemplate": {"env": [{"name": "A", "value": "b"}]}}},
    {"metadata": {"annotations": {"tessera.dev/update": "2"}}},
)


async def test_a_skipped_gate_lets_no_later_change_of_others_pass(gates: Gates) -> None:
    chat = a_service(STABLE | {"rollout": STABLE["rollout"] | SKIP}, "skipped")
    await exist(gates.users[PAULA].api, chat)
    other_reason: Json = {"spec": {"rollout": {"skipGate": {"reason": "another one"}}}}
    for change in (*LATER, other_reason):
        await gates.only_with_bypass(chat, change, "needs the verb bypass", INFERENCE_SERVICES)
    without_skip: Json = {"rollout": {"skipGate": None}}
    for change in LATER:
        gated = {**change, "spec": {**change.get("spec", {}), **without_skip}}
        await gates.expect(EVAN, "", chat, gated, INFERENCE_SERVICES)
    await gates.expect(EVAN, "", chat, {"spec": {"replicas": 3}}, INFERENCE_SERVICES)


async def test_a_change_that_waits_or_was_refused_keeps_its_gate(gates: Gates) -> None:
    kind = INFERENCE_SERVICES
    refused = {
        "type": "Progressing",
        "status": "False",
        "reason": "RolledBack",
        "message": "",
        "observedGeneration": 1,
        "lastTransitionTime": "2026-11-20T12:00:00Z",
    }
    waits, was_refused, settled = (a_service(STABLE, name) for name in ("waits", "back", "settled"))
    await exist(
        gates.admin,
        waits | {"status": {"candidateRevision": "waits-1"}},
        was_refused | {"status": {"conditions": [refused]}},
        settled,
    )
    for rollout in (None, {"strategy": None}, {"strategy": "Rolling"}, {"gateRef": "lax"}):
        change = {"spec": {"rollout": rollout}}
        for service in (waits, was_refused):
            await gates.only_with_bypass(service, change, "waits for its QualityGate", kind)
        await gates.expect(EVAN, "", settled, change, kind)
    for fields in ({"model": {"uri": "hf://org/next"}}, {"replicas": 2}):
        await gates.expect(EVAN, "", waits, {"spec": fields}, kind)


LOOSER: tuple[tuple[str, Json], ...] = (
    ("maxDropPoints", {"maxDropPoints": "2.1"}),
    ("maxDropPoints", {"maxDropPoints": "10"}),
    ("maxRelativeDrop", {"maxRelativeDrop": "0.06"}),
    ("maxCostIncrease", {"maxCostIncrease": "0.01"}),
    ("minPrompts", {"minPrompts": 31}),
    ("repeats", {"repeats": 1}),
    ("repeats", {"repeats": None}),
    ("minScore", {"minScore": "0.79"}),
    ("minScore", {"minScore": None}),
    ("require", {"require": "NotWorse"}),
    ("require", {"require": None}),
    ("judge", {"judge": {"service": "friend"}}),
    ("judge", {"judge": None}),
    ("suite.digest", {"suite": {"digest": "b" * 64}}),
    ("suite.digest", {"suite": {"digest": None}}),
    ("suite.prompts", {"suite": {"prompts": {"sums": 39}}}),
    ("suite.prompts", {"suite": {"prompts": {"code": None}}}),
    ("suite.prompts", {"suite": {"prompts": None}}),
)


async def test_a_gate_is_loosened_only_by_who_may_bypass_it(gates: Gates) -> None:
    gate = named(QUALITY_GATES, "answers", spec=GATE)
    await exist(gates.admin, gate)
    for field, change in LOOSER:
        words = f"spec.{field}: a looser margin, or another suite, of QualityGate/answers needs"
        await gates.only_with_bypass(gate, {"spec": change}, words, QUALITY_GATES)


MIXED: tuple[tuple[str, Json], ...] = (
    ("maxRelativeDrop", {"maxDropPoints": "0.1", "maxRelativeDrop": "0.9"}),
    ("suite.prompts", {"suite": {"prompts": {"sums": 400, "code": 1}}}),
    ("suite.prompts", {"suite": {"prompts": {"sums": None, "small": 49}}}),
    ("repeats", {"maxDropPoints": "0.1", "minPrompts": 2, "repeats": 1}),
    (
        "suite.digest",
        {
            "suite": {
                "digest": "A" * 64,
                "configMap": None,
                "claim": {"claimName": "x", "path": "y"},
            }
        },
    ),
)


async def test_what_an_edit_makes_stricter_hides_nothing_that_it_loosens(gates: Gates) -> None:
    gate = named(QUALITY_GATES, "answers", spec=GATE)
    await exist(gates.admin, gate)
    for field, change in MIXED[:-1]:
        await gates.only_with_bypass(gate, {"spec": change}, f"spec.{field}:", QUALITY_GATES)
    field, change = MIXED[-1]
    refusal = await gates.users[EVAN].refusal(gate, {"spec": change}, QUALITY_GATES)
    assert refusal, "a digest of another case is no digest"


async def test_a_verdict_is_forged_in_no_status_without_the_verb(gates: Gates) -> None:
    chat, gate = a_service(STABLE, "forged"), named(QUALITY_GATES, "forged", spec=GATE)
    await exist(gates.admin, chat, gate)
    verdict = {"service": "forged", "candidate": "c", "suite": DIGEST, "scorer": "v1-r1/0"}
    verdict |= {"reason": "Passed", "message": "", "decidedAt": "2026-11-20T12:00:00Z"}
    forgeries = (
        (INFERENCE_SERVICES, {"candidateRevision": "", "conditions": []}),
        (INFERENCE_SERVICES, {"stableRevision": "forged-2"}),
        (QUALITY_GATES, {"verdicts": [verdict]}),
    )
    for kind, status in forgeries:
        for user, words in ((EVAN, "Only Tessera writes"), (PAULA, ""), (OPERATOR, "")):
            refusal = await forgery_refusal(gates.users[user], kind, status)
            assert words in refusal if words else not refusal, (user, status, refusal)


async def forgery_refusal(writer: Writer, kind: ApiResource, status: Json) -> str:
    try:
        await writer.api.patch(f"{kind.path(FREE, 'forged')}/status?dryRun=All", {"status": status})
    except ApiError as error:
        return str(error)
    return ""


async def test_a_name_that_looks_like_the_own_one_skips_no_gate(gates: Gates) -> None:
    chat = a_service(STABLE, "alike")
    await exist(gates.admin, chat)
    for name in ("Paula", "paula ", "p\u0430ula", "system:masters", EVAN):
        await gates.expect(PAULA, "must be the name", chat, skipping(name), INFERENCE_SERVICES)


async def test_who_writes_a_gate_makes_it_stricter(gates: Gates) -> None:
    gate = named(QUALITY_GATES, "answers", spec=GATE)
    await exist(gates.admin, gate)
    for change in (
        {"maxDropPoints": "1.9", "maxRelativeDrop": "0", "minPrompts": 2},
        {"repeats": 4, "timeout": "1h", "minScore": "0.85"},
        {"suite": {"prompts": {"sums": 41, "tools": 5}}},
        {"suite": {"configMap": None, "claim": {"claimName": "suites", "path": "a.jsonl"}}},
    ):
        await gates.expect(EVAN, "", gate, {"spec": change}, QUALITY_GATES)
    unpinned = named(QUALITY_GATES, "fresh", spec={"suite": {"configMap": {"name": "suite"}}})
    await exist(gates.admin, unpinned)
    pin = {"spec": {"suite": {"digest": DIGEST, "prompts": {"sums": 40}}}}
    await gates.expect(EVAN, "", unpinned, pin, QUALITY_GATES)


async def may_delete(writer: Writer, kind: ApiResource, name: str) -> bool:
    try:
        await writer.api.delete(kind.path(FREE, name), {"dryRun": ["All"]})
    except ApiError as error:
        if "verb bypass" not in str(error):
            raise
        return False
    return True


async def test_a_gate_in_use_and_the_versions_of_services_are_deleted_only_with_the_verb(
    gates: Gates,
) -> None:
    suite = {"suite": {"configMap": {"name": "suite"}}}
    running = {"service": "chat", "role": "Candidate", "answered": 1, "prompts": 9}
    gate, kind = QUALITY_GATES, CONTROLLER_REVISIONS
    revision = named(kind, "chat-1", data={"spec": STABLE}, revision=1)
    foreign = named(kind, "logs-1", data={}, revision=1)
    revision["metadata"]["labels"] = {"app.kubernetes.io/managed-by": "tessera"}
    await exist(
        gates.admin,
        named(gate, "pinned", spec=GATE),
        named(gate, "running", spec=suite, status={"progress": [running]}),
        named(gate, "scored", spec=suite | {"minScore": "0.8"}),
        named(gate, "unused", spec=suite),
        revision,
        foreign,
    )
    for resource, name, by_all in (
        (gate, "pinned", False),
        (gate, "running", False),
        (gate, "scored", False),
        (gate, "unused", True),
        (kind, "chat-1", False),
        (kind, "logs-1", True),
    ):
        allowed = [await may_delete(gates.users[user], resource, name) for user in (EVAN, PAULA)]
        assert allowed == [by_all, True], name
    await gates.only_with_bypass(revision, {"revision": 9}, "Only Tessera writes", kind)
    await gates.expect(EVAN, "", foreign, {"revision": 2}, kind)
    forged = named(kind, "chat-9", data={"spec": STABLE}, revision=9)
    await gates.expect(EVAN, "", forged, None, kind)
    forged["metadata"]["labels"] = revision["metadata"]["labels"]
    await gates.only_with_bypass(forged, None, "Only Tessera writes", kind)
    labelled = {"metadata": {"labels": revision["metadata"]["labels"]}}
    await gates.only_with_bypass(foreign, labelled, "Only Tessera writes", kind)


async def test_the_operator_writes_versions_of_objects_of_tessera_alone(gates: Gates) -> None:
    kind, words = CONTROLLER_REVISIONS, "only versions of objects of tessera.dev"
    service = a_service(STABLE, "owner")
    await exist(gates.admin, service)
    uid = (await gates.admin.get(INFERENCE_SERVICES.path(FREE, "owner")))["metadata"]["uid"]
    api_version, reference = INFERENCE_SERVICES.api_version, {"name": "owner", "controller": True}
    own = {"apiVersion": api_version, "kind": "InferenceService", **reference, "uid": uid}
    other = {"apiVersion": "apps/v1", "kind": "DaemonSet", **reference, "uid": "uid-logs"}
    bodies = {}
    for name, owners in (("own-1", [own]), ("other-1", [other]), ("orphan-1", [])):
        body = bodies[name] = named(kind, name, data={}, revision=1)
        labels = {"app.kubernetes.io/managed-by": "tessera"}
        body["metadata"] |= {"labels": labels, "ownerReferences": owners}
        await gates.expect(OPERATOR, "" if owners == [own] else words, body, None, kind)
    await exist(gates.admin, bodies["own-1"], bodies["orphan-1"])
    await gates.expect(OPERATOR, "", bodies["own-1"], {"revision": 2}, kind)
    await gates.expect(OPERATOR, words, bodies["orphan-1"], {"revision": 2}, kind)
    stolen: Json = {"metadata": {"ownerReferences": [other]}}
    await gates.expect(OPERATOR, words, bodies["own-1"], stolen, kind)


async def test_the_operator_creates_what_gates_need_and_no_other_pod(gates: Gates) -> None:
    kinds = {kind.kind: kind for kind in (JOBS, SERVICE_ACCOUNTS, NETWORK_POLICIES)}
    reviewed = (GOLDEN / "gate.yaml").read_text(encoding="utf-8")
    bodies = [body for body in yaml.safe_load_all(reviewed) if body["kind"] in kinds]
    assert {body["kind"] for body in bodies} == {*kinds}
    for body in bodies:
        body["metadata"]["namespace"] = FREE
        await gates.expect(OPERATOR, "", body, None, kinds[body["kind"]])
    job = next(body for body in bodies if body["kind"] == "Job")
    job["spec"]["template"]["spec"]["serviceAccountName"] = "default"
    await gates.expect(OPERATOR, "may run pods only with the accounts", job, None, JOBS)
    account = named(SERVICE_ACCOUNTS, "tessera-other")
    await gates.expect(OPERATOR, "may write only the names", account, None, SERVICE_ACCOUNTS)


async def test_where_the_platform_demands_a_gate_a_service_has_one(gates: Gates) -> None:
    kind, words = INFERENCE_SERVICES, "must be Gated here"
    plain: Json = {"model": {"uri": "hf://org/model"}}
    for body in (
        a_service(plain, namespace=DEMANDED),
        a_service(plain | {"rollout": {"strategy": "Rolling"}}, namespace=DEMANDED),
        a_service(plain | {"class": "Batch"}),
    ):
        await gates.only_with_bypass(body, None, words, kind)
    for spec in (STABLE, STABLE | {"class": "Batch"}):
        await gates.expect(EVAN, "", a_service(spec, namespace=DEMANDED), None, kind)
    await gates.expect(EVAN, "", a_service(plain), None, kind)
    older = a_service(plain, "older", DEMANDED)
    await exist(gates.admin, older)
    await gates.only_with_bypass(older, {"spec": {"replicas": 2}}, words, kind)
    await gates.expect(EVAN, "", older, {"metadata": {"labels": {"a": "b"}}}, kind)
    await gates.expect(EVAN, "", older, {"spec": STABLE}, kind)
    gated = a_service(STABLE, "gated", DEMANDED)
    await exist(gates.admin, gated)
    lax: Json = {"spec": {"model": {"uri": "hf://org/next"}, "rollout": {"gateRef": "lax"}}}
    await gates.only_with_bypass(gated, lax, "Another one than before needs", kind)
    await gates.expect(EVAN, "", gated, {"spec": {"model": {"uri": "hf://org/next"}}}, kind)


async def test_no_way_through_another_class_goes_past_a_demanded_gate(gates: Gates) -> None:
    kind, words = INFERENCE_SERVICES, "A class that needs none needs the verb bypass"
    night = a_service(STABLE | {"class": "Batch"}, "night")
    await exist(gates.admin, night)
    following: Json = {"model": {"uri": "hf://org/next"}, "rollout": {"strategy": "Rolling"}}
    for spec in (
        {"class": "Interactive"},
        {"class": None},
        {"class": "Interactive"} | following,
    ):
        await gates.only_with_bypass(night, {"spec": spec}, words, kind)
    await gates.expect(EVAN, "", night, {"spec": {"model": following["model"]}}, kind)
    await gates.expect(EVAN, "", night, {"metadata": {"labels": {"a": "b"}}}, kind)
    # A namespace that demands a gate demands it of all classes.
    inside = a_service(STABLE | {"class": "Batch"}, "night", DEMANDED)
    await exist(gates.admin, inside)
    await gates.expect(EVAN, "", inside, {"spec": {"class": "Interactive"}}, kind)
    free = a_service({"model": {"uri": "hf://org/model"}}, "free")
    await exist(gates.admin, free)
    await gates.expect(EVAN, "", free, {"spec": {"class": "Batch"} | STABLE}, kind)


async def test_the_api_server_finds_nothing_wrong_with_these_policies(gates: Gates) -> None:
    async def policies_are_checked() -> None:
        listed = await gates.admin.get(f"{POLICIES}/validatingadmissionpolicies")
        own = [
            body["status"]
            for body in listed["items"]
            if body["metadata"]["name"].startswith("tessera-operator-tessera-system-")
        ]
        assert len(own) == 8
        for status in own:
            assert status.get("observedGeneration"), status
            assert status.get("typeChecking", {}).get("expressionWarnings", []) == []

    await eventually(policies_are_checked)
