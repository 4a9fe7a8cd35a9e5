"""The picture of a tiling: what is drawn where, in which colour, and what its legend tells."""

import numpy as np
import numpy.typing as npt
import pytest

from simtriplet.wsi.picture import draw_tiling

THUMBNAIL = np.full((40, 60, 3), 240, np.uint8)
NO_TILES = np.zeros((0, 2), np.int64)
KEPT, ORANGE, GREEN = (0, 90, 181), (230, 159, 0), (0, 158, 115)


def draw(
    kept: npt.NDArray[np.int64] = NO_TILES,
    rejected: dict[str, npt.NDArray[np.int64]] | None = None,
    rings: list[npt.NDArray[np.float64]] | None = None,
    side_px: int = 600,
) -> npt.NDArray[np.uint8]:
    """Draw 960 x 640 level-0 pixels: 16 to a thumbnail pixel, 1.6 to a pixel of the picture."""
    return draw_tiling(THUMBNAIL, 16.0, rings or [], kept, rejected or {}, 80.0, side_px=side_px)


def test_the_longer_side_is_as_asked_with_a_legend_below() -> None:
    picture = draw()
    assert picture.dtype == np.uint8
    assert picture.shape[1] == 600
    assert 400 < picture.shape[0] < 500
    assert (picture[:400] == 240).all()
    turned = draw_tiling(THUMBNAIL.transpose(1, 0, 2), 16.0, [], NO_TILES, {}, 80.0, side_px=600)
    assert turned.shape[1] == 400
    assert turned.shape[0] > 600


def test_kept_tiles_are_outlined_in_place_and_not_filled() -> None:
    picture = draw(np.array([[160, 80]]))
    changed = np.argwhere((picture[:400] != 240).any(axis=2))
    # 160 / 1.6 = 100 in x, 80 / 1.6 = 50 in y, 50 pixels wide
    assert changed.min(axis=0).tolist() == pytest.approx([50, 100], abs=1)
    assert changed.max(axis=0).tolist() == pytest.approx([99, 149], abs=1)
    assert tuple(picture[51, 120]) == KEPT
    assert tuple(picture[75, 125]) == (240, 240, 240)


def test_tiles_left_out_have_the_colour_of_why() -> None:
    rejected = {"blur": np.array([[0, 0]]), "pen": np.array([[160, 0]]), "tissue": np.array([[320, 0]])}
    picture = draw(rejected=rejected)
    for x, colour in ((25, ORANGE), (125, GREEN)):
        expected = np.rint(np.array([240, 240, 240]) * 0.55 + np.array(colour) * 0.45)
        assert picture[25, x].tolist() == pytest.approx(expected.tolist(), abs=1)
        assert tuple(picture[1, x]) == colour
    assert tuple(picture[25, 225]) == (240, 240, 240)


def test_neighbours_of_two_fates_show_both_colours() -> None:
    picture = draw(np.array([[0, 0]]), {"blur": np.array([[80, 0]])})
    row = [tuple(pixel) for pixel in picture[25, 40:60].tolist()]
    assert KEPT in row
    assert ORANGE in row


def test_overlapping_tiles_are_tinted_once() -> None:
    once = draw(rejected={"pen": np.array([[0, 0]])})[25, 25]
    twice = draw(rejected={"pen": np.array([[0, 0], [16, 16]])})[25, 25]
    assert once.tolist() == twice.tolist()


def test_the_tissue_is_outlined_through_its_vertices() -> None:
    ring = np.array([[160.0, 160], [800, 160], [800, 480], [160, 480]])
    picture = draw(rings=[ring])
    for x, y in ((100, 200), (300, 100), (500, 200), (300, 300)):
        assert picture[y - 1 : y + 2, x - 1 : x + 2].min() < 60
    assert (picture[150:250, 200:400] == 240).all()


def test_the_legend_names_only_what_there_is_and_breaks_into_rows() -> None:
    some = np.array([[0, 0]])
    short = draw(some, {"fold": NO_TILES})
    reasons = dict.fromkeys(("tissue", "blur", "pen", "fold", "saturation", "odd"), some)
    long = draw(some, reasons)
    assert long.shape[0] > short.shape[0]
    legend = {tuple(pixel) for pixel in long[400:].reshape(-1, 3).tolist()}
    assert {KEPT, ORANGE, GREEN} <= legend
    assert ORANGE not in {tuple(pixel) for pixel in short[400:].reshape(-1, 3).tolist()}


@pytest.mark.parametrize("side_px", [40, 2000])
def test_any_size(side_px: int) -> None:
    picture = draw(
        np.array([[0, 0], [-40, 600], [950, 630]]), {"blur": np.array([[900, 600], [-60, -60]])}, side_px=side_px
    )
    assert picture.shape[1] == side_px


def test_tiles_over_the_edge_are_outlined_as_far_as_the_picture_goes() -> None:
    picture = draw(rejected={"edge": np.array([[920, 0]])})
    assert tuple(picture[20, 575]) == (170, 140, 0)
    assert tuple(picture[20, 595]) == (240, 240, 240)
    assert (170, 140, 0) in {tuple(pixel) for pixel in picture[400:].reshape(-1, 3).tolist()}
