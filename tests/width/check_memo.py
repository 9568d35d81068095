"""Asserts what follows from the row of the kind Memo; runs in a copy of the product that has it."""

import asyncio
from typing import Any

import kopf
import pytest

import generate
from tessera.adapters.kube.object_parsing import parse_object
from tessera.api.schema import crd
from tessera.controller.admission import validators
from tessera.domain.kinds import kinds
from tessera.gateway.fleet.watching import FleetWatch
from tessera.reconcile.store import Store
from tessera.resources.api_resources import KINDS, WATCHED
from tessera.resources.manifest import ObjectKey
from tests.builders import NOW
from tests.reconcile.test_written_objects import a_fleet

MEMOS: Any = getattr(kinds, "MEMOS")  # noqa: B009 - a kind of the copy
KEY = ObjectKey("memos", "team-a", "note")


def body(text: object) -> dict[str, Any]:
    meta = {"name": "note", "namespace": "team-a", "generation": 1}
    return {
        "apiVersion": "tessera.dev/v1alpha1",
        "kind": "Memo",
        "metadata": meta | {"creationTimestamp": "2026-11-20T11:59:00Z"},
        "spec": {"text": text},
    }


def check_declarations() -> None:
    definition = crd(MEMOS)["spec"]
    assert definition["names"]["shortNames"] == ["tmemo"]
    (version,) = definition["versions"]
    columns = [column["name"] for column in version["additionalPrinterColumns"]]
    assert columns == ["Accepted", "Reason", "Text", "Age", "Message"]
    assert "status" in version["subresources"]
    assert MEMOS in KINDS
    assert MEMOS in WATCHED
    assert MEMOS in FleetWatch.KINDS
    rights = generate._cluster_role()
    assert "- memos\n" in rights
    assert "- memos/status\n" in rights
    assert "memos:\n- CREATE\n- UPDATE\n" in rights
    assert "# Memo" in generate._page(MEMOS)


async def check_course() -> None:
    observed: Any = parse_object(MEMOS, body("hello")).plan_input
    assert (observed.name, observed.spec.text) == ("note", "hello")
    validate = validators(Store(KINDS), lambda: NOW)["memos"]
    await validate(body=body("hello"), warnings=[])
    with pytest.raises(kopf.AdmissionError, match=r"kubectl explain tmemo\.spec"):
        await validate(body=body("x" * 21), warnings=[])

    fleet, _ = a_fleet()
    fleet.cluster.put(MEMOS, body("hello"))
    await fleet.cycle()
    assert accepted(fleet) == ("True", "Valid")
    fleet.cluster.objects[KEY]["spec"] = {"text": 5}
    fleet.cluster.touch(KEY)
    await fleet.cycle()
    await fleet.cycle()
    assert accepted(fleet) == ("False", "InvalidSpec")
    reasons = [event["reason"] for event in fleet.cluster.events.values()]
    assert reasons == ["InvalidSpec"]


def accepted(fleet: Any) -> tuple[str, str]:
    (condition,) = fleet.cluster.objects[KEY]["status"]["conditions"]
    return condition["status"], condition["reason"]


if __name__ == "__main__":
    check_declarations()
    asyncio.run(check_course())
