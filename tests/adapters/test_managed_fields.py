"""Fields that others set on a Deployment of Tessera are named with who set them."""

from typing import Any

import pytest

from tessera.adapters.kube.managed_fields import foreign_fields

ENV: dict[str, Any] = {".": {}, "f:name": {}, "f:value": {}}
OWN = {
    "f:replicas": {},
    "f:template": {
        "f:metadata": {"f:labels": {"f:app": {}}},
        "f:spec": {
            "f:containers": {
                'k:{"name":"engine"}': {
                    ".": {},
                    "f:image": {},
                    "f:env": {'k:{"name":"OWN"}': ENV},
                }
            }
        },
    },
}


def fields_beside(own: dict[str, Any], *entries: dict[str, Any]) -> list[str]:
    own_entry = {"manager": "tessera-operator", "operation": "Apply", "fieldsV1": {"f:spec": own}}
    body = {"metadata": {"managedFields": [*entries, own_entry]}}
    return [f"{field.manager}: {field.path}" for field in foreign_fields(body)]


def an_update(manager: str, fields: dict[str, Any], subresource: str = "") -> dict[str, Any]:
    fields_v1 = {"f:spec": fields}
    entry = {"manager": manager, "operation": "Update", "fieldsV1": fields_v1}
    return entry | ({"subresource": subresource} if subresource else {})


def in_engine(fields: dict[str, Any]) -> dict[str, Any]:
    containers = {"f:containers": {'k:{"name":"engine"}': fields}}
    return {"f:template": {"f:spec": containers}}


@pytest.mark.parametrize(
    ("entry", "path"),
    [
        (
            an_update("kubectl-set", in_engine({"f:env": {'k:{"name":"FOO"}': ENV}})),
            "kubectl-set: spec.template.spec.containers[engine].env[FOO]",
        ),
        (
            an_update("kubectl-edit", {"f:template": {"f:spec": {"f:dnsPolicy": {}}}}),
            "kubectl-edit: spec.template.spec.dnsPolicy",
        ),
        (an_update("kubectl-rollout", {"f:paused": {}}), "kubectl-rollout: spec.paused"),
    ],
)
def test_a_field_that_tessera_does_not_set_is_named_with_its_manager(
    entry: dict[str, Any], path: str
) -> None:
    assert fields_beside(OWN, entry) == [path]


def test_replicas_that_an_autoscaler_took_over_are_named_and_taken_back_ones_are_not() -> None:
    autoscaler = an_update("kube-controller-manager", {"f:replicas": {}}, "scale")
    others = {name: fields for name, fields in OWN.items() if name != "f:replicas"}
    assert fields_beside(others, autoscaler) == ["kube-controller-manager: spec.replicas"]
    assert fields_beside(OWN, autoscaler) == []
    scaled = an_update("tessera-operator", {"f:replicas": {}})
    assert fields_beside(others, scaled) == []


def test_a_restart_by_hand_and_the_status_are_no_fields_of_others() -> None:
    restarted: dict[str, Any] = {"f:annotations": {"f:kubectl.kubernetes.io/restartedAt": {}}}
    restart = an_update("kubectl-rollout", {"f:template": {"f:metadata": restarted}})
    status = an_update("kube-controller-manager", {"f:replicas": {}}, "status")
    others = {name: fields for name, fields in OWN.items() if name != "f:replicas"}
    assert fields_beside(others, restart, status) == []


def test_many_fields_and_long_keys_stay_short() -> None:
    long_key = f'k:{{"name":"{"x" * 300}"}}'
    env = {long_key: ENV} | {f'k:{{"name":"V{index}"}}': ENV for index in range(50)}
    paths = fields_beside(OWN, an_update("kubectl", in_engine({"f:env": env})))
    assert len(paths) == 5
    assert max(map(len, paths)) < 250
