"""Secrets with the keys of outside providers."""

import base64
from typing import Any

import pytest

from tessera.adapters.kube.object_parsing import parse_object
from tessera.domain.observed.providers import ProviderSecret
from tessera.ports import ClusterObject
from tessera.resources.api_resources import PROVIDER_SECRETS

KEY = "sk-a-key-of-a-provider"
PEM = "-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----"
PRIVATE = PEM.replace("CERTIFICATE", "PRIVATE KEY")


def a_secret(data: dict[str, bytes | str], **meta: Any) -> ClusterObject:
    encoded = {
        name: value if isinstance(value, str) else base64.b64encode(value).decode()
        for name, value in data.items()
    }
    metadata = {"name": "acme", "namespace": "keys", "resourceVersion": "7", **meta}
    return parse_object(PROVIDER_SECRETS, {"metadata": metadata, "type": "Opaque", "data": encoded})


def keys_of(observed: ClusterObject) -> dict[str, str]:
    assert isinstance(observed.plan_input, ProviderSecret)
    return dict(observed.plan_input.keys)


def test_keys_are_read_by_field_without_the_line_end_of_a_file() -> None:
    observed = a_secret({"key": f"{KEY}\n".encode(), "old": b"sk-old"})
    assert keys_of(observed) == {"key": KEY, "old": "sk-old"}


@pytest.mark.parametrize(
    "value", [b"", b"two words", b"line\r\nx: y", b"\xff\xfe", b"x" * 4097, "no base64!"]
)
def test_what_no_header_can_have_is_no_key_and_is_not_logged(
    value: bytes | str, caplog: pytest.LogCaptureFixture
) -> None:
    observed = a_secret({"bad": value, "key": KEY.encode()})
    assert keys_of(observed) == {"key": KEY}
    assert not observed.malformed
    assert not caplog.text


@pytest.mark.parametrize(
    ("value", "authorities"),
    [
        (f"# Größe\n{PEM}\nkey:\n{PRIVATE}\n{PEM}\n".encode(), {"ca.crt": f"{PEM}\n{PEM}"}),
        (PRIVATE.encode(), {}),
        (PEM.encode().ljust(2**18 + 1), {}),
    ],
)
def test_certificates_are_read_by_field_without_what_stands_beside_them(
    value: bytes, authorities: dict[str, str]
) -> None:
    secret = a_secret({"key": KEY.encode(), "ca.crt": value}).plan_input
    assert isinstance(secret, ProviderSecret)
    assert (secret.authorities, secret.keys) == (authorities, {"key": KEY})


def test_nothing_that_shows_a_secret_shows_its_keys() -> None:
    observed = a_secret({"key": KEY.encode()})
    assert KEY not in repr(observed)
    assert "acme" in repr(observed)


def test_the_keys_of_a_tenant_are_no_keys_of_providers() -> None:
    label = {"tessera.dev/tenant": "team-a"}
    assert a_secret({"key": KEY.encode()}, labels=label).plan_input is None
