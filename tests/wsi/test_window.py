"""What all readers share: clipping windows to a level, and transparency over white."""

from pathlib import Path

import numpy as np
import numpy.typing as npt
from hypothesis import given, settings
from hypothesis import strategies as st

from simtriplet.wsi.slide import SlideInfo
from simtriplet.wsi.window import WindowReader, clip_window, on_white

WIDTH, HEIGHT = 9, 5


class ArrayReader(WindowReader):
    """A slide that is an array: every pixel holds its own (x, y)."""

    def __init__(self) -> None:
        self.path = Path("array")
        self.info = SlideInfo(((WIDTH, HEIGHT),), (1.0,), None, None, None, "test")
        y, x = np.mgrid[0:HEIGHT, 0:WIDTH]
        self.pixels = np.stack([x, y, x * 0], axis=-1).astype(np.uint8)

    def read_inside(self, level: int, xy: tuple[int, int], size: tuple[int, int]) -> npt.NDArray[np.uint8]:
        assert size[0] > 0 and size[1] > 0 and min(xy) >= 0  # noqa: PT018
        assert xy[0] + size[0] <= WIDTH
        assert xy[1] + size[1] <= HEIGHT
        return self.pixels[xy[1] : xy[1] + size[1], xy[0] : xy[0] + size[0]]


windows = st.tuples(st.integers(-15, 15), st.integers(-15, 15), st.integers(1, 20), st.integers(1, 20))


@settings(deadline=None, max_examples=200)
@given(window=windows)
def test_every_window_is_cut_from_the_slide_on_a_white_sheet(window: tuple[int, int, int, int]) -> None:
    x, y, width, height = window
    reader = ArrayReader()
    sheet = np.full((HEIGHT + 80, WIDTH + 80, 3), 255, np.uint8)
    sheet[40 : 40 + HEIGHT, 40 : 40 + WIDTH] = reader.pixels
    read = reader.read(0, (x, y), (width, height))
    assert np.array_equal(read, sheet[40 + y : 40 + y + height, 40 + x : 40 + x + width])
    many = reader.read_windows(0, np.array([[x, y], [0, 0]]), (width, height))
    assert np.array_equal(many[0], read)
    assert np.array_equal(many[1], sheet[40 : 40 + height, 40 : 40 + width])


@settings(deadline=None, max_examples=200)
@given(window=windows)
def test_clipping_is_the_intersection(window: tuple[int, int, int, int]) -> None:
    x, y, width, height = window
    (left, top), (inner_width, inner_height) = clip_window((x, y), (width, height), (WIDTH, HEIGHT))
    columns = [c for c in range(x, x + width) if 0 <= c < WIDTH]
    rows = [r for r in range(y, y + height) if 0 <= r < HEIGHT]
    assert (inner_width, inner_height) == (len(columns), len(rows))
    if columns and rows:
        assert (left, top) == (columns[0], rows[0])


def test_transparent_is_white_and_opaque_is_kept() -> None:
    rgba = np.array([[[10, 20, 30, 255], [10, 20, 30, 0]]], np.uint8)
    assert on_white(rgba).tolist() == [[[10, 20, 30], [255, 255, 255]]]


@settings(deadline=None, max_examples=100)
@given(colour=st.integers(0, 255), alpha=st.integers(0, 255))
def test_half_transparent_is_mixed_to_the_nearest_level(colour: int, alpha: int) -> None:
    mixed = on_white(np.array([[[colour, colour, colour, alpha]]], np.uint8))
    exact = (colour * alpha + 255 * (255 - alpha)) / 255
    assert abs(int(mixed[0, 0, 0]) - exact) <= 0.5


def test_an_opaque_picture_is_a_plain_copy() -> None:
    rgba = np.random.default_rng(0).integers(0, 256, (4, 3, 4), dtype=np.uint8)
    rgba[..., 3] = 255
    laid = on_white(rgba)
    assert np.array_equal(laid, rgba[..., :3])
    assert laid.flags.c_contiguous
    assert on_white(np.zeros((0, 3, 4), np.uint8)).shape == (0, 3, 3)
