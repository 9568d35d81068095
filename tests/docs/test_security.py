"""Lines of pages name tests that exist, claims on security one each, and rights what they give."""

import ast
import re
from pathlib import Path
from typing import get_args

import pytest

import takeovers
from chart_rights import granted_rights, render_with
from generate import CHART
from tessera.api.tenant_budget import BudgetBasis

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "security.md").read_text(encoding="utf-8")
SECTIONS = {
    "## A hostile tenant, editor, or node": 30,
    "## A hostile client of the gateway": 10,
    "## Policies": 7,
    "## Pods": 5,
    "## What asks the budget": 6,
    "## Network": 6,
    "## Secrets": 7,
}
VERIFIED = (ROOT / "docs" / "verified.md").read_text(encoding="utf-8")
NAMED_TESTS = sorted(set(re.findall(r"`((?:tests|e2e)/[\w/]+\.py)::(\w+)`", PAGE + VERIFIED)))
# What users are promised beside single models, each with a row in the page of what was verified.
PROMISES = ("charges", "gates", "routes", "outside providers", "energy")


@pytest.mark.parametrize(("path", "name"), NAMED_TESTS)
def test_a_named_test_exists(path: str, name: str) -> None:
    tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
    functions = (ast.FunctionDef, ast.AsyncFunctionDef)
    assert name in {node.name for node in tree.body if isinstance(node, functions)}


@pytest.mark.parametrize("promise", PROMISES)
def test_what_was_verified_names_a_test_of_each_promise(promise: str) -> None:
    rows = [line for line in VERIFIED.splitlines() if line.startswith(f"| {promise}: ")]
    assert [row.count("::test_") > 0 for row in rows] == [True]


@pytest.mark.parametrize(("title", "count"), SECTIONS.items())
def test_every_claim_names_its_test(title: str, count: int) -> None:
    section = PAGE.partition(title)[2].partition("\n## ")[0]
    rows = [line for line in section.splitlines() if line.startswith("| ")]
    claims = [row for row in rows if not re.match(r"\|( ---|.* test \|$)", row)]
    assert len(claims) >= count
    assert not [claim for claim in claims if "::test_" not in claim]


def test_every_section_has_its_tests_or_is_no_claim() -> None:
    no_claims = {
        "## Who is trusted with what",
        "## Rights, and what a takeover gives",
        "## What is not enforced",
    }
    assert set(re.findall(r"^## .*", PAGE, re.MULTILINE)) == {*SECTIONS, *no_claims}


@pytest.mark.parametrize(
    ("template", "before", "after", "message"),
    [
        (
            "gateway.yaml",
            "resources: [pods]\n  verbs: [list]",
            "resources: [pods]\n  verbs: [list, delete]",
            "tessera-gateway may list, delete pods in tessera-system: say in tools/takeovers.toml",
        ),
        (
            "node.yaml",
            "resources: [nodes]",
            "resources: [nodes, secrets]",
            "tessera-node may get secrets in the cluster: say in",
        ),
        (
            "gateway.yaml",
            "- name: tmp\n        emptyDir: {medium: Memory, sizeLimit: 64Mi}",
            "- name: tmp\n        secret: {secretName: spare}",
            "tessera-gateway may read secret spare in its pod: say in",
        ),
        (
            "batch-runner.yaml",
            "metadata:\n  name:",
            "metadata:\n  name: x\n"
            "rules:\n- {apiGroups: [''], resources: [pods/exec], verbs: ['*']}\n---\n"
            "apiVersion: rbac.authorization.k8s.io/v1\nkind: ClusterRole\nmetadata:\n  name:",
            "who has the role x may * pods/exec in the cluster: say in",
        ),
        (
            "batch-runner.yaml",
            "metadata:\n  name:",
            "metadata:\n  name: x\naggregationRule: {clusterRoleSelectors: []}\n---\n"
            "apiVersion: rbac.authorization.k8s.io/v1\nkind: ClusterRole\nmetadata:\n  name:",
            "who has the role x may all of roles with a label in the cluster: say in",
        ),
        (
            "gateway.yaml",
            "kind: ClusterRole\nmetadata:\n  name: {{ $name }}\n  labels:",
            "kind: ClusterRole\nmetadata:\n  name: {{ $name }}\n  labels:\n"
            "    rbac.authorization.k8s.io/aggregate-to-view: 'true'",
            "who has the role tessera-gateway-tessera-system may create tokenreviews.",
        ),
        (
            "node.yaml",
            "name: tessera-node\n  namespace: {{ .Release.Namespace }}\n---\n# An agent may",
            "name: tessera-node\n  namespace: default\n---\n# An agent may",
            "ServiceAccount default tessera-node may get nodes in the cluster: say in",
        ),
        (
            "node.yaml",
            "name: tessera-node\n  namespace: {{ .Release.Namespace }}\n---\n# An agent may",
            "name: tessera-node\n  namespace: {{ .Release.Namespace }}\n"
            "- {kind: Group, name: tessera-node}\n---\n# An agent may",
            "Group tessera-node may get nodes in the cluster: say in",
        ),
        (
            "gateway.yaml",
            "  resources: [tokenreviews]\n  verbs: [create]",
            "  resources: [tokenreviews]\n  verbs: []",
            "create tokenreviews.authentication.k8s.io in the cluster is not granted: remove it",
        ),
    ],
)
def test_a_right_without_a_sentence_fails_the_check(
    template: str, before: str, after: str, message: str
) -> None:
    path = f"templates/{template}"
    text = (ROOT / CHART / path).read_text(encoding="utf-8")
    assert text.count(before) == 1
    objects = render_with(ROOT / CHART, {path: text.replace(before, after)})
    with pytest.raises(SystemExit, match=re.escape(message)):
        takeovers.page(objects)


def test_every_account_of_the_chart_is_in_the_table() -> None:
    objects = render_with(ROOT / CHART, {})
    accounts = {body["metadata"]["name"] for body in objects if body["kind"] == "ServiceAccount"}
    accounts |= {right.account for right in granted_rights(objects)}
    page = (ROOT / takeovers.PAGE).read_text(encoding="utf-8")
    assert accounts <= set(re.findall(r"^\| `([\w-]+)` \|", page, re.MULTILINE))


def test_the_page_names_what_the_chart_and_the_types_give() -> None:
    objects = render_with(ROOT / CHART, {})
    by_name = {(body["kind"], body["metadata"]["name"]): body for body in objects}
    (gateway,) = by_name["Deployment", "tessera-gateway"]["spec"]["template"]["spec"]["containers"]
    secrets = {
        right.where
        for right in granted_rights(objects)
        if (right.account, right.resource) == ("tessera-gateway", "secrets")
    }
    (workloads,) = [
        str(body["spec"])
        for (kind, name), body in by_name.items()
        if kind == "ValidatingAdmissionPolicy" and name.endswith("-workloads")
    ]
    accounts = {*re.findall(r"'(tessera-\w+)'", workloads)}
    given = {
        "| Secrets that the gateway may read |": secrets,
        "| gateway | 8443": {port["containerPort"] for port in gateway["ports"]},
        "| operator, `…-workloads` |": accounts,
        "| operator | any image": accounts,
        "- Requests have only limits": {*get_args(BudgetBasis)},
    }
    for beginning, words in given.items():
        (line,) = [line for line in PAGE.splitlines() if line.startswith(beginning)]
        assert len(words) > 1
        assert not [word for word in words if not re.search(rf"\b{word}\b(?!-)", line)], line
