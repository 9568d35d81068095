"""The geometry of MIG: what GPU models allow, and the errors in what is published about it."""

from dataclasses import replace

import pynvml
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tessera.domain.hardware.gpu_layouts import (
    WHOLE_GPU_LAYOUT,
    Layout,
    SlicePlacement,
    geometry,
    layout_error,
    maximal_geometries,
)
from tessera.domain.hardware.gpu_models import GpuModel, gpu_models
from tests.mig_oracles import distinct_geometries, enumerate_layouts, maximal_layouts

A100 = gpu_models()["A100-80GB"]
A30 = gpu_models()["A30-24GB"]
BASE = ("1g.10gb", "2g.20gb", "3g.40gb", "4g.40gb", "7g.80gb")
DOUBLE = (*BASE, "1g.20gb")
SEVENS = sorted(name for name, model in gpu_models().items() if model.memory_slices == 8)


def layout(text: str) -> Layout:
    """`3g.40gb@4 1g.10gb@0` by start."""
    parts = (part.split("@") for part in text.split())
    return tuple(sorted(SlicePlacement(int(start), profile) for profile, start in parts))


@pytest.mark.parametrize(
    ("board", "profiles", "counts"),
    [
        (A100, BASE, (298, 19, 38, 14, 12)),
        (A100, DOUBLE, (723, 78, 78, 38, 28)),
        (A100, (*DOUBLE, "1g.10gb+me"), (2319, 239, 128, 64, 44)),
        (A30, ("1g.6gb", "2g.12gb", "4g.24gb"), (26, 5, 10, 4, 4)),
        (A30, tuple(cut.name for cut in A30.profiles), (76, 17, 20, 8, 8)),
    ],
)
def test_the_legal_combinations_are_as_many_as_enumerated_independently(
    board: GpuModel, profiles: tuple[str, ...], counts: tuple[int, ...]
) -> None:
    """Placed states, the maximal ones; the multisets of both; multisets that are in no other."""
    everything, full = enumerate_layouts(board, profiles), maximal_layouts(board, profiles)
    every, whole = distinct_geometries(everything), distinct_geometries(full)
    got = (len(everything), len(full), len(every), len(whole), len(maximal_geometries(every)))
    assert got == counts


def test_the_nineteen_layouts_of_an_a100_are_the_known_ones() -> None:
    left = ["2@0 2@2", "2@0 1@2 1@3", "1@0 1@1 2@2", "1@0 1@1 1@2 1@3"]
    right = ["2@4 1@6", "1@4 1@5 1@6"]
    known = ["7@0", "4@0 3@4", "3@0 3@4", *(f"4@0 {half}" for half in right)]
    known += [f"3@0 {half}" for half in right]
    known += [f"{half} 3@4" for half in left]
    known += [f"{half} {other}" for half in left for other in right]
    names = dict(zip("12347", BASE, strict=True))
    written = {" ".join(f"{names[part[0]]}{part[1:]}" for part in text.split()) for text in known}
    assert {layout(text) for text in written} == set(maximal_layouts(A100, BASE))


def test_the_twelve_geometries_are_the_known_ones() -> None:
    known = ["7", "43", "421", "4111", "33", "322", "3211", "31111", "2221", "22111", "211111"]
    known += ["1111111"]
    names = dict(zip("12347", BASE, strict=True))
    geometries = maximal_geometries(distinct_geometries(enumerate_layouts(A100, BASE)))
    assert set(geometries) == {
        geometry(SlicePlacement(0, names[digit]) for digit in digits) for digits in known
    }


@pytest.mark.parametrize("name", SEVENS)
def test_every_gpu_model_of_seven_slices_has_the_same_geometry(name: str) -> None:
    shapes = [
        [
            replace(profile, name="", multiprocessors=None, memory_mib=None)
            for profile in gpu_models()[model_name].profiles
        ]
        for model_name in (name, A100.name)
    ]
    assert shapes[0] == shapes[1]


@pytest.mark.parametrize(
    ("board", "wrong", "why"),
    [
        ("A100-80GB", "1g.10gb@7", "cannot start at 7"),
        ("A100-80GB", "2g.20gb@6", "cannot start at 6"),
        ("A100-80GB", "4g.40gb@4", "cannot start at 4"),
        ("A100-80GB", "3g.40gb@0 1g.10gb@3", "overlaps"),
        ("H100-80GB", "3g.40gb@0 1g.10gb@3", "overlaps"),
        ("H100-80GB", "1g.20gb@1", "cannot start at 1"),
        ("H100-80GB", "7g.80gb@0 1g.10gb@0", "overlaps"),
        ("A100-40GB", "1g.10gb@0 1g.5gb@1", "overlaps"),
        ("A100-80GB", "1g.10gb+me@0 1g.10gb+me@1", "media engines"),
        ("A30-24GB", "1g.6gb+me@0 2g.12gb+me@2", "media engines"),
        ("A30-24GB", "3g.24gb@0", "has no profile"),
        ("A30-24GB", "2g.12gb@1", "cannot start at 1"),
        ("RTX-PRO-6000-96GB", "7g.96gb@0", "has no profile"),
        ("A100-80GB", "whole@0 1g.10gb@6", "leaves no room"),
    ],
)
def test_what_hardware_refuses_is_refused_with_the_reason(board: str, wrong: str, why: str) -> None:
    assert why in (layout_error(gpu_models()[board], layout(wrong)) or "")


