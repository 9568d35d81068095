"""What the status of a provider says."""

from dataclasses import replace

from tessera.domain.observed.providers import ObservedProvider
from tessera.domain.status.providers import provider_status
from tests.builders import NOW, a_provider


def accepted(provider: ObservedProvider, *, enabled: bool = True) -> tuple[str, str, str]:
    (condition,) = provider_status(provider, NOW, enabled=enabled).conditions
    return condition.status, condition.reason, condition.message


def test_a_provider_says_who_may_ask_it_and_where_its_key_is() -> None:
    value, reason, message = accepted(a_provider())
    assert (value, reason) == ("True", "Valid")
    assert message == "1 model for routes of 1 tenant, with the key in Secret/acme"


def test_a_provider_says_that_nothing_is_sent_to_it_or_what_is_wrong_with_its_spec() -> None:
    assert accepted(a_provider(), enabled=False)[:2] == ("False", "ProvidersDisabled")
    assert accepted(a_provider(dialect="klingon"))[:2] == ("False", "UnknownDialect")
    invalid = replace(a_provider(), spec=None, problem="spec.baseUrl: Field required")
    assert accepted(invalid) == (
        "False",
        "InvalidSpec",
        "spec.baseUrl: Field required. This ends when the spec is edited.",
    )
