"""Random services and nodes."""

from hypothesis import strategies as st

from tests.builders import MEDIUM, SMALL, a_node, a_service, a_spec

names = st.sampled_from(["a", "b", "c", "d", "e"])
services = st.dictionaries(
    names,
    st.builds(
        a_spec,
        st.sampled_from([SMALL, MEDIUM]),
        scaling=st.fixed_dictionaries({"minReplicas": st.integers(1, 3)}),
    ),
    min_size=1,
).map(lambda specs: [a_service(name, spec) for name, spec in specs.items()])


nodes = st.builds(
    lambda slices, whole: (a_node("a100", slices, whole=whole), a_node("h100", whole=2)),
    st.dictionaries(
        st.sampled_from(["1g.10gb", "2g.20gb", "3g.40gb"]), st.integers(1, 7), min_size=1
    ),
    st.integers(0, 4),
)
