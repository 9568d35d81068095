"""What Helm renders from the chart's values, without a cluster."""

import json
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from chart_rights import Right, granted_rights
from chart_values import Chart
from demo.cluster import CHART, NAMESPACE
from takeovers import SENTENCES
from tessera.adapters.catalog_file import read_catalog
from tessera.api.gateway_demand import DEMAND_AUDIENCE
from tessera.api.rate_limits import PeriodLimits, RateLimitsSpec
from tessera.api.service_class import ServiceClasses
from tessera.api.tenant_budget import TenantBudgetSpec
from tessera.cli.doctor.operator import policy_names
from tessera.domain.names import USAGE_READER, keys_namespace, prepull_namespace
from tessera.resources.api_resources import KINDS
from tessera.settings import GatewaySettings, NodeSettings, Settings
from tests.catalogs import A5000
from world import binaries

RELEASE = ("template", "tessera", str(CHART), "--namespace", "tessera-system")
GOLDEN = Path(__file__).parent / "golden"
WITHOUT_GATEWAY = ("--set", "gateway.enabled=false")
POSTGRESQL = ("--set", "gateway.database.secretName=database")
# By kind and name.
Objects = dict[tuple[str, str], dict[str, Any]]


def render(*arguments: str) -> Objects:
    helm = binaries.ensure(print) / "helm"
    process = subprocess.run([str(helm), *RELEASE, *arguments], check=True, capture_output=True)
    bodies = [body for body in yaml.load_all(process.stdout, Loader=yaml.CSafeLoader) if body]
    objects = {(body["kind"], _name(body)): body for body in bodies}
    assert len(objects) == len(bodies)
    return objects


def _name(body: dict[str, Any]) -> str:
    meta = body["metadata"]
    inside = f"{meta['namespace']}/" if body["kind"] in ("Role", "RoleBinding") else ""
    return f"{inside}{meta['name']}"


def render_error(*arguments: str) -> str:
    helm = binaries.ensure(print) / "helm"
    process = subprocess.run([str(helm), *RELEASE, *arguments], check=False, capture_output=True)
    assert process.returncode
    return process.stderr.decode()


def plurals(rules: list[dict[str, Any]]) -> set[str]:
    return {name.partition("/")[0] for rule in rules for name in rule["resources"]}


def test_autoscalers_are_listed_and_written_with_their_value_alone() -> None:
    role = "tessera-operator-tessera-system"
    enabled = ("--set", "hpa.enabled=true")

    def may(rules: list[dict[str, Any]]) -> set[str]:
        named = [rule for rule in rules if "horizontalpodautoscalers" in rule["resources"]]
        return {verb for rule in named for verb in rule["verbs"]}

    # Somebody else's autoscaler of a Deployment is looked for wherever they conflict.
    assert may(render()["ClusterRole", role]["rules"]) == {"list"}
    assert "patch" in may(render(*enabled)["ClusterRole", role]["rules"])
    named = render(*enabled, "--set", "watch.namespaces={a}")
    assert not may(named["ClusterRole", role]["rules"])
    assert "patch" in may(named["Role", f"a/{role}"]["rules"])


def test_a_test_that_succeeded_leaves_no_pod() -> None:
    annotations = render()["Pod", "tessera-operator-test"]["metadata"]["annotations"]
    policy = annotations["helm.sh/hook-delete-policy"]
    assert policy == "before-hook-creation,hook-succeeded"


def test_every_right_is_granted_cluster_wide_or_in_each_named_namespace() -> None:
    everywhere = render()["ClusterRole", "tessera-operator-tessera-system"]["rules"]
    prepull_plurals = {kind.plural for kind in KINDS if kind.in_prepull_namespace}
    listed_on_demand = {"events", "horizontalpodautoscalers"}
    in_cluster = {kind.plural for kind in KINDS if not kind.namespaced} | {"pricelists"}
    everything = {kind.plural for kind in KINDS} | listed_on_demand | in_cluster
    assert plurals(everywhere) == everything - prepull_plurals
    named = render("--set", "watch.namespaces={a,b}")
    cluster = named["ClusterRole", "tessera-operator-tessera-system"]["rules"]
    assert plurals(cluster) == in_cluster
    for namespace in ("a", "b"):
        rules = named["Role", f"{namespace}/tessera-operator-tessera-system"]["rules"]
        namespaced = {kind.plural for kind in KINDS if kind.namespaced} | listed_on_demand
        assert plurals(rules) == namespaced - prepull_plurals
        bound = named["RoleBinding", f"{namespace}/tessera-operator-tessera-system"]
        assert bound["subjects"][0]["namespace"] == "tessera-system"
        for rule in rules:
            assert rule in everywhere
    for objects in (render(), named):
        role = objects["Role", "tessera-system-prepull/tessera-operator"]
        assert plurals(role["rules"]) == prepull_plurals


def test_events_are_created_and_patched_where_objects_are_and_in_the_default_namespace() -> None:
    named, anywhere = render("--set", "watch.namespaces={a,b}"), render()
    rule = {"apiGroups": ["events.k8s.io"], "resources": ["events"], "verbs": ["create", "patch"]}
    name = "tessera-operator-tessera-system"
    assert rule in anywhere["ClusterRole", name]["rules"]
    assert rule in named["Role", f"a/{name}"]["rules"]
    # Events of cluster-scoped objects can be nowhere else.
    assert named["Role", f"default/{name}-events"]["rules"] == [rule]
    subject = named["RoleBinding", f"default/{name}-events"]["subjects"][0]
    assert (subject["name"], subject["namespace"]) == ("tessera-operator", "tessera-system")
    assert not [key for key in anywhere if key[1].startswith("default/")]


