"""Replicas that cannot start, as kubelet and engine tell it, in words that say what to do."""

import pytest

from tessera.domain.plan import plan
from tessera.domain.snapshot import Ref
from tessera.domain.status import service_status
from tests.builders import MEDIUM, a_node, a_pod, a_service, a_snapshot, a_spec

GATED = """huggingface_hub.errors.GatedRepoError: 401 Client Error. (Request ID: Root=1-68)
Cannot access gated repo for url https://huggingface.co/meta-llama/x/resolve/main/config.json.
Access to model meta-llama/x is restricted. You must have access to it and be authenticated."""
FORBIDDEN = """OSError: You are trying to access a gated repo.
403 Client Error. (Request ID: Root=1-68) Access to model meta-llama/x is restricted and you are
not in the authorized list. Visit https://huggingface.co/meta-llama/x to ask for access."""
HTTPX = "Client error '401 Unauthorized' for url 'https://hub.acme/meta-llama/x/config.json'"
TOKEN = {"tokenSecretRef": {"name": "hub", "key": "key"}}


def progressing(trouble: str, words: str, **model: object) -> tuple[str, str]:
    service = a_service(spec=a_spec(MEDIUM, replicas=1, model=model))
    pod = a_pod(
        variant="a100-3g-40gb", ready_since=None, up=False, trouble=trouble, last_words=words
    )
    snapshot = a_snapshot(service, nodes=(a_node(slices={"3g.40gb": 1}),), pods=(pod,))
    status = service_status(snapshot, plan(snapshot).allotments[Ref("team-a", "chat")], None, None)
    (found,) = [one for one in status.conditions if one.type == "Progressing"]
    return found.reason, found.message


@pytest.mark.parametrize(
    "words", ['secret "hub" not found', "couldn't find key key in Secret team-a/hub"]
)
def test_a_missing_secret_is_named_with_the_command_that_makes_it(words: str) -> None:
    reason, message = progressing("CreateContainerConfigError", words, **TOKEN)
    assert reason == "SecretMissing"
    assert "kubectl create secret generic hub -n team-a --from-literal=key=<token>" in message
    assert words in message


def test_what_else_the_kubelet_refuses_is_told_in_its_words() -> None:
    words = "container has runAsNonRoot and image will run as root"
    assert progressing("CreateContainerConfigError", words, **TOKEN) == (
        "EngineNotStarted",
        f"chat-0: {words}",
    )


@pytest.mark.parametrize("words", [GATED, HTTPX])
def test_a_gated_model_without_a_token_asks_for_one(words: str) -> None:
    reason, message = progressing("CrashLoopBackOff", words)
    assert reason == "HubRefused"
    assert "401" in message
    assert "accept the terms of meta-llama/Llama-3.1-8B-Instruct" in message
    assert "name a Secret" in message


def test_a_token_that_the_hub_does_not_know_is_told_apart_from_one_without_access() -> None:
    _, unknown = progressing("CrashLoopBackOff", GATED, **TOKEN)
    _, denied = progressing("CrashLoopBackOff", FORBIDDEN, **TOKEN)
    assert "does not know the token in Secret hub, key key" in unknown
    assert "the account of the token in Secret hub may not read" in denied


def test_an_engine_that_fails_for_another_reason_is_told_in_its_last_words() -> None:
    words = "torch.OutOfMemoryError: tried to allocate 403 MiB"
    assert progressing("CrashLoopBackOff", words) == ("EngineFailed", f"chat-0: {words}")
