"""Objects as the API server sends them, and what they become."""

from tessera.adapters import wire
from tessera.resources.kinds import INFERENCE_SERVICES


def test_a_service_on_its_way_out_is_not_planned() -> None:
    meta = {"name": "chat", "namespace": "team-a", "uid": "uid-chat", "resourceVersion": "7"}
    body = {"metadata": meta, "spec": {"model": {"uri": "hf://a/b"}}}
    leaving = body | {"metadata": meta | {"deletionTimestamp": "2026-11-20T12:00:00Z"}}
    assert wire.seen(INFERENCE_SERVICES, body).value is not None
    assert wire.seen(INFERENCE_SERVICES, leaving).value is None