def test_pods_that_pre_pull_images_have_a_restricted_namespace_without_any_network() -> None:
    for arguments in ((), ("--namespace", "n" * 63)):
        objects = render(*arguments)
        operator = objects["Deployment", "tessera-operator"]["metadata"]["namespace"]
        namespace = objects["Namespace", prepull_namespace(operator)]
        restricted = "pod-security.kubernetes.io/enforce"
        assert namespace["metadata"]["labels"][restricted] == "restricted"
        policy = objects["NetworkPolicy", "deny-all"]
        assert policy["metadata"]["namespace"] == namespace["metadata"]["name"]
        assert policy["spec"] == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}


def test_two_releases_share_no_object_of_the_cluster_but_the_crds() -> None:
    first = render()
    second = render("--namespace", "another")
    shared = {
        key
        for key in first.keys() & second.keys()
        if "namespace" not in first[key]["metadata"] and key[0] != "CustomResourceDefinition"
    }
    assert shared == set()


def test_the_operator_never_writes_the_secret_that_cert_manager_owns() -> None:
    objects = render("--set", "webhook.certManager.enabled=true")
    assert objects["Certificate", "tessera-webhook"]["spec"]["dnsNames"] == [
        "tessera-webhook.tessera-system.svc"
    ]
    assert ("Issuer", "tessera-webhook") in objects
    rules = objects["Role", "tessera-system/tessera-operator"]["rules"]
    (secrets,) = [rule for rule in rules if rule["resources"] == ["secrets"]]
    assert secrets["verbs"] == ["get"]
    hooks = objects["ValidatingWebhookConfiguration", "tessera-operator-tessera-system"]
    injected = hooks["metadata"]["annotations"]["cert-manager.io/inject-ca-from"]
    assert injected == "tessera-system/tessera-webhook"
    assert not any(kind == "ClusterRole" and "admission" in name for kind, name in objects)
    own = render("--set", "webhook.certManager.enabled=true,webhook.certManager.issuerRef.name=x")
    assert ("Issuer", "tessera-webhook") not in own


def test_without_admission_none_of_its_objects_is_rendered() -> None:
    objects = render(*WITHOUT_GATEWAY, "--set", "webhook.enabled=false")
    assert not any("webhook" in name or "admission" in name for _, name in objects)
    assert "secrets" not in plurals(objects["Role", "tessera-system/tessera-operator"]["rules"])


def test_prometheus_scrapes_by_tls_with_the_token_of_an_account_that_only_reads_metrics() -> None:
    objects = render("--api-versions", "monitoring.coreos.com/v1/PodMonitor")
    (endpoint,) = objects["PodMonitor", "tessera-operator"]["spec"]["podMetricsEndpoints"]
    assert endpoint["scheme"] == "https"
    credentials = endpoint["authorization"]["credentials"]
    secret = objects["Secret", credentials["name"]]
    assert (secret["type"], credentials["key"]) == ("kubernetes.io/service-account-token", "token")
    account = secret["metadata"]["annotations"]["kubernetes.io/service-account.name"]
    assert objects["ServiceAccount", account]["automountServiceAccountToken"] is False
    bound = [
        body["roleRef"]["name"]
        for (kind, _), body in objects.items()
        if kind.endswith("Binding") and account in str(body.get("subjects"))
    ]
    (role,) = bound
    rules = objects["ClusterRole", role]["rules"]
    assert rules == [{"nonResourceURLs": ["/metrics"], "verbs": ["get"]}]
    assert render()["ClusterRole", role]["rules"] == rules
    assert not any(kind == "Secret" for kind, _ in render())


def test_labels_by_which_prometheus_selects_are_on_all_pod_monitors() -> None:
    kind = "monitoring.coreos.com/v1/PodMonitor"
    objects = render("--api-versions", kind, "--set", "prometheus.monitorLabels.release=stack")
    for name in ("tessera-operator", "tessera-gateway"):
        assert objects["PodMonitor", name]["metadata"]["labels"]["release"] == "stack"
    (operator,) = objects["Deployment", "tessera-operator"]["spec"]["template"]["spec"][
        "containers"
    ]
    variables = {variable["name"]: variable.get("value") for variable in operator["env"]}
    labels = json.loads(variables["TESSERA_MONITOR_LABELS"])
    assert Settings(monitor_labels=labels).monitor_labels == {"release": "stack"}


def test_the_operator_may_review_the_tokens_of_its_readers() -> None:
    objects = render("--set", "serviceAccount.name=fleet")
    binding = objects["ClusterRoleBinding", "tessera-operator-tessera-system-auth-delegator"]
    assert binding["roleRef"]["name"] == "system:auth-delegator"
    assert [subject["name"] for subject in binding["subjects"]] == ["fleet"]


PRODUCTION = ("--values", str(CHART / "values-production.yaml"))


