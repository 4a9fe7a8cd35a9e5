"""Whole factors are recognised, and nothing else is bent to one."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from simtriplet.wsi.slide import level_downsamples


@given(
    width=st.integers(2000, 300_000),
    height=st.integers(2000, 300_000),
    factors=st.lists(st.sampled_from([2, 4, 8, 16, 32]), unique=True).map(sorted),
    up=st.booleans(),
)
def test_floor_and_ceiling_of_a_whole_factor_give_the_factor(
    width: int, height: int, factors: list[int], up: bool
) -> None:
    sizes = [(width, height)] + [
        (-(-width // factor), -(-height // factor)) if up else (width // factor, height // factor) for factor in factors
    ]
    assert level_downsamples(sizes) == (1.0, *map(float, factors))


def test_other_ratios_stay_what_they_are() -> None:
    assert level_downsamples([(10_000, 8000), (4000, 3200)]) == (1.0, pytest.approx(2.5))
    assert level_downsamples([(10_000, 8000), (4900, 3920)])[1] == pytest.approx(10_000 / 4900)
