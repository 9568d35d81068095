"""Arguments of the runner."""

import pytest

from tessera.batch_runner.main import base_url


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("http://10.0.0.7:8000", "http://10.0.0.7:8000"),
        ("http://engine.team-a.svc:8000", "http://engine.team-a.svc:8000"),
        ("http://fd00:10::7:8000", "http://[fd00:10::7]:8000"),
        ("http://::1:8000", "http://[::1]:8000"),
        ("http://[fd00::7]:8000/", "http://[fd00::7]:8000/"),
    ],
)
def test_the_address_of_a_pod_is_a_host_in_either_protocol(given: str, meant: str) -> None:
    assert base_url(given) == meant