def test_the_production_values_run_two_processes_apart_and_a_gateway_on_postgresql() -> None:
    secrets = "gateway.database.secretName=database,gateway.tls.secretName=tls"
    rules = ("--api-versions", "monitoring.coreos.com/v1/PrometheusRule")
    objects = render(*PRODUCTION, *rules, "--set", secrets)
    for name in ("tessera-operator", "tessera-gateway"):
        template = objects["Deployment", name]["spec"]["template"]["spec"]
        (near, _) = template["affinity"]["podAntiAffinity"][
            "preferredDuringSchedulingIgnoredDuringExecution"
        ]
        assert near["podAffinityTerm"]["topologyKey"] == "kubernetes.io/hostname"
        assert objects["PodDisruptionBudget", name]["spec"]["maxUnavailable"] == 1
        assert ("PodDisruptionBudget", name) not in render()
    (operator,) = objects["Deployment", "tessera-operator"]["spec"]["template"]["spec"][
        "containers"
    ]
    assert {"name": "TESSERA_REQUIRE_BUDGET", "value": "true"} in operator["env"]
    assert objects["HorizontalPodAutoscaler", "tessera-gateway"]["spec"]["minReplicas"] == 2
    (port,) = objects["Service", "tessera-gateway"]["spec"]["ports"]
    assert port["port"] == 443
    assert ("ConfigMap", "tessera-dashboards") in objects
    assert ("PrometheusRule", "tessera-operator") in objects


def test_the_production_values_without_their_secrets_are_refused_with_what_to_write() -> None:
    error = render_error(*PRODUCTION)
    for name, create in (
        ("database", "create secret generic gateway-database --from-literal=url="),
        ("tls", "create secret tls gateway-tls --cert=tls.crt --key=tls.key"),
    ):
        assert f"- gateway.{name}.secretName is missing: name the Secret" in error
        assert f"`kubectl -n tessera-system {create}" in error
    assert "gateway.database" not in render_error(
        *PRODUCTION, "--set", "gateway.database.secretName=database"
    )
    # An Ingress or a Gateway ends TLS.
    assert render(*PRODUCTION, *POSTGRESQL, "--set", "gateway.tls.secretName=")


def test_the_usual_values_reach_the_operators_pod_and_its_service_account() -> None:
    objects = render(
        *("--set", "serviceAccount.name=fleet", "--set", "serviceAccount.annotations.role=gpu"),
        *("--set", "podAnnotations.team=ml", "--set", "podLabels.cost=lab"),
        *("--set", "extraEnv[0].name=HTTPS_PROXY", "--set", "extraEnv[0].value=http://proxy"),
    )
    template = objects["Deployment", "tessera-operator"]["spec"]["template"]
    assert template["metadata"]["annotations"] == {"team": "ml"}
    assert template["metadata"]["labels"]["cost"] == "lab"
    assert {"name": "HTTPS_PROXY", "value": "http://proxy"} in (
        template["spec"]["containers"][0]["env"]
    )
    assert template["spec"]["serviceAccountName"] == "fleet"
    assert objects["ServiceAccount", "fleet"]["metadata"]["annotations"] == {"role": "gpu"}
    bound = [
        subject["name"]
        for (kind, name), body in objects.items()
        if kind.endswith("Binding") and "subjects" in body
        if "node" not in name and "gateway" not in name
        for subject in body["subjects"]
        if subject.get("namespace") == "tessera-system"
    ]
    assert set(bound) == {"fleet"}
    assert ("ServiceAccount", "shared") not in render(
        "--set", "serviceAccount.create=false,serviceAccount.name=shared"
    )


@pytest.mark.parametrize(
    "values",
    [
        "prometheus.url=http://prometheus:9090",
        "prometheus.job=a,prometheus.gpuJob=g,prometheus.secretName=b",
        "prometheus.tokenFile=/c,prometheus.caFile=/d",
        "watch.namespaces={a,b}",
        "webhook.certManager.enabled=true,webhook.certificateDurationDays=30",
        "imagePullSecrets[0].name=registry",
        "gateway.providers.enabled=true",
    ],
)
def test_every_variable_that_the_chart_sets_is_one_that_the_operator_reads(values: str) -> None:
    objects = render("--set", values)
    pods = (
        objects["Deployment", "tessera-operator"]["spec"]["template"]["spec"],
        objects["Pod", "tessera-operator-test"]["spec"],
    )
    for pod in pods:
        variables = {
            variable["name"].removeprefix("TESSERA_").lower(): variable.get("value")
            for variable in pod["containers"][0]["env"]
            if variable["name"].startswith("TESSERA_")
        }
        assert set(variables) <= set(Settings.model_fields)
        settings_values = {
            name: json.loads(text) if text.startswith(("[", "{")) else text
            for name, text in variables.items()
            if text is not None
        }
        Settings.model_validate(settings_values)


def test_every_pod_of_the_chart_comes_from_the_mirror_if_there_is_one() -> None:
    objects = render("--set", "platform.imageRegistry=registry.acme/mirror")
    pods = (
        objects["Deployment", "tessera-operator"]["spec"]["template"]["spec"],
        objects["Pod", "tessera-operator-test"]["spec"],
    )
    for pod in pods:
        assert all(
            container["image"].startswith("registry.acme/mirror/")
            for container in pod["containers"]
        )


def test_every_pod_of_the_chart_is_restricted() -> None:
    objects = render()
    pods = (
        objects["Deployment", "tessera-operator"]["spec"]["template"]["spec"],
        objects["Pod", "tessera-operator-test"]["spec"],
    )
    for pod in pods:
        security = pod["containers"][0]["securityContext"]
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert security["readOnlyRootFilesystem"] is True
        assert security["allowPrivilegeEscalation"] is False
        assert security["capabilities"] == {"drop": ["ALL"]}


