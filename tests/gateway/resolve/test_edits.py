"""An edit builds the names that it changes, and what is built so is what is built whole."""

import time
from collections.abc import Sequence, Set
from dataclasses import replace
from datetime import timedelta
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from tessera.api.ref import Ref
from tessera.domain.gateway.access import tenant_models
from tessera.domain.gateway.directory import Directory, Identity, OfferedModel
from tests.gateway.harness import a_model
from tests.gateway.test_gateway import Surroundings
from tests.gateway_builders import grants_for

TENANTS = ("team-a", "team-b", "team-c")
NAMES = ("chat", "code", "Chat", "draw")


@st.composite
def offered(draw: st.DrawFn, number: int) -> OfferedModel:
    """Draw a model, of which the number says where it is."""
    tenant = (*TENANTS, None)[number % 4]
    return a_model(
        service=Ref(tenant or "nobody", f"s{number}"),
        uid=draw(st.sampled_from([f"u{number}", f"again-{number}"])),
        tenant=tenant,
        names=tuple(draw(st.lists(st.sampled_from(NAMES), min_size=1, max_size=3))),
        adapters=tuple(draw(st.lists(st.sampled_from(NAMES), max_size=1))),
        tenants=draw(st.frozensets(st.sampled_from(TENANTS), max_size=2)),
        public=draw(st.booleans()),
    )


PLACES = 8
# One service after the other comes, changes or goes.
EDITS = st.lists(
    st.integers(0, PLACES - 1).flatmap(
        lambda number: st.tuples(st.just(number), st.none() | offered(number))
    ),
    min_size=12,
    max_size=24,
)
ALL_NAMES: dict[str, Any] = {"names": NAMES, "public": True}
RIGHTS = [
    grants_for(a_model(tenant=tenant, service=Ref(tenant, "x"), **ALL_NAMES))
    for tenant in ("team-a", "team-b")
]


@given(edits=EDITS, regranted=st.sets(st.integers(0, 23), max_size=3))
def test_names_after_any_edits_are_those_of_a_gateway_that_begins(
    edits: Sequence[tuple[int, OfferedModel | None]], regranted: Set[int]
) -> None:
    gateway, rights = Surroundings().gateway(), list(RIGHTS)
    places: list[OfferedModel | None] = [None] * PLACES
    for number, (place, edited) in enumerate(edits):
        places[place] = edited
        if number in regranted:
            rights.reverse()
        models = tuple(model for model in places if model is not None)
        directory = Directory(models=models, name_rights=rights[0])
        gateway.publish(directory)
        for tenant in TENANTS:
            visible = gateway.admission.models.visible(Identity(tenant=tenant))
            assert list(visible.items()) == list(tenant_models(directory, tenant).items())


def test_an_edit_costs_little_however_many_services_and_tenants_there_are() -> None:
    """Of a service that all tenants get, by a name that a grant has, and by one that none has."""
    tenants = [f"team-{number}" for number in range(40)]
    models = [
        a_model(
            service=Ref(tenants[number % 40], f"s{number}"),
            uid=f"u{number}",
            tenant=tenants[number % 40],
            names=(f"name-{number}",),
            public=True,
        )
        for number in range(3000)
    ]
    gateway, rights = Surroundings().gateway(), grants_for(*models)
    times = []
    for edit in range(6):
        names = ("name-45", f"free-{edit}")
        models[45] = replace(models[45], names=names, ttft_seconds=float(edit + 1))
        directory = Directory(models=tuple(models), name_rights=rights)
        began = time.process_time()
        gateway.publish(directory)
        for tenant in tenants:
            model = gateway.admission.models.find(Identity(tenant=tenant), "name-45")
            assert model is models[45]
        times.append(timedelta(seconds=time.process_time() - began))
    # It takes 15 ms; each tenant's names took 300 ms when they were built again.
    assert min(times[1:]) < timedelta(milliseconds=60)
