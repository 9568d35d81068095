"""Names of models that a sender may not use: he learns of similar ones that he may."""

import time

import pytest

from tessera.api.ref import Ref
from tessera.domain.gateway.directory import Directory, Identity
from tessera.gateway.refusals import RequestError
from tessera.gateway.requests.admission import Admission
from tests.gateway.harness import TENANT, KeyIdentifier, LocalAccounts, a_model


def an_admission(*names: str) -> Admission:
    admission = Admission(KeyIdentifier(), LocalAccounts().borrow, lambda: None)
    admission.update(Directory(models=tuple(a_model(uid=name, names=(name,)) for name in names)))
    return admission


@pytest.mark.parametrize(
    ("scope", "hint"),
    [
        ((), "did you mean `llama-3-8b`?"),
        (("llama-3-8b", "gone"), "did you mean `llama-3-8b`?"),
        (("qwen",), "this key may use qwen."),
        (("gone",), "this key may use no model."),
    ],
)
def test_a_sender_learns_of_names_that_he_may_use(scope: tuple[str, ...], hint: str) -> None:
    identity = Identity(tenant=TENANT, models=scope)
    with pytest.raises(RequestError) as refusal:
        an_admission("llama-3-8b", "qwen").models.find(identity, "llama-3-9b")
    assert refusal.value.message.endswith(hint)


def test_a_sender_with_a_key_for_services_learns_of_their_names() -> None:
    admission = an_admission("llama-3-8b", "qwen")
    for service, hint in (("chat", "did you mean `llama-3-8b`?"), ("gone", "may use no model.")):
        identity = Identity(tenant=TENANT, services=frozenset({Ref("team-a", service)}))
        for _ in range(2):
            with pytest.raises(RequestError) as refusal:
                admission.models.find(identity, "llama-3-9b")
            assert refusal.value.message.endswith(hint)


@pytest.mark.parametrize("scope", [0, 64])
def test_an_unknown_name_costs_little_however_many_and_long_the_names_are(scope: int) -> None:
    names = [f"model-{number:05}-{'llama-instruct-' * 3}" for number in range(20_000)]
    identity = Identity(tenant=TENANT, models=tuple(names[:scope]))
    admission = an_admission(*names)
    least = float("inf")
    for number in range(50):
        unknown = f"model-{number:05}-{'tune-instruct-l' * 3}"
        began = time.process_time()
        with pytest.raises(RequestError, match="did you mean"):
            admission.models.find(identity, unknown)
        least = min(least, time.process_time() - began)
    # It takes 50 us; a look at each name took 0.4 ms, and 80 ms for a key with a scope.
    assert least < 0.0002