def test_the_network_policy_of_the_operator_is_as_reviewed(request: pytest.FixtureRequest) -> None:
    policy = render()["NetworkPolicy", "tessera-operator"]
    path = GOLDEN / "networkpolicy.yaml"
    text = yaml.safe_dump(policy, sort_keys=False, width=100)
    if request.config.getoption("--update-golden"):
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")
    assert text == path.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "value",
    [
        "watch.namespaces={Not_A_Name}",
        "webhook.certificateDurationDays=0",
        "webhook.certManager.issuerRef.kind=Secret",
        "unknown=1",
        "classes.Background=1",
        "classes.Batch.ttft=1s",
        "classes.Batch.ttftP95=soon",
        "classes.Batch.minReplicas=0",
        "classes.Interactive.tiers={Spot}",
    ],
)
def test_values_that_the_schema_does_not_know_are_refused(value: str) -> None:
    assert value.partition("=")[0].rpartition(".")[2] in render_error("--set", value)


def test_values_of_another_version_get_a_sentence_each_instead_of_a_schema() -> None:
    error = render_error(
        *("--set", "gateway.requireNameGrants=false,gateway.tls.cert=a,colour=red,podTemplate=null")
    )
    lines = [line for line in error.splitlines() if line.startswith("- ")]
    texts = (
        "colour is no value of this version; the chart has: affinity, batchImage",
        "gateway.requireNameGrants: gone since 0.2.0, ",
        "gateway.tls.cert is no value of this version; gateway.tls has: secretName.",
        "podTemplate is missing: leave it out",
    )
    for line, text in zip(lines, texts, strict=True):
        assert line.startswith(f"- {text}")
    assert "--reset-then-reuse-values" in lines[1]
    assert "--reset-then-reuse-values" in lines[3]


def test_values_of_every_chart_and_of_another_one_are_let_through() -> None:
    """Free maps have any keys, and parts that may be null are not missed."""
    values = "podLabels.any=a,nodeSelector.any=b,global.any=c,gateway.defaultRateLimits=null"
    assert render("--set", values)


def read_notes(*arguments: str) -> str:
    """Return what Helm prints after an installation."""
    helm = binaries.ensure(print) / "helm"
    install = ("install", *RELEASE[1:], "--dry-run=client", *arguments)
    done = subprocess.run([str(helm), *install], check=True, capture_output=True, text=True)
    return done.stdout.partition("NOTES:")[2]


@pytest.mark.parametrize(
    ("values", "url", "command"),
    [
        (
            "requireBudget=false",
            "http://tessera-gateway.tessera-system.svc/v1",
            "port-forward service/tessera-gateway 8080:80 &",
        ),
        (
            "gateway.tls.secretName=tls",
            "https://tessera-gateway.tessera-system.svc/v1",
            "port-forward service/tessera-gateway 8080:443 &",
        ),
        (
            "gateway.ingress.enabled=true,gateway.ingress.host=ai.example",
            "http://ai.example/v1",
            "URL=http://ai.example/v1",
        ),
        (
            "gateway.httpRoute.enabled=true,gateway.httpRoute.parentRefs[0].name=a,"
            "gateway.httpRoute.hostnames={ai.example}",
            "https://ai.example/v1",
            "URL=https://ai.example/v1",
        ),
        (
            "gateway.keysNamespace=keys",
            "http://tessera-gateway.tessera-system.svc/v1",
            "KEY=$(tessera key create my-app --tenant team-a --keys-namespace keys | grep ^tsk-)",
        ),
    ],
)
def test_the_notes_say_the_url_and_how_to_make_a_key_and_to_ask(
    values: str, url: str, command: str
) -> None:
    notes = read_notes("--set", values)
    assert f"one URL for all models: {url}\n" in notes
    assert command in notes
    assert "tessera key create my-app --tenant team-a" in notes
    assert 'curl $URL/models -H "Authorization: Bearer $KEY"' in notes


def test_the_tenant_of_the_notes_is_a_valid_budget() -> None:
    budget = yaml.safe_load(read_notes().partition("echo '")[2].partition("' | kubectl apply")[0])
    assert TenantBudgetSpec.model_validate(budget["spec"]).tenant.namespaces == ("team-a",)


def test_the_notes_say_what_is_missing_without_a_gateway_or_its_volume() -> None:
    notes = read_notes(*WITHOUT_GATEWAY)
    assert "gateway.enabled is false: there are no shared URL and no keys" in notes
    assert "tessera key create" not in notes
    assert "usage records are in the gateway's pod" in read_notes(
        "--set", "gateway.database.sqlite.size="
    )


def test_operator_and_gateway_get_the_same_classes_with_what_the_values_replace() -> None:
    objects = render("--set", "classes.Standard.ttftP95=3s")
    tables = set()
    for name in ("tessera-operator", "tessera-gateway"):
        (container,) = objects["Deployment", name]["spec"]["template"]["spec"]["containers"]
        variables = {variable["name"]: variable.get("value") for variable in container["env"]}
        tables.add(variables["TESSERA_CLASSES"])
    (table,) = tables
    classes = Settings(classes=json.loads(table)).classes
    assert classes == ServiceClasses.model_validate({"Standard": {"ttftP95": "3s"}})