@pytest.mark.parametrize("board", sorted(gpu_models()))
def test_a_whole_gpu_and_an_empty_one_are_legal_everywhere(board: str) -> None:
    assert layout_error(gpu_models()[board], WHOLE_GPU_LAYOUT) is None
    assert layout_error(gpu_models()[board], ()) is None


@pytest.mark.parametrize("right", ["2g.20gb@0 2g.20gb@2", "1g.10gb@0 1g.10gb@1 2g.20gb@2"])
def test_three_slices_beside_small_ones_are_placed_at_the_right(right: str) -> None:
    assert layout_error(A100, layout(f"{right} 3g.40gb@4")) is None
    wanted = geometry(layout(f"{right} 3g.40gb@4"))
    holders = [
        candidate for candidate in enumerate_layouts(A100, BASE) if geometry(candidate) == wanted
    ]
    assert holders
    assert all(SlicePlacement(4, "3g.40gb") in candidate for candidate in holders)


def test_a_3g_at_the_left_leaves_three_compute_slices_at_the_right() -> None:
    existing = layout("3g.40gb@0")
    rest = {
        geometry(set(maximal) - set(existing)) for maximal in maximal_layouts(A100, BASE, existing)
    }
    assert rest == {
        (("3g.40gb", 1),),
        (("1g.10gb", 1), ("2g.20gb", 1)),
        (("1g.10gb", 3),),
    }


def test_starts_of_a_profile_are_never_multiples_of_a_wrong_size() -> None:
    for name in SEVENS:
        sizes = {
            profile.constant: (profile.memory_slices, profile.starts)
            for profile in gpu_models()[name].profiles
        }
        assert sizes["3_SLICE"] == (4, (0, 4))
        assert sizes["7_SLICE"] == (8, (0,))
        assert sizes["1_SLICE_REV2"] == (2, (0, 2, 4, 6))


def test_names_that_changed_between_gpu_models_and_drivers_are_the_same_profile() -> None:
    gb200 = gpu_models()["GB200"]
    assert gb200.find_profile("1g.24gb") == gb200.find_profile("1g.23gb")
    assert A100.find_profile("3g.39gb") == A100.find_profile("3g.40gb")


def test_profiles_are_keyed_by_the_constants_of_nvml() -> None:
    constants = {
        f"NVML_GPU_INSTANCE_PROFILE_{profile.constant}"
        for gpu_model in gpu_models().values()
        for profile in gpu_model.profiles
    }
    assert len(constants) > 10
    assert constants <= vars(pynvml).keys()


def test_no_name_means_two_profiles_or_gpu_models() -> None:
    for gpu_model in gpu_models().values():
        assert len({profile.name for profile in gpu_model.profiles}) == len(gpu_model.profiles)
    products_of_all = [
        product for gpu_model in gpu_models().values() for product in gpu_model.products
    ]
    assert len(products_of_all) == len(set(products_of_all))


def test_multiprocessors_are_not_taken_for_sevenths() -> None:
    multiprocessors = {
        gi_profile.name: gi_profile.multiprocessors
        for gi_profile in gpu_models()["H100-80GB"].profiles
    }
    assert (
        multiprocessors["1g.10gb"],
        multiprocessors["1g.20gb"],
        multiprocessors["3g.40gb"],
        multiprocessors["4g.40gb"],
    ) == (16, 26, 60, 64)


MAXIMAL_LAYOUTS = [
    (A100, maximal_layouts(A100, DOUBLE)),
    (A30, maximal_layouts(A30, ("1g.6gb", "2g.12gb"))),
]


@given(st.sampled_from(MAXIMAL_LAYOUTS), st.data())
def test_each_part_of_a_legal_layout_is_legal_in_any_order(
    among: tuple[GpuModel, tuple[Layout, ...]], data: st.DataObject
) -> None:
    gpu_model, wholes = among
    part = data.draw(st.sets(st.sampled_from(data.draw(st.sampled_from(wholes)))))
    assert layout_error(gpu_model, data.draw(st.permutations(sorted(part)))) is None
