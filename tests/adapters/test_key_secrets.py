"""Secrets with the keys of tenants."""

import base64
import json
import logging
from typing import Any

import pytest

from tessera.adapters.kube.object_parsing import parse_object
from tessera.api.key_record import KeyRecord
from tessera.api.ref import Ref
from tessera.domain.observed.tenant_keys import TenantKeys
from tessera.resources.api_resources import KEY_SECRETS

DIGEST = "ab" * 32


def a_secret(data: dict[str, bytes], kind: str = "tessera.dev/keys") -> dict[str, Any]:
    return {
        "metadata": {
            "name": "team-a",
            "namespace": "tessera-gateway",
            "resourceVersion": "7",
            "labels": {"tessera.dev/tenant": "team-a"},
        },
        "type": kind,
        "data": {name: base64.b64encode(value).decode() for name, value in data.items()},
    }


def test_records_are_read_by_the_names_of_their_keys() -> None:
    record = {"sha256": DIGEST, "rateLimits": {"requests": {"perMinute": 60}}}
    observed = parse_object(KEY_SECRETS, a_secret({"ci": json.dumps(record).encode()}))
    assert observed.plan_input == TenantKeys(
        secret=Ref("tessera-gateway", "team-a"),
        tenant="team-a",
        records={"ci": KeyRecord.model_validate(record)},
    )


@pytest.mark.parametrize(
    ("record", "fault"),
    [
        (b"tsk-this-is-a-key-by-mistake", "no JSON"),
        (b'{"sha256": "tsk-this-is-a-key-by-mistake"}', "field sha256"),
        (b'{"tsk-this-is-a-key-by-mistake": ""}', "field sha256"),
        (
            b'{"sha256": "' + DIGEST.encode() + b'", "tsk-this-is-a-key-by-mistake": ""}',
            "unknown field",
        ),
        (b'{"sha256": "' + DIGEST.upper().encode() + b'"}', "field sha256"),
        (
            b'{"sha256": "' + DIGEST.encode() + b'", "model": ["a misspelled scope"]}',
            "unknown field model",
        ),
        (
            b'{"sha256": "' + DIGEST.encode() + b'", "rateLimits": {"requests": {"perHour": 1}}}',
            "unknown field rateLimits.requests.perHour",
        ),
        (b"\xff\xfe", "no JSON"),
        (b"[" * 100_000, "no JSON"),
    ],
)
def test_a_record_that_cannot_be_read_is_no_key_and_is_not_logged(
    record: bytes, fault: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    good = json.dumps({"sha256": DIGEST}).encode()
    keys = parse_object(KEY_SECRETS, a_secret({"bad": record, "good": good})).plan_input
    assert isinstance(keys, TenantKeys)
    assert (list(keys.records), keys.malformed) == (["good"], {"bad": fault})
    assert not caplog.text


def test_secrets_of_other_types_are_no_keys() -> None:
    assert parse_object(KEY_SECRETS, a_secret({"ci": b"{}"}, "Opaque")).plan_input is None
