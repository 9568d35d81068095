"""What a gateway offers while a change of a service waits for its gate."""

from dataclasses import replace
from typing import Any

from tessera.api.rate_limits import RateLimitsSpec
from tessera.api.ref import Ref
from tessera.domain.gateway.build import GatewayObservations, build_directory
from tessera.domain.gateway.directory import OfferedModel
from tessera.domain.observed.gates import ServiceRevision
from tessera.domain.observed.snapshot import ObservedService
from tessera.domain.quality.change import gated_digest
from tests.builders import LARGE, a_service
from tests.domain.quality.gated_fleet import a_gated_spec

SQL = {"name": "sql", "uri": "hf://org/sql", "rank": 8}
STABLE = a_gated_spec(model={"servedName": "small", "adapters": [SQL]})
EDITED = a_gated_spec(uri=LARGE, model={"servedName": "large"}, access={"aliases": ["best"]})


def a_revision(**fields: Any) -> ServiceRevision:
    revision = ServiceRevision(
        ref=Ref("team-a", "chat-1"),
        service=Ref("team-a", "chat"),
        service_uid="uid-chat",
        number=1,
        digest=gated_digest(STABLE),
        spec=STABLE,
    )
    return replace(revision, **fields)


def offered(service: ObservedService, *revisions: ServiceRevision) -> OfferedModel:
    observed = GatewayObservations(services=(service,), revisions=revisions)
    (model,) = build_directory(observed, RateLimitsSpec()).models
    return model


def test_names_of_the_model_and_adapters_are_those_in_force_and_aliases_those_of_the_edit() -> None:
    model = offered(a_service(spec=EDITED), a_revision())

    assert (model.names, model.adapters) == (("small", "best"), ("sql",))


def test_the_longest_answer_is_that_in_force_and_other_limits_are_those_of_the_edit() -> None:
    limits = {"maxOutputTokens": 8, "concurrentRequests": 2}
    edited = a_gated_spec(access={"rateLimits": limits})

    model = offered(a_service(spec=edited), a_revision())

    assert model.limits is not None
    assert (model.limits.max_output_tokens, model.limits.concurrent_requests) == (None, 2)


def test_once_the_change_has_passed_the_names_are_those_of_the_edit() -> None:
    passed = a_revision(
        ref=Ref("team-a", "chat-2"), number=2, digest=gated_digest(EDITED), spec=EDITED
    )

    model = offered(a_service(spec=EDITED), a_revision(), passed)

    assert (model.names, model.adapters) == (("large", "best"), ())


def test_revisions_of_a_namesake_that_was_deleted_count_for_nothing() -> None:
    model = offered(a_service(spec=EDITED), a_revision(service_uid="uid-earlier"))

    assert model.names == ("large", "best")
