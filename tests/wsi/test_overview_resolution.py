"""How finely tissue is looked for: small slides at 8 um, large ones coarser, never coarser than an eighth of a tile."""

from hypothesis import given
from hypothesis import strategies as st

from simtriplet.wsi.tissue import overview_um_per_px


@given(slide_um=st.floats(1.0, 1e6), tile_um=st.floats(1.0, 2000.0))
def test_bounds(slide_um: float, tile_um: float) -> None:
    um_per_px = overview_um_per_px(slide_um, tile_um)
    assert 8 <= um_per_px <= 16
    if um_per_px > 8:
        assert slide_um / 8 > 2048
        assert tile_um / um_per_px >= 8


def test_examples() -> None:
    assert overview_um_per_px(10_000, 128) == 8
    assert overview_um_per_px(20_000, 128) == 16
    assert overview_um_per_px(20_000, 96) == 12
    assert overview_um_per_px(20_000, 56) == 8