def test_agents_run_only_where_they_are_enabled_and_privileged_only_to_partition() -> None:
    assert not [name for kind, name in render() if name.startswith("tessera-node")]
    for partition in (False, True):
        objects = render(
            "--set", "node.enabled=true", "--set", f"node.partition={str(partition).lower()}"
        )
        pod = objects["DaemonSet", "tessera-node"]["spec"]["template"]["spec"]
        (agent,) = pod["containers"]
        assert agent["securityContext"].get("privileged", False) == partition
        assert agent["securityContext"]["readOnlyRootFilesystem"]
        names = {variable["name"] for variable in agent["env"]}
        assert {
            name.removeprefix("TESSERA_").lower() for name in names if "TESSERA_" in name
        } <= set(NodeSettings.model_fields)
        mounts = {mount["mountPath"]: mount.get("readOnly") for mount in agent["volumeMounts"]}
        assert mounts.pop("/var/lib/kubelet/pod-resources")
        assert ("/run/tessera" in mounts) == partition
        assert {"key": "tessera.dev/repartition", "operator": "Exists"} in pod["tolerations"]


def test_an_agent_may_write_nothing_but_the_status_of_node_layouts() -> None:
    objects = render("--set", "node.enabled=true")
    rules = objects["ClusterRole", "tessera-node-tessera-system"]["rules"]
    writes = {
        (resource, verb)
        for rule in rules
        for resource in rule["resources"]
        for verb in rule["verbs"]
        if verb not in ("get", "watch")
    }
    assert writes == {("nodelayouts", "create"), ("nodelayouts/status", "patch")}


def gateway_pod(objects: Objects) -> dict[str, Any]:
    pod: dict[str, Any] = objects["Deployment", "tessera-gateway"]["spec"]["template"]["spec"]
    return pod


def test_a_gateway_runs_unless_it_is_disabled_and_the_operator_listens_only_then() -> None:
    without, objects = render(*WITHOUT_GATEWAY), render()
    assert not [name for _, name in without if "gateway" in name]
    for rendered, listens in ((without, False), (objects, True)):
        (operator,) = rendered["Deployment", "tessera-operator"]["spec"]["template"]["spec"][
            "containers"
        ]
        assert ("demand" in {port["name"] for port in operator["ports"]}) == listens
        rules = rendered["NetworkPolicy", "tessera-operator"]["spec"]["ingress"]
        peers = [rule["from"] for rule in rules if rule["ports"][0]["port"] == "demand"]
        assert len(peers) == listens
    (peer,) = peers[0]
    assert peer["podSelector"]["matchLabels"] == {
        "app.kubernetes.io/name": "tessera-gateway",
        "app.kubernetes.io/instance": "tessera",
    }


@pytest.mark.parametrize(
    "values",
    [
        (),
        ("--set", "gateway.tls.secretName=tls,gateway.database.secretName=database"),
        ("--set", "watch.namespaces={a,b},gateway.drainSeconds=60"),
        ("--set", "gateway.releaseNamespaceKeys=true"),
        ("--set", "gateway.tracing.endpoint=http://otel:4318,gateway.database.retentionDays=30"),
        (
            *("--set", "gateway.tokenAudience=models,gateway.oidc[0].audience=models"),
            *("--set", "gateway.oidc[0].issuer=https://login.example.org"),
            *("--set", "gateway.defaultRateLimits.requests.perMinute=600"),
        ),
        (
            *("--set", "gateway.providers.enabled=true"),
            *("--set", "gateway.providers.allowedRanges={10.20.0.0/16,fd00::/8}"),
        ),
    ],
)
def test_every_variable_of_a_gateway_is_one_that_it_reads(values: tuple[str, ...]) -> None:
    (gateway,) = gateway_pod(render(*values))["containers"]
    variables = {
        variable["name"].removeprefix("TESSERA_").lower(): variable.get("value")
        for variable in gateway["env"]
        if variable["name"].startswith("TESSERA_")
    }
    assert set(variables) <= set(GatewaySettings.model_fields)
    GatewaySettings.model_validate(
        {
            name: json.loads(text) if text.startswith(("[", "{")) else text
            for name, text in variables.items()
            if text is not None
        }
    )


@pytest.mark.parametrize(
    ("values", "limits"),
    [
        ("", Chart().gateway.default_rate_limits),
        ("gateway.defaultRateLimits=null", RateLimitsSpec()),
        (
            "gateway.defaultRateLimits.totalTokens=null,"
            "gateway.defaultRateLimits.requests.perMinute=60,"
            "gateway.defaultRateLimits.concurrentRequests=null",
            RateLimitsSpec(requests=PeriodLimits(per_minute=60)),
        ),
    ],
)
def test_a_gateway_has_default_limits_unless_the_values_say_none(
    values: str, limits: RateLimitsSpec
) -> None:
    (gateway,) = gateway_pod(render("--set", values))["containers"]
    variables = {variable["name"]: variable.get("value") for variable in gateway["env"]}
    text = variables.get("TESSERA_DEFAULT_RATE_LIMITS")
    assert RateLimitsSpec.model_validate_json(text or "{}") == limits
    assert bool(text) == (limits != RateLimitsSpec())


def test_default_limits_that_are_mistyped_are_refused_with_their_name() -> None:
    for value in ("requests.perMinut=60", "concurrentRequests=0", "totalTokens.perDay=many"):
        error = render_error("--set", f"gateway.defaultRateLimits.{value}")
        assert value.partition("=")[0].rpartition(".")[2] in error


def test_a_gateway_is_restricted_and_stops_slowly() -> None:
    pod = gateway_pod(render("--set", "gateway.drainSeconds=60"))
    (gateway,) = pod["containers"]
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert gateway["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert pod["terminationGracePeriodSeconds"] == 80


def test_only_a_gateway_that_others_replace_waits_for_load_balancers_before_it_drains() -> None:
    (alone,) = gateway_pod(render())["containers"]
    assert "lifecycle" not in alone
    assert {"name": "TESSERA_ANNOUNCE_SECONDS", "value": "0"} in alone["env"]
    (one_of_two,) = gateway_pod(render(*POSTGRESQL))["containers"]
    assert 0 < one_of_two["lifecycle"]["preStop"]["sleep"]["seconds"] < 20
    assert "TESSERA_ANNOUNCE_SECONDS" not in {each["name"] for each in one_of_two["env"]}


def test_a_gateway_may_read_what_it_needs_and_write_nothing() -> None:
    name = "tessera-gateway-tessera-system"
    objects, named = render(), render("--set", "watch.namespaces={a}")
    cluster = objects["ClusterRole", name]["rules"]
    assert plurals(cluster) == {
        *("acceleratorpools", "pricelists", "tenantbudgets"),
        *("batchinferences", "controllerrevisions", "inferenceservices", "modelroutes", "pods"),
        "tokenreviews",
    }
    assert plurals(named["ClusterRole", name]["rules"]) == {
        *("acceleratorpools", "pricelists", "tenantbudgets", "tokenreviews"),
    }
    assert plurals(named["Role", f"a/{name}"]["rules"]) == {
        *("batchinferences", "controllerrevisions", "inferenceservices", "modelroutes", "pods"),
    }
    own = objects["Role", "tessera-system/tessera-gateway"]["rules"]
    keys = objects["Role", "tessera-system-keys/tessera-gateway-keys"]["rules"]
    assert (plurals(own), plurals(keys)) == ({"pods"}, {"secrets"})
    rules = (*cluster, *own, *keys)
    verbs = {(rule["resources"][0], verb) for rule in rules for verb in rule["verbs"]}
    assert {pair for pair in verbs if pair[1] not in ("list", "watch")} == {
        ("batchinferences", "get"),
        ("tokenreviews", "create"),
    }


OLD_KEYS = "gateway.releaseNamespaceKeys=true"


@pytest.mark.parametrize(
    ("arguments", "namespaces"),
    [
        ((), ["tessera-system-keys"]),
        (("--namespace", "n" * 63), [keys_namespace("n" * 63)]),
        (("--set", "gateway.keysNamespace=keys"), ["keys"]),
        (("--set", OLD_KEYS), ["tessera-system-keys", "tessera-system"]),
        (("--set", f"gateway.keysNamespace=tessera-system,{OLD_KEYS}"), ["tessera-system"]),
    ],
)
def test_a_gateway_reads_the_secrets_of_the_namespace_of_keys_alone(
    arguments: tuple[str, ...], namespaces: list[str]
) -> None:
    objects = render(*arguments)
    readers = [
        name
        for (kind, name), body in objects.items()
        if kind in ("Role", "ClusterRole")
        and "gateway" in name
        and "secrets" in plurals(body["rules"])
    ]
    assert sorted(readers) == sorted(f"{each}/tessera-gateway-keys" for each in namespaces)
    (subject,) = objects["RoleBinding", readers[0]]["subjects"]
    assert subject["name"] == "tessera-gateway"
    (gateway,) = gateway_pod(objects)["containers"]
    variables = {variable["name"]: variable.get("value") for variable in gateway["env"]}
    assert json.loads(variables["TESSERA_KEYS_NAMESPACES"]) == namespaces


def test_the_namespace_of_keys_stays_without_the_chart_and_one_that_is_named_is_not_made() -> None:
    namespace = render()["Namespace", "tessera-system-keys"]
    assert namespace["metadata"]["annotations"] == {"helm.sh/resource-policy": "keep"}
    assert ("Namespace", "tessera-system-keys") not in render(*WITHOUT_GATEWAY)
    named = render("--set", "gateway.keysNamespace=keys")
    assert {name for kind, name in named if kind == "Namespace"} == {"tessera-system-prepull"}


PROVIDERS = ("--set", "gateway.providers.enabled=true")


def variables_of(objects: Objects, name: str) -> dict[str, str]:
    (container,) = objects["Deployment", name]["spec"]["template"]["spec"]["containers"]
    return {each["name"]: each.get("value") for each in container["env"]}


def test_nothing_of_providers_is_readable_before_they_are_switched_on() -> None:
    name, objects = "tessera-gateway-tessera-system", render()
    assert "modelproviders" not in plurals(objects["ClusterRole", name]["rules"])
    assert not [name for _, name in objects if name.endswith("providers")]
    for deployment in ("tessera-gateway", "tessera-operator"):
        assert not [each for each in variables_of(objects, deployment) if "PROVIDERS" in each]
    assert ("Namespace", "tessera-system-providers") not in render(*WITHOUT_GATEWAY, *PROVIDERS)


def test_switched_on_gateways_read_the_secrets_of_one_more_namespace_alone() -> None:
    objects = render(*PROVIDERS, "--set", "gateway.providers.allowedRanges={10.0.0.0/8}")
    cluster = objects["ClusterRole", "tessera-gateway-tessera-system"]["rules"]
    assert "modelproviders" in plurals(cluster)
    assert "secrets" not in plurals(cluster)
    own = "tessera-system-providers/tessera-gateway-providers"
    assert objects["Role", own]["rules"] == [
        {"apiGroups": [""], "resources": ["secrets"], "verbs": ["list", "watch"]}
    ]
    assert objects["RoleBinding", own]["subjects"][0]["name"] == "tessera-gateway"
    namespace = objects["Namespace", "tessera-system-providers"]
    assert namespace["metadata"]["annotations"] == {"helm.sh/resource-policy": "keep"}
    variables = variables_of(objects, "tessera-gateway")
    assert variables["TESSERA_PROVIDERS_NAMESPACE"] == "tessera-system-providers"
    assert json.loads(variables["TESSERA_PROVIDERS_ALLOWED_RANGES"]) == ["10.0.0.0/8"]
    assert variables_of(objects, "tessera-operator")["TESSERA_PROVIDERS_ENABLED"] == "true"


def test_keys_of_providers_are_where_no_other_secrets_are() -> None:
    named = render(*PROVIDERS, "--set", "gateway.providers.namespace=outside")
    assert ("Role", "outside/tessera-gateway-providers") in named
    assert ("Namespace", "outside") not in named
    for namespace in ("tessera-system", "tessera-system-keys"):
        error = render_error(*PROVIDERS, "--set", f"gateway.providers.namespace={namespace}")
        assert f"{namespace} has other Secrets too" in error


def test_a_gateway_holds_the_authorities_of_the_operator_without_their_keys() -> None:
    pod = gateway_pod(render())
    (operator,) = [volume for volume in pod["volumes"] if volume["name"] == "operator"]
    token, secret = operator["projected"]["sources"]
    assert token["serviceAccountToken"]["audience"] == DEMAND_AUDIENCE
    assert secret["secret"]["items"] == [{"key": "ca.crt", "path": "ca.crt"}]


def test_sqlite_serves_one_pod_and_postgresql_as_many_as_the_load_needs() -> None:
    sqlite = render()
    spec = sqlite["Deployment", "tessera-gateway"]["spec"]
    assert (spec["replicas"], spec["strategy"]) == (1, {"type": "Recreate"})
    assert ("PersistentVolumeClaim", "tessera-gateway") in sqlite
    assert ("HorizontalPodAutoscaler", "tessera-gateway") not in sqlite
    assert ("ServiceAccount", USAGE_READER) in sqlite
    assert "SQLite serves one pod" in render_error("--set", "gateway.replicaCount=2")

    shared = render(*POSTGRESQL)
    spec = shared["Deployment", "tessera-gateway"]["spec"]
    assert "replicas" not in spec
    assert spec["strategy"]["rollingUpdate"] == {"maxUnavailable": 0, "maxSurge": 1}
    assert ("PersistentVolumeClaim", "tessera-gateway") not in shared
    scaler = shared["HorizontalPodAutoscaler", "tessera-gateway"]["spec"]
    assert (scaler["minReplicas"], scaler["metrics"][0]["resource"]["name"]) == (2, "cpu")
    assert shared["PodDisruptionBudget", "tessera-gateway"]["spec"]["maxUnavailable"] == 1
    fixed = render(*POSTGRESQL, "--set", "gateway.autoscaling.enabled=false,gateway.replicaCount=3")
    assert fixed["Deployment", "tessera-gateway"]["spec"]["replicas"] == 3
    assert ("HorizontalPodAutoscaler", "tessera-gateway") not in fixed


def test_clients_come_by_tls_or_through_an_ingress_or_a_route() -> None:
    plain, tls = render(), render("--set", "gateway.tls.secretName=tls")
    for objects, port, scheme in ((plain, 80, "HTTP"), (tls, 443, "HTTPS")):
        (service_port,) = objects["Service", "tessera-gateway"]["spec"]["ports"]
        assert (service_port["port"], service_port["targetPort"]) == (port, "api")
        (gateway,) = gateway_pod(objects)["containers"]
        probes = ("startupProbe", "livenessProbe", "readinessProbe")
        assert {gateway[probe]["httpGet"]["scheme"] for probe in probes} == {scheme}
    routed = render(
        *("--set", "gateway.ingress.enabled=true,gateway.ingress.host=models.example.org"),
        *("--set", "gateway.httpRoute.enabled=true,gateway.httpRoute.parentRefs[0].name=public"),
    )
    (rule,) = routed["Ingress", "tessera-gateway"]["spec"]["rules"]
    assert rule["host"] == "models.example.org"
    (route,) = routed["HTTPRoute", "tessera-gateway"]["spec"]["rules"]
    assert route["backendRefs"] == [{"name": "tessera-gateway", "port": 80}]
    assert route["timeouts"] == {"request": "0s"}
    assert "the name that clients use" in render_error("--set", "gateway.ingress.enabled=true")


def test_jobs_of_gates_are_sent_to_the_port_at_which_gateways_answer_them() -> None:
    def variables(objects: Objects, name: str) -> dict[str, Any]:
        (container,) = objects["Deployment", name]["spec"]["template"]["spec"]["containers"]
        return {each["name"]: each.get("value") for each in container["env"]}

    objects, url = render(), "http://tessera-gateway-batches.tessera-system.svc:8082"
    assert variables(objects, "tessera-operator")["TESSERA_GATE_URL"] == url
    service = objects["Service", "tessera-gateway-batches"]["spec"]
    (port,) = (each for each in service["ports"] if each["port"] == 8082)
    (gateway,) = gateway_pod(objects)["containers"]
    (listens,) = (each for each in gateway["ports"] if each["name"] == port["targetPort"])
    assert variables(objects, "tessera-gateway")["TESSERA_GATES_PORT"] == "8082"
    # The policy of the Jobs' pods has one port, of the Service and of the pods behind it.
    assert listens["containerPort"] == port["port"]
    assert "TESSERA_GATE_URL" not in variables(render(*WITHOUT_GATEWAY), "tessera-operator")


def test_a_gateway_needs_the_certificate_of_the_operator() -> None:
    assert "webhook.enabled" in render_error("--set", "webhook.enabled=false")


def test_a_gateway_shows_its_metrics_to_prometheus_alone() -> None:
    rules = render()["NetworkPolicy", "tessera-gateway"]["spec"]["ingress"]
    api, *inside, metrics = rules
    assert api == {"ports": [{"port": "api", "protocol": "TCP"}]}
    for rule, port, label in zip(inside, ("batches", "gates"), ("batch", "gate"), strict=True):
        assert rule["ports"] == [{"port": port, "protocol": "TCP"}]
        (pods,) = rule["from"]
        (selected,) = pods["podSelector"]["matchExpressions"]
        assert selected == {"key": f"tessera.dev/{label}", "operator": "Exists"}
    assert metrics["ports"] == [{"port": "metrics", "protocol": "TCP"}]
    (peer,) = metrics["from"]
    (names,) = peer["namespaceSelector"]["matchExpressions"]
    assert sorted(names["values"]) == ["monitoring", "tessera-system"]


def test_every_policy_denies_and_fails_closed() -> None:
    objects = render("--set", "node.enabled=true", "--set", "gates.require.classes={Batch}")
    policies = {name for kind, name in objects if kind == "ValidatingAdmissionPolicy"}
    assert len(policies) == 14
    for name in policies:
        assert objects["ValidatingAdmissionPolicy", name]["spec"]["failurePolicy"] == "Fail"
        binding = objects["ValidatingAdmissionPolicyBinding", name]["spec"]
        assert binding == {"policyName": name, "validationActions": ["Deny"]}


def test_the_doctor_knows_the_policies_for_deployments_by_their_names() -> None:
    # With the second one the name is cut before a dash.
    for namespace in (NAMESPACE, f"{'x' * 45}-system"):
        objects = render("--namespace", namespace)
        for name in policy_names(namespace):
            assert ("ValidatingAdmissionPolicy", name) in objects
            assert ("ValidatingAdmissionPolicyBinding", name) in objects


def test_policies_for_users_hold_in_the_namespaces_of_the_release_alone() -> None:
    """Else the operator of another release would be refused in its own."""
    named = render("--set", "watch.namespaces={a,b}", "--set", "gates.require.classes={Batch}")
    gates = ("rollouts", "gates", "revisions", "required-gates")
    for name in ("labels", "deployments", "scale", *gates):
        policy = named["ValidatingAdmissionPolicy", f"tessera-operator-{NAMESPACE}-{name}"]
        (names,) = policy["spec"]["matchConstraints"]["namespaceSelector"]["matchExpressions"]
        assert names["values"] == ["a", "b"]


def test_the_sentences_name_the_values_that_a_right_of_the_operator_needs() -> None:
    granted = set(granted_rights([*render().values()]))
    for takeover in tomllib.loads(SENTENCES.read_text(encoding="utf-8"))["tessera-operator"]:
        for resource in takeover.get("what", ()):
            right = Right("tessera-operator", takeover["where"], takeover["may"], resource)
            assert (right in granted) != takeover["gives"].startswith("With `"), right


def test_entries_of_the_catalog_reach_the_operator_and_the_gateway(tmp_path: Path) -> None:
    name, file = "tessera-operator-catalogs", "/etc/tessera/catalogs/catalogs.json"
    assert ("ConfigMap", name) not in render()
    values = tmp_path / "values.yaml"
    values.write_text(yaml.safe_dump({"catalogs": {"gpus": [A5000]}}), encoding="utf-8")
    objects = render("-f", str(values))
    entries = tmp_path / "catalogs.json"
    entries.write_text(objects["ConfigMap", name]["data"]["catalogs.json"], encoding="utf-8")
    extended, faults = read_catalog(entries)
    assert faults == ()
    assert extended.products["NVIDIA-RTX-A5000"].memory_mib == 24_564
    for deployment in ("tessera-operator", "tessera-gateway"):
        template = objects["Deployment", deployment]["spec"]["template"]
        assert template["metadata"]["annotations"]["checksum/catalogs"]
        assert {"name": "catalogs", "configMap": {"name": name}} in template["spec"]["volumes"]
        (container,) = template["spec"]["containers"]
        assert {"name": "TESSERA_CATALOGS_FILE", "value": file} in container["env"]
        mounted = {mount["mountPath"] for mount in container["volumeMounts"]}
        assert "/etc/tessera/catalogs" in mounted
    for settings in (Settings, GatewaySettings):
        assert "catalogs_file" in settings.model_fields
    error = render_error("-f", str(values), "--set", "catalogs.gpus[0].memoryMiB=3")
    assert "/catalogs/gpus/0/memoryMiB" in error
